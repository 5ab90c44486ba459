"""Shapes, the embedded data set: small, minutes on a CPU. Base of the configurations of its name."""

model = {
    "dim": 256,
}
data = {
    # Small batches, because the number of steps matters most here.
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
