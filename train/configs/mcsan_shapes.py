"""MCSAN on Shapes, the embedded data set; objects beside clip features, so that there is a role to be seen.

amex manifest parse shapes/manifest.jsonl
amex train mcsan_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

model = {
    "name": "mcsan",
    "streams": ["r2plus1d_tiny", "objects"],
    "dim": 256,
    "scaling": "layernorm",
    "dropout": 0.1,
    "text_dropout": 0.1,
    "role_dropout": 0.1,
    # As in amenet_shapes.
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
    "ranking": "contrastive",
}
data = {
    "batch_size": 32,
    "max_objects": 6,
}
train = {
    "epochs": 20,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 50,
    "val_every": 4,
}
# For `amex ablate mcsan_shapes`.
variants = {
    "global alone": ["model.levels=[global]"],
    "no relationships": ["model.levels=[global, entity, action]"],
    "no divergence": ["model.divergence=off"],
    "no attributes": ["model.attributes=off"],
    "attributes apart": ["model.attributes=separate"],
    "plain cross-entropy": ["model.focus=0", "model.balance=0.5"],
}
