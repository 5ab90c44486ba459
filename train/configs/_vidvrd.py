"""VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from. Base of its configurations."""

model = {
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
    # Keep the end of the schedule: forty validation clips cannot distinguish epochs.
    "val_every": 30,
}
