"""HCMI on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train hcmi_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

model = {
    "name": "hcmi",
    "dim": 512,
    "scaling": "standard",
    "dropout": 0.3,
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
