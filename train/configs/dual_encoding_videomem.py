"""Dual Encoding on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex train dual_encoding_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

model = {
    "name": "dual_encoding",
    "dim": 512,
    "rnn_dim": 256,
    "filters": 256,
    "scaling": "logit",
    "dropout": 0.3,
    "text_bag": True,
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
