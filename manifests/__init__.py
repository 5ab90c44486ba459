"""What to process: clips with their videos, times, captions and splits, read from and written to JSON lines.

Knows data sets and their annotation files; knows nothing of pixels, features or models.
"""

from .captions import Captions, read_captions
from .clip import Clip, ManifestError, Problem, read_manifest, scan_manifest, write_manifest
from .datasets import DATASETS, Dataset, dataset
from .rolegraphs import GraphError, RoleGraphs, complete_graphs, graphs_path, read_graphs, role_parser, write_graphs
from .videos import VideoError, VideoFinder

__all__ = [
    "DATASETS",
    "Captions",
    "Clip",
    "Dataset",
    "GraphError",
    "ManifestError",
    "Problem",
    "RoleGraphs",
    "VideoError",
    "VideoFinder",
    "complete_graphs",
    "dataset",
    "graphs_path",
    "read_captions",
    "read_graphs",
    "read_manifest",
    "role_parser",
    "scan_manifest",
    "write_graphs",
    "write_manifest",
]
