"""HCMI on ActivityNet Captions: the whole video and all its sentences (val_1-paragraphs), 64 frames and 64 words.

amex extract --manifest activitynet.jsonl --videos V --store activitynet.zarr --stream clip_vit_b32
amex train hcmi_activitynet --store activitynet.zarr --manifest activitynet.jsonl --work-dir W
"""

base = "_hcmi_clip"
# More groups for longer inputs: 64 frames in 16, 64 words in 8. On MSR-VTT: 12 frames in 4, 32 words in 4.
model = {
    "name": "hcmi",
    "clips": 16,
    "phrases": 8,
}
data = {
    "max_rows": 64,
    "max_tokens": 64,
}
# A tenth of all steps.
train = {
    "warmup": 39,
}
