"""HCMI on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train hcmi_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "hcmi",
}
# Two draws of a clip's rows are alike in kind, for the denoising.
data = {
    "rows": "random",
}
