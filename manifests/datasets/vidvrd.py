"""Relation clips of ImageNet-VidVRD (Shang et al., ACM MM 2017) with a text "subject relation object" each."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..captions import read_captions
from ..clip import Clip, ManifestError
from .base import Dataset, Protocol

CAPTIONS = AnnotationFile(
    name="captions.jsonl",
    url="https://xdshang.github.io/docs/imagenet-vidvrd.html",
    note="the selected rows of the arrays: a line per clip with row (index in the arrays), video, split and captions",
)


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield the clips in the order of the rows of their features."""
    path = annotations[CAPTIONS.name]
    captions = read_captions(path)
    if captions.rows is not None and list(captions.rows) != list(range(len(captions.clips))):
        raise ManifestError(f"{path}: the rows are not 0 to {len(captions.clips) - 1}, each once")
    yield from captions.clips


DATASET = Dataset(
    name="vidvrd",
    title="ImageNet-VidVRD (Shang et al., ACM MM 2017): clips of one relation, 'dog bite frisbee'",
    takes="captions.jsonl, which comes with the features",
    build=build,
    protocols={
        "relations": Protocol(
            help="447 clips with features of frames and motion; texts recur: train and evaluate with --merge",
            clips={"train": 287, "val": 40, "test": 120},
            captions={"train": 287, "val": 40, "test": 120},
            files=(CAPTIONS,),
            known="counted",
        ),
    },
    videos="Its features are imported (docs/results.md); the videos are ILSVRC2015 VID's of image-net.org.",
)
