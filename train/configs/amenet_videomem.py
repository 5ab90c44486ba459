"""AME-Net's global branch on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex train amenet_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

model = {
    "name": "amenet",
    # There are no boxes: nothing to relate.
    "relation_branch": False,
    "dim": 512,
    # The features are probabilities, most of them next to 0. Their log-odds say how near.
    "scaling": "logit",
    "hidden": 1024,
    "pooling": "mean",
    # Words that a detector can see count for more than a sentence's meaning.
    "text_bag": True,
    "dropout": 0.3,
    "ranking": "contrastive",
    "adversarial": "off",
}
data = {
    "batch_size": 256,
    "min_count": 2,
}
train = {
    "epochs": 30,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup": 50,
}
# For `amex ablate amenet_videomem`.
variants = {
    "contrastive": [],
    "hinge": ["model.ranking=hinge"],
    "tokens alone": ["model.text_bag=false"],
}
