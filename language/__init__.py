"""English grammar: parse captions into role graphs, and store the graphs in a file beside the manifest.

This package processes only text. It does not use clips, videos or models.
"""

from .rolegraphs import GraphError, RoleGraphs, complete_graphs, graphs_path, read_graphs, role_parser, write_graphs

__all__ = [
    "GraphError",
    "RoleGraphs",
    "complete_graphs",
    "graphs_path",
    "read_graphs",
    "role_parser",
    "write_graphs",
]
