"""HCMI on Shapes, the embedded data set: clip features and objects are its frames, a BERT's tokens its words.

amex train hcmi_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

model = {
    "name": "hcmi",
    "streams": ["r2plus1d_tiny", "objects"],
    "dim": 256,
    "scaling": "layernorm",
    # As in amenet_shapes.
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
}
data = {
    "batch_size": 32,
    "max_objects": 6,
}
train = {
    "epochs": 20,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 50,
    "val_every": 4,
}
# For `amex ablate hcmi_shapes`.
variants = {
    "video and sentence alone": ["model.levels=[video_sentence]"],
    "frames and words alone": ["model.levels=[frame_word]"],
    "no denoising": ["model.denoise=off"],
    "no enhancement": ["model.enhancement=0"],
    "learned queries": ["model.aggregation=queries"],
    "clusters": ["model.aggregation=clusters"],
}
