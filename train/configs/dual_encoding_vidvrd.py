"""Dual Encoding on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train dual_encoding_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "dual_encoding",
    "rnn_dim": 256,
    "filters": 256,
    "text_bag": True,
}
objective = {"contrastive": 1.0}
