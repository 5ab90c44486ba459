"""What to process: clips with their videos, times, captions and splits, read from and written to JSON lines.

Knows data sets and their annotation files; knows nothing of pixels, features or models.
"""

from .annotations import AnnotationFile, Annotations
from .captions import Captions, read_captions
from .clip import Clip, ManifestError, Problem, read_manifest, scan_manifest, write_manifest
from .datasets import DATASETS, Dataset, Protocol, dataset, named
from .datasets.base import with_val
from .datasets.folder import scan_folder
from .home import Home, data_root
from .videos import VideoError, VideoFinder

__all__ = [
    "DATASETS",
    "AnnotationFile",
    "Annotations",
    "Captions",
    "Clip",
    "Dataset",
    "Home",
    "ManifestError",
    "Problem",
    "Protocol",
    "VideoError",
    "VideoFinder",
    "data_root",
    "dataset",
    "named",
    "read_captions",
    "read_manifest",
    "scan_folder",
    "scan_manifest",
    "with_val",
    "write_manifest",
]
