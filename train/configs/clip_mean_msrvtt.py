"""Mean-pooled CLIP on MSR-VTT; only the temperature is learned.

amex extract --manifest msrvtt.jsonl --videos V --store msrvtt.zarr --stream clip_vit_b32 --stream text_clip
amex train clip_mean_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

model = {
    "name": "clip_mean",
    "streams": ["clip_vit_b32"],
    "text": "text_clip",
}
data = {
    "batch_size": 128,
}
train = {
    "epochs": 1,
}
