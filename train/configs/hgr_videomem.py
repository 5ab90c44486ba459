"""HGR on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex manifest parse videomem.jsonl
amex train hgr_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

model = {
    "name": "hgr",
    "dim": 512,
    "scaling": "logit",
    "dropout": 0.3,
    "text_dropout": 0.3,
    "role_dropout": 0.3,
    "ranking": "contrastive",
}
data = {
    "batch_size": 256,
    "min_count": 2,
}
train = {
    "epochs": 15,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup": 50,
    "val_every": 3,
}
