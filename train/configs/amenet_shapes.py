"""AME-Net on Shapes, the embedded data set: small, a few minutes on a CPU.

amex train amenet_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

base = "_shapes_objects"
model = {
    "name": "amenet",
    # Who does it to whom is in the order of the words.
    "text_sequence": "gru",
    "text_heads": "separate",
}
objective = {"adversary": "alternating", "adversary_weight": 0.03}
train = {
    "epochs": 40,
}
# For `amex ablate amenet_shapes`.
variants = {
    "global only": ["model.relation_branch=false", "objective.adversary=off"],
    "relation only": ["model.global_branch=false", "objective.adversary=off"],
    "both": ["objective.adversary=off"],
    "both + alternating adversary": [],
    "both + reversal": ["objective.adversary=reversal", "objective.adversary_weight=0.01"],
    "both + wasserstein": ["objective.adversary=wasserstein", "objective.adversary_weight=0.01"],
}
