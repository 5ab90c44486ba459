"""Files in which data sets of moments take the answers of a model: QVHighlights, TVR.

Both are written as the README files of their own programs say: ``standalone_eval`` of jayleicn/moment_detr and of
jayleicn/TVRetrieval.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AmexError, plural
from ..manifests import Clip
from ..manifests.moments import queries_of
from ..storage import write_whole
from .data import Split
from .evaluate import encode, scores_of
from .models import RetrievalModel
from .moments import MAP_WINDOWS
from .windows import Scored, Windows

# TVR's program reads so many predictions of a query and task; windows of a corpus come from so many videos.
TVR_PREDICTIONS, TVR_VIDEOS, TVR_WINDOWS = 100, 10, 10


class QVHighlights:
    """Collects a line a query: ten windows with their scores, and a score of each 2 s of the video."""

    def __init__(self, windows: Windows) -> None:
        self.windows, self.lines = windows, []

    def __call__(self, scored: Scored) -> None:
        video = scored.video
        of_windows, of_grid = np.split(scored.scores, [len(video.windows)], axis=1)
        best = self.windows.best(video.windows, of_windows, MAP_WINDOWS)
        for query, chosen, scores, salient in zip(video.asked, best, of_windows, of_grid, strict=True):
            self.lines.append(
                {
                    "qid": query.query_id,
                    "query": query.caption,
                    "vid": video.clip.clip_id,
                    "pred_relevant_windows": [[*video.windows[n].tolist(), float(scores[n])] for n in chosen],
                    "pred_saliency_scores": salient.tolist(),
                }
            )

    def write(self, path: Path, clips: Sequence[Clip]) -> None:
        """JSON lines. Raises AmexError if a query of ``clips`` has no answer, or its video no grid of 2 s."""
        check_answered(path, {line["qid"] for line in self.lines}, clips)
        if bare := next((line["vid"] for line in self.lines if not line["pred_saliency_scores"]), None):
            raise AmexError(
                f"--submission qvhighlights {path}: {bare!r} has no saliency: is this QVHighlights' manifest?"
            )
        with write_whole(path, AmexError) as handle:
            handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)


class TVR:
    """Collects the answers to TVR's three tasks.

    ``VR`` ranks whole videos. ``SVMR`` has the windows of a query's own video. ``VCMR`` has those of the ten videos
    that fit the query best, ten of each, by their scores.

    Args:
        split: the videos; all of them are encoded here.
    """

    def __init__(self, windows: Windows, model: RetrievalModel, split: Split) -> None:
        self.windows, self.model, self.split = windows, model, split
        videos, self.texts = encode(model, split)
        self.best: list[tuple[list[int], list[float]]] = []
        for _, block in scores_of(model, videos, self.texts).rows():
            top = block.topk(min(TVR_PREDICTIONS, block.shape[1]))
            self.best += zip(top.indices.tolist(), top.values.tolist(), strict=True)
        self.asking: dict[int, list[int]] = defaultdict(list)  # by video the captions that its windows are scored with
        for caption, (places, _) in enumerate(self.best):
            for place in places[:TVR_VIDEOS]:
                self.asking[place].append(caption)
        self.own: dict[Any, list[list[float]]] = {}
        self.corpus: dict[int, list[list[float]]] = defaultdict(list)
        self.query: dict[Any, tuple[str, int]] = {}

    def __call__(self, scored: Scored) -> None:
        video, count = scored.video, len(scored.video.windows)
        own = scored.scores[:, :count]
        found = self.windows.best(video.windows, own, TVR_PREDICTIONS)
        for query, caption, chosen, scores in zip(video.asked, video.captions, found, own, strict=True):
            self.query[query.query_id] = (query.caption, caption)
            self.own[query.query_id] = self._predictions(scored, chosen, scores)
        if not (captions := self.asking[scored.place]):
            return
        embeddings = {name: x[:count] for name, x in scored.embeddings.items()}
        texts = {name: x[captions] for name, x in self.texts.items()}
        with torch.inference_mode():
            others = scores_of(self.model, embeddings, texts).block(slice(None), slice(None)).numpy()
        best = self.windows.best(video.windows, others, TVR_WINDOWS)
        for caption, chosen, scores in zip(captions, best, others, strict=True):
            self.corpus[caption] += self._predictions(scored, chosen, scores)

    def _predictions(self, scored: Scored, chosen: Sequence[int], scores: np.ndarray) -> list[list[float]]:
        return [[scored.place, *scored.video.windows[n].tolist(), float(scores[n])] for n in chosen]

    def answers(self) -> dict[str, Any]:
        """``video2idx`` numbers the videos; of each task a list of a query's ``desc_id``, ``desc``, ``predictions``."""

        def task(predictions: Mapping[Any, list[list[float]]]) -> list[dict[str, Any]]:
            return [
                {"desc_id": known, "desc": text, "predictions": predictions[known]}
                for known, (text, _) in self.query.items()
            ]

        def ranked(caption: int) -> list[list[float]]:
            return sorted(self.corpus[caption], key=lambda entry: -entry[3])[:TVR_PREDICTIONS]

        def whole(caption: int) -> list[list[float]]:
            return [[place, 0, 0, score] for place, score in zip(*self.best[caption], strict=True)]

        return {
            "video2idx": {clip.clip_id: place for place, clip in enumerate(self.split.clips)},
            "VCMR": task({known: ranked(caption) for known, (_, caption) in self.query.items()}),
            "SVMR": task(self.own),
            "VR": task({known: whole(caption) for known, (_, caption) in self.query.items()}),
        }

    def write(self, path: Path, clips: Sequence[Clip]) -> None:
        """One JSON file. Raises AmexError if a query of ``clips`` has no answer."""
        check_answered(path, set(self.query), clips)
        with write_whole(path, AmexError) as handle:
            json.dump(self.answers(), handle)


def check_answered(path: Path, answered: set[Any], clips: Sequence[Clip]) -> None:
    """Raises AmexError unless the queries that are answered are those of the clips: else a benchmark takes no file."""
    asked = [query.query_id for clip in clips for query in queries_of(clip)]
    if None in asked:
        raise AmexError(f"--submission {path}: queries of this manifest have no query_ids, by which answers are known")
    if lacking := [known for known in asked if known not in answered]:
        raise AmexError(
            f"--submission {path}: {plural(len(lacking), 'query')} without features or moments, the first "
            f"{lacking[0]!r}: a submission answers all of them"
        )
