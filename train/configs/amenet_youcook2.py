r"""AME-Net on YouCook2, clip to caption.

amex manifest build youcook2 --annotations youcookii_annotations_trainval.json --out yc2.jsonl
amex extract --manifest yc2.jsonl --videos youcook2_videos --store yc2.zarr --stream resnet152 --stream r2plus1d_18 \
    --stream frcnn_r50_coco --set frcnn_r50_coco.count=8 --set frcnn_r50_coco.boxes=20 --stream text_bert
amex train amenet_youcook2 --store yc2.zarr --manifest yc2.jsonl --work-dir W

amex eval W --split test

The official validation clips are the split test, since no other captions are public. The manifest takes val, which
chooses the checkpoint, from train: 541 clips of 72 videos. 9,796 of the 10,337 training clips remain.
"""

model = {
    "name": "amenet",
    "streams": ["resnet152", "r2plus1d_18"],
    "objects": "frcnn_r50_coco",
    "text": "text_bert",
}
data = {
    "max_rows": 8,
    "max_objects": 20,
    "max_tokens": 30,
    "captions": "one",
}
