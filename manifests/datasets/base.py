"""What a data set module provides, and the making of clips that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ... import foreign
from ...errors import did_you_mean
from ...storage import open_path
from ..annotations import AnnotationFile, Annotations
from ..clip import Clip, ManifestError, Problem
from ..published import checked_layout
from ..videos import video_id

# Share of the videos of train that becomes val if a protocol has no validation split.
VAL_SHARE = 0.05
VAL_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A published way to use a data set: the training clips and the gallery of the test.

    Attributes:
        help: one line: the authors, and what a clip and a query are.
        clips: published number of clips by split, before ``val`` is taken from ``train``.
        captions: published number of captions by split, if known.
        files: required annotation files.
        optional: optional annotation files with captions or more splits.
        known: evidence of the numbers: ``counted`` in the files; ``read`` in the publication or repository in
            ``source``; ``unchecked`` for neither.
        source: the source of numbers that were not counted.
    """

    help: str
    clips: Mapping[str, int]
    captions: Mapping[str, int] = field(default_factory=dict)
    files: tuple[AnnotationFile, ...] = ()
    optional: tuple[AnnotationFile, ...] = ()
    known: Literal["counted", "read", "unchecked"] = "unchecked"
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: its annotation files, and how they become clips.

    Attributes:
        name: name on the command line, and name of its module.
        title: one line: usual name, paper, and what a clip is.
        takes: one line: valid values of --annotations, for messages and ``--help``.
        build: yields the clips of a protocol from the annotation files, and a Problem for each unusable annotation.
        protocols: by name, the default first; empty for the user's own videos.
        videos: how to get the videos, in full sentences. amex never downloads them.
    """

    name: str
    title: str
    takes: str
    build: Callable[[Annotations, str], Iterable[Clip | Problem]]
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    videos: str = ""

    def protocol(self, name: str | None) -> str:
        """Return the name of a protocol; the default for None. Raises ManifestError that lists the protocols."""
        if name is not None and name not in self.protocols:
            choices = ", ".join(self.protocols) or "none: this data set has one split"
            hint = did_you_mean(name, self.protocols)
            raise ManifestError(f"unknown protocol {name!r}; choose from {choices}{hint}")
        return name or next(iter(self.protocols), "")

    def fetch(self, folder: Path, protocol: str | None, say: Callable[[str], None] = lambda line: None) -> None:
        """Download the annotation files of a protocol that are not below ``folder``. Call ``say`` for each.

        Optional files are downloaded if their digest is known. If that fails, only ``say`` is called.

        Raises:
            ManifestError: if a required file cannot be downloaded; with its address and where to put it.
        """
        if not self.protocols:
            return
        annotations, chosen = Annotations(folder), self.protocols[self.protocol(protocol)]
        for file in (*chosen.files, *(file for file in chosen.optional if file.sha256)):
            if annotations.find(file.name) is None:
                say(f"fetching {file.name} from {file.url}")
                try:
                    file.fetch(folder)
                except ManifestError as error:
                    if file in chosen.files:
                        raise
                    say(str(error))

    def scan(
        self, annotations: str | Path, protocol: str | None = None, *, val: float = VAL_SHARE
    ) -> list[Clip | Problem]:
        """Return the clips of a protocol, followed by a Problem for each unusable annotation.

        ``extras["protocol"]`` of each clip names the protocol, for example ``msrvtt:1k-A``, for use in results.

        Args:
            annotations: the folder of the files, or one file with the others beside it. Then the extension of the file
                selects the protocol, unless one is given.
            val: if the protocol has no val, this share of train's videos becomes ``val``; 0: none.

        Raises:
            ManifestError: if a file is missing or invalid, or the protocol is unknown.
        """
        path = open_path(annotations)
        with foreign.reading(path, ManifestError):
            if not path.exists():
                raise ManifestError(f"{path} does not exist; --annotations takes {self.takes}")
            is_file = path.is_file()
        if protocol is None and is_file:
            protocol = next((name for name, each in self.protocols.items() if _has_extension_of(path, each)), None)
        chosen = self.protocol(protocol)
        published = [file for each in self.protocols.values() for file in (*each.files, *each.optional)]
        first = self.protocols[chosen].files[0].name if chosen else ""
        with foreign.reading(path, ManifestError, f"is not laid out as expected, --annotations takes {self.takes}"):
            items = list(self.build(Annotations(path, published, first), chosen))
        clips = [item for item in items if isinstance(item, Clip)]
        if chosen:
            clips = [_with_protocol(clip, f"{self.name}:{chosen}") for clip in clips]
        return add_val_split([*clips, *(item for item in items if isinstance(item, Problem))], val)


def add_val_split(items: Iterable[Clip | Problem], share: float = VAL_SHARE) -> list[Clip | Problem]:
    """Return the clips with a val split from ``carve_val``, followed by the problems."""
    items = list(items)
    clips = [item for item in items if isinstance(item, Clip)]
    return [*carve_val(clips, share), *(item for item in items if isinstance(item, Problem))]


def _with_protocol(clip: Clip, protocol: str) -> Clip:
    return replace(clip, extras={**clip.extras, "protocol": protocol})


def _has_extension_of(path: Path, protocol: Protocol) -> bool:
    """Return whether a file has the extension of the first file of a protocol."""
    return Path(protocol.files[0].name).suffix.lower() == path.suffix.lower()


def carve_val(clips: Sequence[Clip], share: float) -> list[Clip]:
    """Move the clips of about ``share`` of train's videos to ``val``. Do nothing if there is a val split.

    All clips of a video get the same split. A hash of the seed and the video id selects the videos, so the selection of
    a video does not depend on others; at least one is selected. ``extras["carved"]`` of a moved clip says how many
    videos were moved.
    """
    videos = {video_id(clip.video) for clip in clips if clip.split == "train"}
    draws = {video: draw(video, VAL_SEED) for video in videos}
    if share == 0 or len(draws) < 2 or any(clip.split == "val" for clip in clips):
        return list(clips)
    chosen = {video for video, number in draws.items() if number < share} or {min(draws, key=draws.__getitem__)}
    carved = {"carved": f"{len(chosen):,} of {len(draws):,} videos of train, seed {VAL_SEED}"}
    return [
        replace(clip, split="val", extras={**clip.extras, **carved})
        if clip.split == "train" and video_id(clip.video) in chosen
        else clip
        for clip in clips
    ]


def draw(video: str, seed: int) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the video and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {video}".encode()).digest()[:6]) / 2**48


def whole_video_clips(
    path: Path, split: str, videos: Iterable[str], captions: Mapping[str, Sequence[str]]
) -> Iterator[Clip]:
    """Yield a clip for each full video; its id is the id of the video.

    Args:
        path: the file that lists the videos, for errors.
        captions: captions by video, if there are any.

    Raises:
        ManifestError: naming ``path``, for an invalid video.
    """
    with checked_layout(path):
        for video in dict.fromkeys(videos):
            yield Clip(clip_id=video, video=video, split=split, captions=tuple(captions.get(video, ())))
