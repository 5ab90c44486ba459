"""AME-Net on Shapes, the embedded data set: small, a few minutes on a CPU.

amex train amenet_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

model = {
    "name": "amenet",
    "dim": 256,
    # Up to four objects and a few false ones, in 12 frames: the graph can be small. Two layers, so that an object knows
    # how it moves (temporal edges) before the others hear of it (spatial edges).
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
    # Who does it to whom is in the order of the words.
    "text_sequence": "gru",
    "text_heads": "separate",
    "ranking": "contrastive",
    "adversarial": "alternating",
    "adversarial_weight": 0.03,
}
data = {
    # Small batches: what counts here is the number of steps.
    "batch_size": 32,
    "max_objects": 6,
}
train = {
    "epochs": 40,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 50,
}
# For `amex ablate amenet_shapes`.
variants = {
    "global only": ["model.relation_branch=false", "model.adversarial=off"],
    "relation only": ["model.global_branch=false", "model.adversarial=off"],
    "both": ["model.adversarial=off"],
    "both + adversarial": [],
}
