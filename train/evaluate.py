"""From a trained model and a split to embeddings, scores and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .coverage import gallery_warning
from .data import Split
from .metrics import Scores, Ties, Truth, chance, dual_softmax, evaluate
from .models import Embeddings, RetrievalModel

VIDEOS, TEXTS = 64, 256  # a batch


def encode(
    model: RetrievalModel, split: Split, progress: Callable[[int], None] = lambda done: None
) -> tuple[Embeddings, Embeddings]:
    """Embeddings of a split's clips and of its different captions, on the CPU, in order.

    Args:
        progress: called with how many more are encoded; clips and captions together.
    """
    mode = model.training
    model.eval()
    with torch.inference_mode():
        videos = in_order(model.encode_videos, split.video_batches(VIDEOS), model, progress)
        texts = in_order(model.encode_texts, split.caption_batches(TEXTS), model, progress)
    model.train(mode)
    return videos, texts


def in_order(
    encoder: Callable[[Any], Embeddings],
    batches: Iterable[tuple[np.ndarray, Any]],
    model: RetrievalModel,
    progress: Callable[[int], None],
) -> Embeddings:
    """What an encoder makes of batches that come with their places, put into these places."""
    order, parts = [], []
    for places, batch in batches:
        made = encoder(model.to_device(batch))
        parts.append({name: (x if x.dtype == torch.bool else x.float()).cpu() for name, x in made.items()})
        order.append(places)
        progress(len(places))
    if not parts:
        return {}
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: _joined([part[name] for part in parts])[back] for name in parts[0]}


def _joined(parts: list[Tensor]) -> Tensor:
    """Batches one after the other; sequences that end sooner than others are filled up with zeros."""
    if parts[0].ndim > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [pad(part, [0, 0] * (part.ndim - 2) + [0, longest - part.shape[1]]) for part in parts]
    return torch.cat(parts)


def scores_of(model: RetrievalModel, videos: Embeddings, texts: Embeddings) -> Scores:
    """Scores of all captions with all videos, made from embeddings as they are asked for."""

    count = (len(next(iter(texts.values()))), len(next(iter(videos.values()))))

    def block(captions: slice, some: slice) -> Tensor:
        gallery = {name: x[some] for name, x in videos.items()}
        rows = range(*captions.indices(count[0]))
        step = max(1, model.pairs_at_once // max(1, len(range(*some.indices(count[1])))))
        with torch.inference_mode():
            parts = [
                model.score(gallery, {name: x[begin : min(begin + step, rows.stop)] for name, x in texts.items()})
                for begin in range(rows.start, rows.stop, step)
            ]
        return torch.cat(parts)

    return Scores(block=block, shape=count)


def truth_of(split: Split, *, merged: bool = False) -> tuple[Truth, list[int]]:
    """What belongs together in a split, and for every query which of the split's captions it is.

    Args:
        merged: equal captions, of one clip or of several, are one query that any of these clips answers, as HGR counts.
            Otherwise every caption of every clip is a query of its own, answered by that clip alone.
    """
    if merged:
        return Truth(captions=split.own, queries=len(split.captions)), list(range(len(split.captions)))
    captions, asked = [], []
    for queries in split.queries:
        captions.append(list(range(len(asked), len(asked) + len(queries))))
        asked += queries
    return Truth(captions=captions, queries=len(asked)), asked


def evaluate_split(
    model: RetrievalModel,
    split: Split,
    *,
    ties: Ties = "mean",
    merged: bool = False,
    dsl: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """All figures of a model on a split: those of ``metrics.evaluate``, and ``dsl`` beside them where asked for.

    ``coverage`` says what of the split took part, ``chance`` which recalls a random order reaches, ``warnings`` what
    makes them doubtful.

    Clips with the relation-swapped twin of ``amex manifest shapes`` add ``swapped_pairs``: how often a caption fits its
    own clip better than the twin, in percent; half of a tie counts.
    """
    return evaluate_encoded(model, split, *encode(model, split, progress), ties=ties, merged=merged, dsl=dsl)


def evaluate_encoded(
    model: RetrievalModel,
    split: Split,
    videos: Embeddings,
    texts: Embeddings,
    *,
    ties: Ties = "mean",
    merged: bool = False,
    dsl: bool = False,
) -> dict[str, Any]:
    """``evaluate_split`` for what ``encode`` has made already."""
    truth, asked = truth_of(split, merged=merged)
    scores = scores_of(model, videos, {name: x[asked] for name, x in texts.items()})
    result = evaluate(scores, truth, ties=ties)
    if dsl:
        result["dsl"] = {
            way: evaluate(dual_softmax(scores, way == "text_to_video"), truth, ties=ties, groups=False)[way]
            for way in ("text_to_video", "video_to_text")
        }
    result["coverage"] = dataclasses.asdict(split.coverage)
    result["chance"] = {
        "text_to_video": chance(truth.videos, len(truth.captions)),
        "video_to_text": chance(truth.captions, truth.queries),
    }
    warning = gallery_warning(len(split.clips))
    result["warnings"] = [warning] if warning else []
    if (pairs := swapped_pairs(model, split, videos, texts)) is not None:
        result["swapped_pairs"] = pairs
    return result


def swapped_pairs(
    model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings
) -> dict[str, float] | None:
    """How often captions tell a clip from its twin with the roles exchanged; None where the manifest links no twins."""
    number = {clip.clip_id: index for index, clip in enumerate(split.clips)}
    won, asked = 0.0, 0
    for index, clip in enumerate(split.clips):
        twin = number.get(str(clip.extras.get("swapped", "")))
        if twin is None or not split.queries[index]:
            continue
        chosen = {name: x[[index, twin]] for name, x in videos.items()}
        with torch.inference_mode():
            scores = model.score(chosen, {name: x[split.queries[index]] for name, x in texts.items()})
        won += float((scores[:, 0] > scores[:, 1]).sum() + 0.5 * (scores[:, 0] == scores[:, 1]).sum())
        asked += len(scores)
    return {"accuracy": 100 * won / asked, "queries": asked} if asked else None


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The figures of a result by short names, for curves and tables: ``t2v R@1``, ``v2t MedR``, ``rsum``."""
    short = {"text_to_video": "t2v", "video_to_text": "v2t", "video_to_text_groups": "v2t groups"}
    figures = {"rsum": result["rsum"]}
    for way, name in short.items():
        figures |= {f"{name} {k}": v for k, v in result.get(way, {}).items() if k not in ("queries", "gallery")}
    if "swapped_pairs" in result:
        figures["swapped pairs"] = result["swapped_pairs"]["accuracy"]
    return figures


def parameters(model: nn.Module) -> int:
    """How many numbers a model has learned."""
    return sum(parameter.numel() for parameter in model.parameters())
