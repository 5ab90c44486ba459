"""AME-Net on Shapes, the embedded data set: as `amex train amenet`, with variants to compare.

amex train amenet_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

model = {
    "name": "amenet",
}
# For `amex ablate amenet_shapes`.
variants = {
    "global only": ["model.relation_branch=false"],
    "relation only": ["model.global_branch=false"],
    "both": [],
    "both + reversal": ["objective.adversary=reversal", "objective.adversary_weight=0.01"],
    "both + alternating adversary": ["objective.adversary=alternating"],
    "both + wasserstein": ["objective.adversary=wasserstein", "objective.adversary_weight=0.01"],
    "scores as they are": ["model.hubs=0"],
    "pairs in any order": ["data.similar=0"],
}
