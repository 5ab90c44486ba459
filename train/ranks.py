"""The ranks that a model gives each query of a split, stored beside the figures to compare models."""

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

DIRECTIONS = ("t2v", "v2t")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The results of a model on a split, query by query.

    Attributes:
        queries: digest of clips and captions in order. Only equal queries can be compared.
        hits: float32 results by figure. ``t2v``, ``v2t``: position, from 1, of each query's best positive. ``mixed``:
            position of each clip among videos and captions, for its first caption. ``swapped pairs``, if clips have
            twins: 1 for a caption that scores its own clip above the twin, 0.5 for a tie. ``modality probe``: 1 if a
            classifier recognises a video or text, see ``gap.probe``.
        groups: for the same queries, the number of the independent group of clips. Clips that share a caption or are
            twins are in one group.
    """

    queries: str
    hits: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]

    @classmethod
    def of(cls, scores: Scores, split: Split, *, merged: bool = False, gap: Gap | None = None) -> Ranks:
        """Rank all queries from the scores of ``score_split``, and add the results of a modality gap."""
        truth, query_captions = truth_of(split, merged=merged)
        groups = clip_groups(split.clips)
        ranks = cls.of_scores(scores.of_captions(query_captions), truth, split.clips)
        if (twins := twin_wins(scores, split)) is not None:
            ranks.hits["swapped pairs"] = twins[0].astype(np.float32)
            ranks.groups["swapped pairs"] = groups[twins[1]]
        if gap is not None:
            ranks.hits["mixed"], ranks.groups["mixed"] = gap.mixed.astype(np.float32), groups[gap.clips]
            ranks.hits["modality probe"] = gap.probe_right.ravel().astype(np.float32)
            ranks.groups["modality probe"] = np.tile(groups[gap.clips], 2)
        return ranks

    @classmethod
    def of_scores(cls, scores: Scores, truth: Truth, clips: Sequence[Clip]) -> Ranks:
        """Rank the captions and videos of the scores, which belong to these clips."""
        hits, groups, group = {}, {}, clip_groups(clips)
        for direction, own in zip(DIRECTIONS, (truth.videos, truth.captions), strict=True):
            ranks = positions(scores, own, "mean", text_to_video=direction == "t2v")
            hits[direction] = np.array([places[0] for places in ranks], dtype=np.float32)
            clip_of = [positives[0] if direction == "t2v" else clip for clip, positives in enumerate(own) if positives]
            groups[direction] = group[clip_of]
        queries = [truth.queries, [(clip.clip_id, clip.captions) for clip in clips]]
        digest = hashlib.sha256(json.dumps(queries).encode()).hexdigest()
        return cls(queries=digest[:16], hits=hits, groups=groups)

    def save(self, path: Path) -> None:
        """Write an npz file atomically."""
        arrays = {
            f"{name}{end}": x for end, of in (("", self.hits), (" groups", self.groups)) for name, x in of.items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, queries=np.array(self.queries), **arrays)
        storage_at(path).put([buffer.getbuffer()])

    @classmethod
    def load(cls, path: Path) -> Ranks:
        """Read a file that ``save`` wrote; raise a MetricsError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [name for name in file.files if f"{name} groups" in file.files]
                groups = {name: file[f"{name} groups"] for name in names}
                return cls(queries=str(file["queries"]), hits={name: file[name] for name in names}, groups=groups)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise MetricsError(f"{path}: the ranks cannot be read: {first_line(error)}") from error


def clip_groups(clips: Sequence[Clip]) -> np.ndarray:
    """Return (clips,) group numbers; clips that share a caption or are twins are in one group."""
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


def compare_ranks(ours: Sequence[Ranks], theirs: Sequence[Ranks]) -> dict[str, Interval]:
    """Compare two models: the difference of each figure, ours minus theirs, in percentage points.

    Args:
        ours, theirs: the runs of each model, in pairs.

    Returns:
        The differences with intervals, by figure: ``rsum``, ``t2v R@1``, ...

    Raises:
        MetricsError: if the queries differ, or from ``paired_bootstrap``.
    """
    if len({ranks.queries for ranks in (*ours, *theirs)}) != 1:
        raise MetricsError("galleries or captions differ, so the models cannot be compared query by query")
    groups = ours[0].groups
    sides = []
    for runs in (ours, theirs):
        stacked = {name: np.stack([ranks.hits[name] for ranks in runs]) for name in groups}
        figures = {f"{name} R@{k}": 100.0 * (stacked[name] <= k) for name in DIRECTIONS for k in (1, 5, 10)}
        sums = [sum(figures[f"{name} R@{k}"] for k in (1, 5, 10)) for name in DIRECTIONS]
        figures["rsum"] = np.concatenate(sums, axis=1)
        if "mixed" in stacked:
            figures["mixed R@10"] = 100.0 * (stacked["mixed"] <= 10)
        figures |= {name: 100.0 * stacked[name] for name in ("swapped pairs", "modality probe") if name in stacked}
        sides.append(figures)
    both = np.concatenate([groups[name] for name in DIRECTIONS])
    parts = np.repeat(DIRECTIONS, [len(groups[name]) for name in DIRECTIONS])
    intervals = {"rsum": paired_bootstrap(sides[0]["rsum"], sides[1]["rsum"], both, parts=parts)}
    for figure in (name for name in sides[0] if name != "rsum"):
        own = groups[figure if figure in groups else figure.split()[0]]
        intervals[figure] = paired_bootstrap(sides[0][figure], sides[1][figure], own)
    return intervals
