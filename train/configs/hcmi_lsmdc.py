"""HCMI on LSMDC: as on MSR-VTT.

amex extract --manifest lsmdc.jsonl --videos V --store lsmdc.zarr --stream clip_vit_b32
amex train hcmi_lsmdc --store lsmdc.zarr --manifest lsmdc.jsonl --work-dir W
"""

base = "_hcmi_clip"
model = {
    "name": "hcmi",
}
# A tenth of all steps.
train = {
    "warmup": 400,
}
