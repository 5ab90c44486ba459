"""AME-Net on VideoMem, scores of 80 COCO classes and a title a clip: as `amex train amenet`, with variants to compare.

amex train amenet_videomem --store videomem.zarr --manifest videomem.jsonl --work-dir W
"""

model = {
    "name": "amenet",
}
# For `amex ablate amenet_videomem`.
variants = {
    "scores as they are": ["model.hubs=0"],
    "hinge": ["objective.hinge={fused: 1}"],
    "no bag of words": ["model.text_bag=false"],
    "linear": ["model.hidden=0"],
}
