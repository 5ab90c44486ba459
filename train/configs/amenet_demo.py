"""AME-Net for `amex demo`: on 400 clips of Shapes, with twins for training too, to know who does it to whom.

amex manifest shapes --out demo --clips 400 --train-twins
amex train amenet_demo --store demo.zarr --manifest demo/manifest.jsonl --work-dir W
"""

model = {
    "name": "amenet",
    "dim": 256,
    # As in amenet_shapes.
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
    "text_sequence": "gru",
    "text_heads": "separate",
    "ranking": "contrastive",
    # It shows no gain on Shapes (docs/results.md), and costs time.
    "adversarial": "off",
}
data = {
    "batch_size": 32,
    # Of a clip and its twin in one batch only the roles tell which caption is whose.
    "together": "swapped",
    "max_objects": 6,
}
train = {
    "epochs": 80,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 50,
    "val_every": 4,
}
# For `amex ablate amenet_demo`.
variants = {
    "global only": ["model.relation_branch=false"],
    "relation only": ["model.global_branch=false"],
    "twins in any batch": ["data.together=''"],
    "words learned here": ["model.text=words"],
}
