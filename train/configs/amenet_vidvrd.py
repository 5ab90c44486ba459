"""AME-Net's global branch on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train amenet_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "amenet",
    # There are no boxes: nothing to relate.
    "relation_branch": False,
    "hidden": 1024,
    "pooling": "mean",
    # Captions are three words, most of which recur.
    "text_bag": True,
    "dropout": 0.5,
}
objective = {"temperature": 0.15}
train = {
    "epochs": 12,
    # The schedule stops early, and its end counts: forty clips to validate on cannot choose between epochs.
    "val_every": 12,
}
# For `amex ablate amenet_vidvrd`.
variants = {
    "contrastive": [],
    "hinge": ["objective.hinge={levels: 1}"],
    "tokens alone": ["model.text_bag=false"],
}
