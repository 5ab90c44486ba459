"""Manifests: clips with their videos, times, captions and splits, in JSON lines.

This package reads the annotation files of data sets. It does not use frames, features or models.
"""

from .annotations import AnnotationFile, Annotations
from .captions import Captions, read_captions
from .clip import Clip, ManifestError, Problem, read_manifest, scan_manifest, write_manifest
from .datasets import DATASETS, Dataset, Protocol, dataset, named
from .datasets.base import add_val_split
from .datasets.folder import scan_folder
from .home import DatasetFolder, data_root
from .videos import VideoError, VideoFinder

__all__ = [
    "DATASETS",
    "AnnotationFile",
    "Annotations",
    "Captions",
    "Clip",
    "Dataset",
    "DatasetFolder",
    "ManifestError",
    "Problem",
    "Protocol",
    "VideoError",
    "VideoFinder",
    "add_val_split",
    "data_root",
    "dataset",
    "named",
    "read_captions",
    "read_manifest",
    "scan_folder",
    "scan_manifest",
    "write_manifest",
]
