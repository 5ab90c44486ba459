"""HGR on Shapes, the embedded data set; objects beside clip features, since only objects show roles.

amex manifest parse shapes/manifest.jsonl
amex train hgr_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

base = "_shapes_objects"
model = {
    "name": "hgr",
    "streams": ["r2plus1d_tiny", "objects"],
    "scaling": "layernorm",
    "dropout": 0.1,
    "text_dropout": 0.1,
    "role_dropout": 0.1,
}
objective = {"contrastive": 1.0}
# For `amex ablate hgr_shapes`.
variants = {
    "sentence alone": ["model.levels=[sent]"],
    "verbs alone": ["model.levels=[verb]"],
    "nouns alone": ["model.levels=[noun]"],
    "no graph over roles": ["model.role_layers=0"],
    "clip features alone": ["model.streams=[r2plus1d_tiny]"],
}
