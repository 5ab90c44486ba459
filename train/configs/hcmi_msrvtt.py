"""HCMI on MSR-VTT: frames of CLIP ViT-B/32 from the store, its text tower trained at a thousandth of the learning rate.

amex extract --manifest msrvtt.jsonl --videos V --store msrvtt.zarr --stream clip_vit_b32
amex train hcmi_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

base = "_hcmi_clip"
model = {
    "name": "hcmi",
}
# A tenth of all steps.
train = {
    "warmup": 700,
}
