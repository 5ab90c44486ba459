"""English grammar: parsing captions into role graphs, and the file that keeps the graphs beside a manifest.

Knows text alone: no clips, no videos, no models.
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
