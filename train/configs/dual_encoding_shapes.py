"""Dual Encoding on Shapes, the embedded data set: clip features alone.

amex train dual_encoding_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

model = {
    "name": "dual_encoding",
    "dim": 256,
    "scaling": "layernorm",
    "rnn_dim": 128,
    "filters": 128,
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
