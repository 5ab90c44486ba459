"""MCSAN on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex manifest parse videomem.jsonl
amex train mcsan_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

base = "_videomem"
model = {
    "name": "mcsan",
    "text_dropout": 0.3,
    "role_dropout": 0.3,
}
objective = {"contrastive": {"features": 1.0, "concepts": 0.1}}
