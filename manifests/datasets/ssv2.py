"""Something-Something v2 for text-video retrieval (Lei et al., ACL 2023): hands that do something with objects."""

from __future__ import annotations

from collections.abc import Iterator

from ..annotations import AnnotationFile, Annotations
from ..clip import Clip
from ..published import checked_layout, read_entries
from ..videos import video_id
from .base import Dataset, Protocol


def release_file(kind: str, part: str) -> AnnotationFile:
    name = f"ssv2_ret_{kind}_{part}.json"
    return AnnotationFile(
        name=name,
        url="https://nlp.cs.unc.edu/data/jielei/singularity/release/anno_downstream.tar.gz",
        member=f"anno_downstream/{name}",
    )


FILES = {
    kind: {"train": release_file(kind, "train"), "test": release_file(kind, "val_small")}
    for kind in ("label", "template")
}


def build(annotations: Annotations, protocol: str) -> Iterator[Clip]:
    """Yield a clip per video. ``video`` of an entry is one file name or several, all with the same caption."""
    for split, file in FILES[protocol].items():
        path = annotations[file.name]
        with checked_layout(path):
            for entry in read_entries(path, list):
                videos, caption = entry["video"], entry["caption"]
                for name in [videos] if isinstance(videos, str) else videos:
                    video = video_id(name)
                    yield Clip(clip_id=video, video=video, split=split, captions=(caption,))


def protocol(kind: str, about: str) -> Protocol:
    counts = {"train": 168_913, "test": 2_088}
    files = tuple(FILES[kind].values())
    return Protocol(
        help=about, clips=counts, captions=counts, files=files, known="read", source="arxiv.org/abs/2206.03428"
    )


DATASET = Dataset(
    name="ssv2",
    title="Something-Something v2 (Goyal et al., ICCV 2017), retrieval by Lei et al. (ACL 2023): clips of 4 s",
    takes="the folder with ssv2_ret_label_train.json and ssv2_ret_label_val_small.json, or the same of template",
    build=build,
    protocols={
        "label": protocol("label", "queries name the objects, 'holding a potato next to a jar'"),
        "template": protocol("template", "queries are the 174 templates, each of 12 test clips: evaluate with --merge"),
    },
    videos="The 20 archives of Qualcomm's Something-Something page, after a form: files named NUMBER.webm.",
)
