"""Dual Encoding on Shapes, the embedded data set: clip features alone.

amex train dual_encoding_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

base = "_shapes"
model = {
    "name": "dual_encoding",
    "scaling": "layernorm",
    "rnn_dim": 128,
    "filters": 128,
}
objective = {"contrastive": 1.0}
