"""Evaluate a trained model on a split: embeddings, scores and figures."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AmexError, plural
from ..manifests import Clip
from .coverage import gallery_warning
from .data import Split
from .metrics import Scores, Ties, Truth, chance, dual_softmax, evaluate
from .models import Embeddings, RetrievalModel
from .rankings import ScoredSplit, Writer

VIDEOS, TEXTS = 64, 256  # batch sizes
BLOCK = 1024  # captions, and videos, to score in one call
DIRECTIONS = ("text_to_video", "video_to_text")
IN_MEMORY = 1 << 31  # maximum bytes of scores in memory; larger scores are in a file


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients; restore its mode on exit."""
    mode = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(mode)


def encode(
    model: RetrievalModel, split: Split, progress: Callable[[int], None] = lambda done: None
) -> tuple[Embeddings, Embeddings]:
    """Encode the clips and the different captions of a split, in order, on the CPU.

    Args:
        progress: receives the number of newly encoded clips or captions.
    """
    with evaluating(model):
        videos = encode_all(model.encode_videos, split.video_batches(VIDEOS), model, progress)
        texts = encode_all(model.encode_texts, split.caption_batches(TEXTS), model, progress)
    return videos, texts


def encode_batches(
    encoder: Callable[[Any], Embeddings],
    batches: Iterable[tuple[np.ndarray, Any]],
    model: RetrievalModel,
    progress: Callable[[int], None],
) -> Iterator[tuple[np.ndarray, Embeddings]]:
    """Yield the indices and embeddings of each batch, on the model's device, floating-point values as float32."""
    for places, batch in batches:
        embeddings = encoder(model.to_device(batch))
        yield places, {name: x if x.dtype == torch.bool else x.float() for name, x in embeddings.items()}
        progress(len(places))


def encode_all(
    encoder: Callable[[Any], Embeddings],
    batches: Iterable[tuple[np.ndarray, Any]],
    model: RetrievalModel,
    progress: Callable[[int], None],
) -> Embeddings:
    """Encode batches and return the embeddings in the order of their indices, on the CPU."""
    return _reorder(
        (places, {name: x.cpu() for name, x in embeddings.items()})
        for places, embeddings in encode_batches(encoder, batches, model, progress)
    )


def _reorder(parts: Iterable[tuple[np.ndarray, Embeddings]]) -> Embeddings:
    """Concatenate batches in the order of their indices; pad shorter sequences with zeros."""
    parts = list(parts)
    if not parts:
        return {}
    count, ordered = sum(len(places) for places, _ in parts), {}
    for name in list(parts[0][1]):
        # Free the batches of a name when it is done, so that memory never holds everything twice.
        pieces = [embeddings.pop(name) for _, embeddings in parts]
        longest = pieces[0].shape[1:2] and (max(piece.shape[1] for piece in pieces),)
        rows = pieces[0].new_zeros(count, *longest, *pieces[0].shape[2:])
        for (places, _), piece in zip(parts, pieces, strict=True):
            at = torch.from_numpy(places).to(piece.device)
            if longest:
                rows[at, : piece.shape[1]] = piece
            else:
                rows[at] = piece
        ordered[name] = rows
    return ordered


def score_split(model: RetrievalModel, split: Split, progress: Callable[[int], None] = lambda done: None) -> Scores:
    """Score each different caption of a split with each clip once.

    Captions are encoded and scored a block at a time: memory holds the clips' embeddings, one block of captions and
    the scores.

    Args:
        progress: receives the number of newly encoded clips or captions.
    """
    with evaluating(model):
        videos = encode_all(model.encode_videos, split.video_batches(VIDEOS), model, progress)
        texts = encode_batches(model.encode_texts, split.caption_batches(TEXTS), model, progress)
        return _score_blocks(model, videos, _blocks(texts), (len(split.captions), len(split.clips)))


