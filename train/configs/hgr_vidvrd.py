"""HGR on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex manifest parse vidvrd.jsonl
amex train hgr_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "hgr",
    "text_dropout": 0.3,
    "role_dropout": 0.3,
}
objective = {"contrastive": 1.0}
