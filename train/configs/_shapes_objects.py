"""Shapes for models that read object streams. Base of their configurations."""

base = "_shapes"
model = {
    # Up to four objects and a few false detections in 12 frames: a small graph suffices. With two layers, an object's
    # own motion (temporal edges) reaches the other objects (spatial edges).
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
}