def score_embeddings(model: RetrievalModel, videos: Embeddings, texts: Embeddings) -> Scores:
    """Score all captions with all videos from their embeddings, on the model's device."""
    count = len(next(iter(texts.values())))
    places = (np.arange(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))
    blocks = ((block, model.to_device({name: x[block] for name, x in texts.items()})) for block in places)
    with torch.inference_mode():
        return _score_blocks(model, videos, blocks, (count, len(next(iter(videos.values())))))


def _blocks(batches: Iterator[tuple[np.ndarray, Embeddings]]) -> Iterator[tuple[np.ndarray, Embeddings]]:
    """Join batches into blocks of about BLOCK captions: preparing the clips for a block has a fixed cost."""
    while window := list(itertools.islice(batches, BLOCK // TEXTS)):
        order = np.concatenate([places for places, _ in window])
        rows = np.split(np.arange(len(order)), np.cumsum([len(places) for places, _ in window[:-1]]))
        yield order, _reorder((part, batch) for part, (_, batch) in zip(rows, window, strict=True))


def _score_blocks(
    model: RetrievalModel,
    videos: Embeddings,
    texts: Iterable[tuple[np.ndarray, Embeddings]],
    shape: tuple[int, int],
) -> Scores:
    """Score blocks of captions, on the model's device and with their indices, with all videos."""
    matrix = _allocate(shape)
    for places, captions in texts:
        for begin in range(0, shape[1], BLOCK):
            clips = model.to_device({name: x[begin : begin + BLOCK] for name, x in videos.items()})
            matrix[torch.from_numpy(places), begin : begin + BLOCK] = model.score(clips, captions).cpu()
    return Scores.of(matrix)


def _allocate(shape: tuple[int, int]) -> Tensor:
    """Allocate float32 scores, in memory or above IN_MEMORY in a temporary file that is deleted with them.

    Raises:
        AmexError: if the folder of temporary files has too little space.
    """
    size = 4 * shape[0] * shape[1]
    if size <= IN_MEMORY:
        return torch.empty(shape)
    try:
        with tempfile.TemporaryFile() as file:
            # Without preallocation, a full disk would kill the process at a write.
            os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
    except OSError as error:
        raise AmexError(
            f"scores of {plural(shape[0], 'caption')} and {plural(shape[1], 'clip')} need {size / 1e9:.1f} GB in "
            f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with more space"
        ) from error


def truth_of(split: Split, *, merged: bool = False) -> tuple[Truth, list[int]]:
    """Return the ground truth of a split, and for every query the index of its caption.

    Args:
        merged: make equal captions one query, which any of their clips answers, as HGR does. Otherwise every caption
            of every clip is a query, which only that clip answers.
    """
    if merged:
        return Truth(captions=split.own, queries=len(split.captions)), list(range(len(split.captions)))
    captions, query_captions = [], []
    for queries in split.queries:
        captions.append(list(range(len(query_captions), len(query_captions) + len(queries))))
        query_captions += queries
    return Truth(captions=captions, queries=len(query_captions)), query_captions


def evaluate_split(
    model: RetrievalModel,
    split: Split,
    *,
    ties: Ties = "mean",
    merged: bool = False,
    dsl: bool = False,
    temperature: float = 0.01,
    writers: Sequence[Writer] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Compute all figures of a model on a split, as ``metrics.evaluate`` returns them.

    Further entries: ``coverage``, the share of the split that took part; ``chance``, the recalls of a random ranking;
    ``warnings``, reasons to doubt the figures; ``dsl`` on request.

    If clips have relation-swapped twins (see ``amex manifest shapes``), ``swapped_pairs`` is the percentage of captions
    that score their own clip above its twin; a tie counts half.

    Args:
        temperature: of the dual softmax.
        writers: receive the scores before they are ranked.
    """
    return evaluate_scores(
        score_split(model, split, progress),
        split,
        ties=ties,
        merged=merged,
        dsl=dsl,
        temperature=temperature,
        writers=writers,
    )


def evaluate_scores(
    scores: Scores,
    split: Split,
    *,
    ties: Ties = "mean",
    merged: bool = False,
    dsl: bool = False,
    temperature: float = 0.01,
    writers: Sequence[Writer] = (),
) -> dict[str, Any]:
    """Compute the figures of ``evaluate_split`` from the scores of ``score_split``."""
    truth, query_captions = truth_of(split, merged=merged)
    caption_scores, scores = scores, scores.of_captions(query_captions)
    for write in writers:
        captions, clips = [split.captions[number] for number in query_captions], [clip.clip_id for clip in split.clips]
        write(ScoredSplit(scores=scores, truth=truth, captions=captions, clips=clips))
    result = evaluate(scores, truth, ties=ties)
    if dsl:
        result |= evaluate_dual_softmax(scores, truth, temperature, ties=ties)
    result["coverage"] = dataclasses.asdict(split.coverage)
    result["chance"] = {
        "text_to_video": chance(truth.videos, len(truth.captions)),
        "video_to_text": chance(truth.captions, truth.queries),
    }
    warning = gallery_warning(len(split.clips))
    result["warnings"] = [warning] if warning else []
    if (pairs := swapped_pairs(caption_scores, split)) is not None:
        result["swapped_pairs"] = pairs
    return result


def evaluate_dual_softmax(scores: Scores, truth: Truth, temperature: float, *, ties: Ties = "mean") -> dict[str, Any]:
    """Return ``dsl``, the figures after a dual softmax over the queries of each direction, and ``dsl_rsum``."""
    figures = {}
    for direction in DIRECTIONS:
        ranked = dual_softmax(scores, direction == "text_to_video", temperature)
        figures[direction] = evaluate(ranked, truth, ties=ties, groups=False)[direction]
    return {"dsl": figures, "dsl_rsum": sum(entry[f"R@{k}"] for entry in figures.values() for k in (1, 5, 10))}


def swapped_pairs(scores: Scores, split: Split) -> dict[str, float] | None:
    """Return how often a caption scores its clip above the relation-swapped twin; None if clips have no twins."""
    if (twins := twin_wins(scores, split)) is None:
        return None
    return {"accuracy": 100 * float(twins[0].mean()), "queries": len(twins[0])}


def twins_of(clips: Sequence[Clip]) -> np.ndarray:
    """Return (clips,) the index of each clip's relation-swapped twin, -1 for none."""
    number = {clip.clip_id: index for index, clip in enumerate(clips)}
    return np.array([number.get(str(clip.extras.get("swapped", "")), -1) for clip in clips], dtype=np.int64)


def twin_wins(scores: Scores, split: Split) -> tuple[np.ndarray, np.ndarray] | None:
    """Return 1 for each caption that scores its clip above the twin, 0.5 for a tie; and the index of its clip."""
    pairs = [
        (caption, index, twin)
        for index, twin in enumerate(twins_of(split.clips).tolist())
        if twin >= 0
        for caption in split.queries[index]
    ]
    if not pairs:
        return None
    captions, own, twins = torch.tensor(pairs).T
    own_score, other = scores.block(captions, own), scores.block(captions, twins)
    return ((own_score > other).double() + 0.5 * (own_score == other)).numpy(), own.numpy()


def short_figures(result: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a result under short names, for curves and tables: ``t2v R@1``, ``v2t MedR``, ``rsum``."""
    short = {"text_to_video": "t2v", "video_to_text": "v2t", "video_to_text_groups": "v2t groups"}
    figures = {"rsum": result["rsum"]}
    for direction, name in short.items():
        figures |= {f"{name} {k}": v for k, v in result.get(direction, {}).items() if k not in ("queries", "gallery")}
    if "swapped_pairs" in result:
        figures["swapped pairs"] = result["swapped_pairs"]["accuracy"]
    return figures


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
