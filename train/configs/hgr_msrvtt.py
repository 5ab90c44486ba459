"""HGR on MSR-VTT, with the settings of its release: ResNet-152 frames, at most 20, words learned from scratch.

amex extract --manifest msrvtt.jsonl --videos V --store msrvtt.zarr --stream resnet152
amex manifest parse msrvtt.jsonl
amex train hgr_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

model = {
    "name": "hgr",
    "streams": ["resnet152"],
}
objective = {
    # The release ranks captions of one video against each other, and starts from GloVe: word_vectors=glove.txt
    "same_clip": "negative",
    "same_caption": "negative",
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
