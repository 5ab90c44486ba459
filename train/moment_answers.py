"""Write submissions for data sets of moments: QVHighlights, TVR.

The formats follow the README files of their programs: ``standalone_eval`` of jayleicn/moment_detr and of
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
from ..storage import write_atomic
from .data import Split
from .evaluate import encode, score_embeddings
from .models import RetrievalModel
from .moments import MAP_WINDOWS
from .windows import Scored, Windows

# Limits of TVR's program: predictions per query and task, and videos and windows of each in a search of the corpus.
TVR_PREDICTIONS, TVR_VIDEOS, TVR_WINDOWS = 100, 10, 10


class QVHighlights:
    """Collects one line per query: its ten best windows with scores, and a score of each 2 s of the video."""

    def __init__(self, windows: Windows) -> None:
        self.windows, self.lines = windows, []

    def __call__(self, scored: Scored) -> None:
        video = scored.video
        window_scores, grid_scores = np.split(scored.scores, [len(video.windows)], axis=1)
        best = self.windows.best(video.windows, window_scores, MAP_WINDOWS)
        for query, chosen, scores, salient in zip(video.queries, best, window_scores, grid_scores, strict=True):
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
        """Write JSON lines; raise an AmexError if a query of ``clips`` has no answer, or its video no saliency."""
        check_answered(path, {line["qid"] for line in self.lines}, clips)
        if bare := next((line["vid"] for line in self.lines if not line["pred_saliency_scores"]), None):
            raise AmexError(
                f"--submission qvhighlights {path}: {bare!r} has no saliency: is this the manifest of QVHighlights?"
            )
        with write_atomic(path, AmexError) as handle:
            handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)


class TVR:
    """Collects answers to TVR's three tasks.

    ``VR`` ranks whole videos. ``SVMR`` ranks the windows of a query's own video. ``VCMR`` ranks windows of the ten
    videos that fit the query best, ten of each.

    Args:
        split: the videos; the constructor encodes all of them.
    """

    def __init__(self, windows: Windows, model: RetrievalModel, split: Split) -> None:
        self.windows, self.model, self.split = windows, model, split
        videos, self.texts = encode(model, split)
        self.best: list[tuple[list[int], list[float]]] = []
        for _, block in score_embeddings(model, videos, self.texts).rows():
            top = block.topk(min(TVR_PREDICTIONS, block.shape[1]))
            self.best += zip(top.indices.tolist(), top.values.tolist(), strict=True)
        self.asking: dict[int, list[int]] = defaultdict(list)  # by video, the captions to score its windows with
        for caption, (places, _) in enumerate(self.best):
            for place in places[:TVR_VIDEOS]:
                self.asking[place].append(caption)
        self.own: dict[Any, list[list[float]]] = {}
        self.corpus: dict[int, list[list[float]]] = defaultdict(list)
        self.query: dict[Any, tuple[str, int]] = {}

    def __call__(self, scored: Scored) -> None:
        video, count = scored.video, len(scored.video.windows)
        own = scored.scores[:, :count]
        best = self.windows.best(video.windows, own, TVR_PREDICTIONS)
        for query, caption, chosen, scores in zip(video.queries, video.captions, best, own, strict=True):
            self.query[query.query_id] = (query.caption, caption)
            self.own[query.query_id] = self._predictions(scored, chosen, scores)
        if not (captions := self.asking[scored.place]):
            return
        embeddings = {name: x[:count] for name, x in scored.embeddings.items()}
        texts = {name: x[captions] for name, x in self.texts.items()}
        with torch.inference_mode():
            others = score_embeddings(self.model, embeddings, texts).block(slice(None), slice(None)).numpy()
        best = self.windows.best(video.windows, others, TVR_WINDOWS)
        for caption, chosen, scores in zip(captions, best, others, strict=True):
            self.corpus[caption] += self._predictions(scored, chosen, scores)

    def _predictions(self, scored: Scored, chosen: Sequence[int], scores: np.ndarray) -> list[list[float]]:
        return [[scored.place, *scored.video.windows[n].tolist(), float(scores[n])] for n in chosen]

    def answers(self) -> dict[str, Any]:
        """Return ``video2idx``, the numbers of videos, and by task a list of ``desc_id``, ``desc``, ``predictions``."""

        def task(predictions: Mapping[Any, list[list[float]]]) -> list[dict[str, Any]]:
            return [
                {"desc_id": query_id, "desc": text, "predictions": predictions[query_id]}
                for query_id, (text, _) in self.query.items()
            ]

        def ranked(caption: int) -> list[list[float]]:
            return sorted(self.corpus[caption], key=lambda entry: -entry[3])[:TVR_PREDICTIONS]

        def videos(caption: int) -> list[list[float]]:
            return [[place, 0, 0, score] for place, score in zip(*self.best[caption], strict=True)]

        return {
            "video2idx": {clip.clip_id: place for place, clip in enumerate(self.split.clips)},
            "VCMR": task({query_id: ranked(caption) for query_id, (_, caption) in self.query.items()}),
            "SVMR": task(self.own),
            "VR": task({query_id: videos(caption) for query_id, (_, caption) in self.query.items()}),
        }

    def write(self, path: Path, clips: Sequence[Clip]) -> None:
        """Write one JSON file; raise an AmexError if a query of ``clips`` has no answer."""
        check_answered(path, set(self.query), clips)
        with write_atomic(path, AmexError) as handle:
            json.dump(self.answers(), handle)


def check_answered(path: Path, answered: set[Any], clips: Sequence[Clip]) -> None:
    """Raise an AmexError unless all queries of the clips are answered: benchmarks reject incomplete files."""
    query_ids = [query.query_id for clip in clips for query in queries_of(clip)]
    if None in query_ids:
        raise AmexError(f"--submission {path}: queries of this manifest lack query_ids, which identify the answers")
    if lacking := [query_id for query_id in query_ids if query_id not in answered]:
        raise AmexError(
            f"--submission {path}: {plural(len(lacking), 'query')} without features or moments, the first "
            f"{lacking[0]!r}: a submission must answer all queries"
        )
