"""AME-Net's global branch on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex train amenet_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

base = "_videomem"
model = {
    "name": "amenet",
    # There are no boxes: nothing to relate.
    "relation_branch": False,
    "hidden": 1024,
    "pooling": "mean",
    # Words that a detector can see count for more than a sentence's meaning.
    "text_bag": True,
}
train = {
    "epochs": 30,
}
# For `amex ablate amenet_videomem`.
variants = {
    "contrastive": [],
    "hinge": ["objective.hinge={levels: 1}"],
    "tokens alone": ["model.text_bag=false"],
}
