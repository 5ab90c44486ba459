"""Shapes for models that see its objects. Base of their configurations."""

base = "_shapes"
model = {
    # Up to four objects and a few false ones, in 12 frames: the graph can be small. Two layers, so that an object knows
    # how it moves (temporal edges) before the others hear of it (spatial edges).
    "graph": "both",
    "graph_dim": 96,
    "graphs": 2,
    "graph_layers": 2,
    "key_dim": 32,
    "distance": None,
}
