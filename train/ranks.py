"""Where a model places what belongs to each query of a split: kept beside the figures, to compare two models by."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import first_line
from ..manifests import Clip
from ..storage import storage_at
from .bootstrap import Interval, paired_bootstrap
from .data import Split
from .evaluate import truth_of, twin_wins, twins_of
from .gap import Gap
from .metrics import MetricsError, Scores, Truth, positions

WAYS = ("t2v", "v2t")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A model on a split, query by query.

    Attributes:
        queries: a digest of clips and captions in order; what differs in it cannot be compared query by query.
        hits: float32. ``t2v`` and ``v2t``: the position from 1 of each query's best positive; ``mixed``: that of each
            clip's first caption among videos and captions. ``swapped pairs``, where clips have twins: 1 for each
            caption that fits its own clip better than the twin, 0.5 for a tie. ``modality probe``: 1 where a classifier
            tells a video from a text, see ``gap.probe``.
        groups: for the same queries, numbers of independent groups of clips. Clips that share a caption, or are twins,
            are in one.
    """

    queries: str
    hits: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]

    @classmethod
    def of(cls, scores: Scores, split: Split, *, merged: bool = False, gap: Gap | None = None) -> Ranks:
        """Ranks all queries of what ``score_split`` has made, and takes over what is measured of the gap."""
        truth, asked = truth_of(split, merged=merged)
        groups = groups_of(split.clips)
        ranks = cls.of_scores(scores.of_captions(asked), truth, split.clips)
        if (twins := twin_wins(scores, split)) is not None:
            ranks.hits["swapped pairs"] = twins[0].astype(np.float32)
            ranks.groups["swapped pairs"] = groups[twins[1]]
        if gap is not None:
            ranks.hits["mixed"], ranks.groups["mixed"] = gap.mixed.astype(np.float32), groups[gap.clips]
            ranks.hits["modality probe"] = gap.told.ravel().astype(np.float32)
            ranks.groups["modality probe"] = np.tile(groups[gap.clips], 2)
        return ranks

    @classmethod
    def of_scores(cls, scores: Scores, truth: Truth, clips: Sequence[Clip]) -> Ranks:
        """Ranks the captions and videos of scores, which are of these clips."""
        hits, groups, group = {}, {}, groups_of(clips)
        for way, own in zip(WAYS, (truth.videos, truth.captions), strict=True):
            found = positions(scores, own, "mean", text_to_video=way == "t2v")
            hits[way] = np.array([places[0] for places in found], dtype=np.float32)
            of = [positives[0] if way == "t2v" else clip for clip, positives in enumerate(own) if positives]
            groups[way] = group[of]
        queries = [truth.queries, [(clip.clip_id, clip.captions) for clip in clips]]
        digest = hashlib.sha256(json.dumps(queries).encode()).hexdigest()
        return cls(queries=digest[:16], hits=hits, groups=groups)

    def save(self, path: Path) -> None:
        """Writes an npz that exists whole or not at all."""
        arrays = {
            f"{name}{end}": x for end, of in (("", self.hits), (" groups", self.groups)) for name, x in of.items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, queries=np.array(self.queries), **arrays)
        storage_at(path).put([buffer.getbuffer()])

    @classmethod
    def load(cls, path: Path) -> Ranks:
        """What ``save`` wrote; raises MetricsError if it is damaged or not there."""
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [name for name in file.files if f"{name} groups" in file.files]
                groups = {name: file[f"{name} groups"] for name in names}
                return cls(queries=str(file["queries"]), hits={name: file[name] for name in names}, groups=groups)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise MetricsError(f"{path}: no ranks that can be read: {first_line(error)}") from error


def groups_of(clips: Sequence[Clip]) -> np.ndarray:
    """(clips,) the number of each clip's group: clips that share a caption, or are twins, are in one."""
    twins = twins_of(clips).tolist()
    group = list(range(len(clips)))

    def first(index: int) -> int:
        while group[index] != index:
            index = group[index] = group[group[index]]
        return index

    with_caption: dict[str, int] = {}
    for index, clip in enumerate(clips):
        others = [with_caption.setdefault(caption, index) for caption in clip.captions]
        others += [twins[index]] if twins[index] >= 0 else []
        for other in others:
            group[first(index)] = first(other)
    return np.array([first(index) for index in range(len(group))], dtype=np.int32)


def compare(ours: Sequence[Ranks], theirs: Sequence[Ranks]) -> dict[str, Interval]:
    """How far two models differ in each figure, ours less theirs, in points of percent: ``rsum``, ``t2v R@1``, ...

    Args:
        ours, theirs: of each model's runs, in pairs.

    Raises:
        MetricsError: if they are of different queries; as of ``paired_bootstrap``.
    """
    if len({ranks.queries for ranks in (*ours, *theirs)}) != 1:
        raise MetricsError("their galleries or captions differ: they cannot be compared query by query")
    groups = ours[0].groups
    sides = []
    for runs in (ours, theirs):
        stacked = {name: np.stack([ranks.hits[name] for ranks in runs]) for name in groups}
        figures = {f"{way} R@{k}": 100.0 * (stacked[way] <= k) for way in WAYS for k in (1, 5, 10)}
        figures["rsum"] = np.concatenate([sum(figures[f"{way} R@{k}"] for k in (1, 5, 10)) for way in WAYS], axis=1)
        if "mixed" in stacked:
            figures["mixed R@10"] = 100.0 * (stacked["mixed"] <= 10)
        figures |= {name: 100.0 * stacked[name] for name in ("swapped pairs", "modality probe") if name in stacked}
        sides.append(figures)
    both = np.concatenate([groups[way] for way in WAYS])
    parts = np.repeat(WAYS, [len(groups[way]) for way in WAYS])
    intervals = {"rsum": paired_bootstrap(sides[0]["rsum"], sides[1]["rsum"], both, parts=parts)}
    for figure in (name for name in sides[0] if name != "rsum"):
        own = groups[figure if figure in groups else figure.split()[0]]
        intervals[figure] = paired_bootstrap(sides[0][figure], sides[1][figure], own)
    return intervals
