"""HCMI on MSVD: as on MSR-VTT.

amex extract --manifest msvd.jsonl --videos V --store msvd.zarr --stream clip_vit_b32
amex train hcmi_msvd --store msvd.zarr --manifest msvd.jsonl --work-dir W
"""

base = "_hcmi_clip"
model = {
    "name": "hcmi",
}
# A tenth of all steps.
train = {
    "warmup": 190,
}
