"""HGR on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex manifest parse vidvrd.jsonl
amex train hgr_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

model = {
    "name": "hgr",
    "dim": 512,
    "scaling": "standard",
    "dropout": 0.3,
    "text_dropout": 0.3,
    "role_dropout": 0.3,
    "ranking": "contrastive",
}
data = {
    "batch_size": 64,
}
train = {
    "epochs": 30,
    "optimizer": "adamw",
    "lr": 3e-4,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    # As in amenet_vidvrd: forty clips to validate on cannot choose between epochs.
    "val_every": 30,
}
