"""HCMI on DiDeMo: the whole video and all its sentences, 64 frames and 64 words.

amex extract --manifest didemo.jsonl --videos V --store didemo.zarr --stream clip_vit_b32
amex train hcmi_didemo --store didemo.zarr --manifest didemo.jsonl --work-dir W
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
    "warmup": 33,
}
