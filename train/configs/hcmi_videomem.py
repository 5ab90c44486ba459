"""HCMI on VideoMem: scores of 80 COCO classes and a title a clip, 10,000 clips.

amex train hcmi_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

base = "_videomem"
model = {
    "name": "hcmi",
}
# Random rows, so that both draws of a clip for the denoising have the same distribution.
data = {
    "rows": "random",
}
