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
from ..published import laid_out
from ..videos import video_id

# Of the videos of train, where a published protocol names no clips to choose a checkpoint on.
VAL_SHARE = 0.05
VAL_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One published way to use a data set: which clips are learned from, and which gallery is searched.

    Attributes:
        help: one line: whose it is, what a clip and a query are.
        clips: published numbers of clips by split, before ``val`` is carved from ``train``.
        captions: published numbers of captions by split, where they are known.
        files: those that it cannot do without.
        optional: those that add captions, or clips of other splits, where they are there.
        known: ``counted``: in the files themselves; ``read``: in the publication or the repository that ``source``
            names; ``unchecked``: neither.
        source: where the numbers that are not counted come from.
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
    """A data set: where its annotations come from and how they become clips.

    Attributes:
        name: on the command line, and that of its module.
        title: its name as people write it, its paper, and what its clips are; one line.
        takes: what --annotations must be, for messages and ``--help``; one line.
        build: makes the clips of a protocol from the annotation files, and a Problem for what cannot be a clip.
        protocols: by name, the default first; empty for videos of one's own.
        videos: how people get the videos, which amex never downloads; whole sentences.
    """

    name: str
    title: str
    takes: str
    build: Callable[[Annotations, str], Iterable[Clip | Problem]]
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    videos: str = ""

    def protocol(self, name: str | None) -> str:
        """The name of a protocol, the default's for None; raises ManifestError that lists them."""
        if name is not None and name not in self.protocols:
            choices = ", ".join(self.protocols) or "none: this data set has one split"
            near = did_you_mean(name, self.protocols)
            raise ManifestError(f"unknown protocol {name!r}; choose from {choices}{near}")
        return name or next(iter(self.protocols), "")

    def fetch(self, folder: Path, protocol: str | None, say: Callable[[str], None] = lambda line: None) -> None:
        """Fetches the annotation files of a protocol that are not below ``folder``; calls ``say`` for each.

        Optional files are fetched if their digest is known; that one of them cannot be had is only said.

        Raises:
            ManifestError: for the first that cannot be had, with its address and where to put it.
        """
        if not self.protocols:
            return
        there, chosen = Annotations(folder), self.protocols[self.protocol(protocol)]
        for file in (*chosen.files, *(file for file in chosen.optional if file.sha256)):
            if there.find(file.name) is None:
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
        """The clips of this data set, and then a Problem for each thing that cannot be one.

        Extras say under ``protocol`` which one the clips are of, as ``msrvtt:1k-A``, so that figures can.

        Args:
            annotations: the folder of the files, or one of them with the others beside it; which protocol begins with
                a file of its kind is then seen by its extension.
            val: where the protocol has train and test alone, this share of train's videos becomes ``val``; 0: none.

        Raises:
            ManifestError: if a file is absent or is not what it should be, or the protocol is unknown.
        """
        path = open_path(annotations)
        with foreign.reading(path, ManifestError):
            if not path.exists():
                raise ManifestError(f"{path} does not exist; --annotations takes {self.takes}")
            is_file = path.is_file()
        if protocol is None and is_file:
            protocol = next((name for name, each in self.protocols.items() if _is_for(path, each)), None)
        chosen = self.protocol(protocol)
        known = [file for each in self.protocols.values() for file in (*each.files, *each.optional)]
        first = self.protocols[chosen].files[0].name if chosen else ""
        with foreign.reading(path, ManifestError, f"is not laid out as expected, --annotations takes {self.takes}"):
            items = list(self.build(Annotations(path, known, first), chosen))
        clips = [_under(f"{self.name}:{chosen}", item) if chosen else item for item in items if isinstance(item, Clip)]
        return with_val([*clips, *(item for item in items if isinstance(item, Problem))], val)


def with_val(items: Iterable[Clip | Problem], share: float = VAL_SHARE) -> list[Clip | Problem]:
    """The clips, of which ``carve`` makes a val, and then the problems."""
    items = list(items)
    clips = [item for item in items if isinstance(item, Clip)]
    return [*carve(clips, share), *(item for item in items if isinstance(item, Problem))]


def _under(protocol: str, clip: Clip) -> Clip:
    return replace(clip, extras={**clip.extras, "protocol": protocol})


def _is_for(path: Path, protocol: Protocol) -> bool:
    """Whether a file may be the first that a protocol needs."""
    return Path(protocol.files[0].name).suffix.lower() == path.suffix.lower()


def carve(clips: Sequence[Clip], share: float) -> list[Clip]:
    """The clips, with those of about ``share`` of train's videos moved to ``val``; unchanged where there is a val.

    A video's clips stay together, whether they name it with its extension or without. The draw is a hash of seed and
    video id, so that it depends on no other video; at least one is drawn. Extras say under ``carved`` that a
    clip was moved, and how many videos were.
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
    """A number in [0, 1) that only depends on the video and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {video}".encode()).digest()[:6]) / 2**48


def whole_videos(
    path: Path, split: str, videos: Iterable[str], captions: Mapping[str, Sequence[str]]
) -> Iterator[Clip]:
    """A clip of the whole of each video that ``path`` lists, whose id is the video's; with captions if there are any.

    Raises:
        ManifestError: naming ``path``, for a video that cannot be one.
    """
    with laid_out(path):
        for video in dict.fromkeys(videos):
            yield Clip(clip_id=video, video=video, split=split, captions=tuple(captions.get(video, ())))
