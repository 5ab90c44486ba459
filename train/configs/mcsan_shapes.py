"""MCSAN on Shapes, the embedded data set; objects beside clip features, since only objects show roles.

amex manifest parse shapes/manifest.jsonl
amex train mcsan_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

base = "_shapes_objects"
model = {
    "name": "mcsan",
    "streams": ["r2plus1d_tiny", "objects"],
    "scaling": "layernorm",
    "dropout": 0.1,
    "text_dropout": 0.1,
    "role_dropout": 0.1,
}
objective = {"contrastive": {"features": 1.0, "concepts": 0.1}}
# For `amex ablate mcsan_shapes`.
variants = {
    "global alone": ["model.levels=[global]"],
    "no relationships": ["model.levels=[global, entity, action]"],
    "triples": ["model.relation=triple"],
    "no divergence": ["objective.divergence=0"],
    "no attributes": ["model.attributes=off", "objective.concepts=0"],
    "attributes apart": ["model.attributes=separate"],
    "plain cross-entropy": ["objective.focus=0", "objective.balance=0.5"],
}
