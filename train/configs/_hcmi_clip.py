"""HCMI on CLIP ViT-B/32: frames from the store, the text tower trained with the model. Base of its configurations."""

model = {
    "streams": ["clip_vit_b32"],
    # Offline: name a folder, or --set model.text=text_clip with the stream of that name.
    "text": "tower:openai/clip-vit-base-patch32",
    "dim": 512,
    "project": False,
    "temporal_layers": 4,
}
data = {
    "batch_size": 128,
    "captions": "all",
    "max_rows": 12,
    "rows": "random",
    "max_tokens": 32,
}
# Settings of CLIP4Clip and DRL; those of HCMI are not published.
train = {
    "epochs": 5,
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.2,
    "schedule": "cosine",
    "clip_grad": 1.0,
}
