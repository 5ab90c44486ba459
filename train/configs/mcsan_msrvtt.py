"""MCSAN on MSR-VTT, with the settings of HANet, since its own are not published: ResNet-152 frames, at most 20.

amex extract --manifest msrvtt.jsonl --videos V --store msrvtt.zarr --stream resnet152
amex manifest parse msrvtt.jsonl
amex train mcsan_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

model = {
    "name": "mcsan",
    "streams": ["resnet152"],
}
data = {
    "batch_size": 64,
    "captions": "all",
    "max_rows": 20,
}
train = {
    "epochs": 50,
    "lr": 1e-4,
    "schedule": "constant",
}
