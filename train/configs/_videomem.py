"""VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips. Base of the configurations of its name."""

model = {
    "dim": 512,
    # The features are probabilities, most of them close to 0. Log-odds resolve small values.
    "scaling": "logit",
    "dropout": 0.3,
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
