"""Dual Encoding on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex train dual_encoding_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

base = "_videomem"
model = {
    "name": "dual_encoding",
    "rnn_dim": 256,
    "filters": 256,
    "text_bag": True,
}
objective = {"contrastive": 1.0}
