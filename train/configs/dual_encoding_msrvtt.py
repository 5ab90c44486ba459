"""Dual Encoding on MSR-VTT: ResNet-152 frames; the paper's sizes, words learned from scratch.

amex extract --manifest msrvtt.jsonl --videos V --store msrvtt.zarr --stream resnet152
amex train dual_encoding_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

model = {
    "name": "dual_encoding",
    "streams": ["resnet152"],
    "text": "words",
    "word_dim": 500,
}
data = {
    "batch_size": 128,
    "captions": "all",
    "max_rows": 64,
    "min_count": 5,
}
train = {
    "epochs": 50,
    "lr": 1e-4,
    "patience": 3,
}
