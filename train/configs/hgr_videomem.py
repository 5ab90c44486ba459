"""HGR on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex manifest parse videomem.jsonl
amex train hgr_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

base = "_videomem"
model = {
    "name": "hgr",
    "text_dropout": 0.3,
    "role_dropout": 0.3,
}
objective = {"contrastive": 1.0}
