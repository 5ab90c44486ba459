"""AME-Net on MSR-VTT, official split (6,513 / 497 / 2,990 clips, 20 captions each).

amex manifest build msrvtt --annotations MSRVTT --protocol full --out msrvtt.jsonl
amex extract --manifest msrvtt.jsonl --videos msrvtt_videos --store msrvtt.zarr --stream resnet152 \
    --stream r2plus1d_18 --stream frcnn_r50_coco --set frcnn_r50_coco.count=8 --stream text_bert
amex train amenet_msrvtt --store msrvtt.zarr --manifest msrvtt.jsonl --work-dir W
"""

model = {
    "name": "amenet",
    "streams": ["resnet152", "r2plus1d_18"],
    "objects": "frcnn_r50_coco",
    "text": "text_bert",
}
data = {
    "max_rows": 8,
    "max_objects": 36,
    "max_tokens": 30,
    # In each epoch, one random caption of the twenty of each clip.
    "captions": "one",
}
