"""MCSAN on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex manifest parse vidvrd.jsonl
amex train mcsan_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "mcsan",
    "text_dropout": 0.3,
    "role_dropout": 0.3,
}
objective = {"contrastive": {"features": 1.0, "concepts": 0.1}}
# For `amex ablate mcsan_vidvrd`.
variants = {
    "global alone": ["model.levels=[global]", "model.attributes=off", "objective.concepts=0"],
    "no relationships": ["model.levels=[global, entity, action]"],
    "triples": ["model.relation=triple"],
    "no divergence": ["objective.divergence=0"],
    "no concepts": ["model.attributes=off", "objective.concepts=0"],
    "concepts apart": ["model.attributes=separate"],
    "plain cross-entropy": ["objective.focus=0", "objective.balance=0.5"],
}
