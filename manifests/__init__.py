"""What to process: clips with their videos, times, captions and splits, read from and written to JSON lines.

Knows data sets and their annotation files; knows nothing of pixels, features or models.
"""

from .captions import Captions, read_captions
from .clip import Clip, ManifestError, Problem, read_manifest, scan_manifest, write_manifest
from .datasets import DATASETS, Dataset, dataset
from .videos import VideoError, VideoFinder

__all__ = [
    "DATASETS",
    "Captions",
    "Clip",
    "Dataset",
    "ManifestError",
    "Problem",
    "VideoError",
    "VideoFinder",
    "dataset",
    "read_captions",
    "read_manifest",
    "scan_manifest",
    "write_manifest",
]
