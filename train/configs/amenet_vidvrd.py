"""AME-Net on VidVRD, "dog bite frisbee", 287 clips to learn from: as `amex train amenet`, with variants to compare.

amex train amenet_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

model = {
    "name": "amenet",
}
# For `amex ablate amenet_vidvrd`.
variants = {
    "scores as they are": ["model.hubs=0"],
    "hinge": ["objective.hinge={fused: 1}"],
    "no bag of words": ["model.text_bag=false"],
    "linear": ["model.hidden=0"],
    "reversal": ["objective.adversary=reversal", "objective.adversary_weight=0.3"],
    "alternating": ["objective.adversary=alternating", "objective.adversary_weight=0.3"],
    # A critic that learns more slowly than the encoders falls behind, and the gap grows.
    "wasserstein": [
        "objective.adversary=wasserstein",
        "objective.adversary_weight=0.3",
        "objective.adversary_lr=3e-3",
    ],
}
