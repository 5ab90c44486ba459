"""From a trained model and a split to embeddings, scores and figures."""

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

from ..errors import AmexError
from ..manifests import Clip
from .coverage import gallery_warning
from .data import Split
from .metrics import Scores, Ties, Truth, chance, dual_softmax, evaluate
from .models import Embeddings, RetrievalModel
from .rankings import Judged, Writer

VIDEOS, TEXTS = 64, 256  # a batch
SIDE = 1024  # captions, and videos, that are scored in one call
WAYS = ("text_to_video", "video_to_text")
IN_MEMORY = 1 << 31  # bytes of scores; more are in a file


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Lets a model encode as it does when it is used, without gradients; then it is in its earlier mode again."""
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
    """Embeddings of a split's clips and of its different captions, on the CPU, in order.

    Args:
        progress: called with how many more are encoded; clips and captions together.
    """
    with evaluating(model):
        videos = in_order(model.encode_videos, split.video_batches(VIDEOS), model, progress)
        texts = in_order(model.encode_texts, split.caption_batches(TEXTS), model, progress)
    return videos, texts


def encoded(
    encoder: Callable[[Any], Embeddings],
    batches: Iterable[tuple[np.ndarray, Any]],
    model: RetrievalModel,
    progress: Callable[[int], None],
) -> Iterator[tuple[np.ndarray, Embeddings]]:
    """What an encoder makes of batches, on the model's device, floating-point numbers in float32; with their places."""
    for places, batch in batches:
        made = encoder(model.to_device(batch))
        yield places, {name: x if x.dtype == torch.bool else x.float() for name, x in made.items()}
        progress(len(places))


def in_order(
    encoder: Callable[[Any], Embeddings],
    batches: Iterable[tuple[np.ndarray, Any]],
    model: RetrievalModel,
    progress: Callable[[int], None],
) -> Embeddings:
    """What an encoder makes of batches that come with their places, put into these places, on the CPU."""
    return _joined(
        (places, {name: x.cpu() for name, x in made.items()})
        for places, made in encoded(encoder, batches, model, progress)
    )


def _joined(parts: Iterable[tuple[np.ndarray, Embeddings]]) -> Embeddings:
    """Batches at their places; sequences that end sooner than others are filled up with zeros."""
    parts = list(parts)
    if not parts:
        return {}
    count, joined = sum(len(places) for places, _ in parts), {}
    for name in list(parts[0][1]):
        # A name's batches are let go when it is whole, so that two copies of all are never held.
        pieces = [made.pop(name) for _, made in parts]
        longest = pieces[0].shape[1:2] and (max(piece.shape[1] for piece in pieces),)
        whole = pieces[0].new_zeros(count, *longest, *pieces[0].shape[2:])
        for (places, _), piece in zip(parts, pieces, strict=True):
            at = torch.from_numpy(places).to(piece.device)
            if longest:
                whole[at, : piece.shape[1]] = piece
            else:
                whole[at] = piece
        joined[name] = whole
    return joined


def score_split(model: RetrievalModel, split: Split, progress: Callable[[int], None] = lambda done: None) -> Scores:
    """Scores of a split's different captions with its clips, each computed once, on the model's device.

    Captions are encoded a block at a time and forgotten when they are scored: the memory is that of the clips'
    embeddings, of a block and of the scores.

    Args:
        progress: as of ``encode``.
    """
    with evaluating(model):
        videos = in_order(model.encode_videos, split.video_batches(VIDEOS), model, progress)
        texts = encoded(model.encode_texts, split.caption_batches(TEXTS), model, progress)
        return _scored(model, videos, _blocks(texts), (len(split.captions), len(split.clips)))


def scores_of(model: RetrievalModel, videos: Embeddings, texts: Embeddings) -> Scores:
    """Scores of all captions with all videos, from their embeddings, each computed once, on the model's device."""
    count = len(next(iter(texts.values())))
    places = (np.arange(begin, min(begin + SIDE, count)) for begin in range(0, count, SIDE))
    blocks = ((some, model.to_device({name: x[some] for name, x in texts.items()})) for some in places)
    with torch.inference_mode():
        return _scored(model, videos, blocks, (count, len(next(iter(videos.values())))))


def _blocks(batches: Iterator[tuple[np.ndarray, Embeddings]]) -> Iterator[tuple[np.ndarray, Embeddings]]:
    """Batches joined until they have about SIDE items: to prepare clips for a block of captions has its price."""
    while held := list(itertools.islice(batches, SIDE // TEXTS)):
        order = np.concatenate([places for places, _ in held])
        rows = np.split(np.arange(len(order)), np.cumsum([len(places) for places, _ in held[:-1]]))
        yield order, _joined((some, batch) for some, (_, batch) in zip(rows, held, strict=True))


def _scored(
    model: RetrievalModel,
    videos: Embeddings,
    texts: Iterable[tuple[np.ndarray, Embeddings]],
    shape: tuple[int, int],
) -> Scores:
    """Scores of blocks of captions, which come with their places and on the model's device, with all videos."""
    matrix = _empty(shape)
    for places, block in texts:
        for begin in range(0, shape[1], SIDE):
            some = model.to_device({name: x[begin : begin + SIDE] for name, x in videos.items()})
            matrix[torch.from_numpy(places), begin : begin + SIDE] = model.score(some, block).cpu()
    return Scores.of(matrix)


def _empty(shape: tuple[int, int]) -> Tensor:
    """Room for scores, float32: in memory, or beyond IN_MEMORY in a temporary file, which goes when they go.

    Raises:
        AmexError: if the folder of temporary files has too little room.
    """
    size = 4 * shape[0] * shape[1]
    if size <= IN_MEMORY:
        return torch.empty(shape)
    try:
        with tempfile.TemporaryFile() as file:
            # A file that is found to lack room only when it is written to would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
    except OSError as error:
        raise AmexError(
            f"scores of {shape[0]:,} captions and {shape[1]:,} clips need {size / 1e9:.1f} GB in "
            f"{tempfile.gettempdir()}: {error.strerror}; name a folder with more room in TMPDIR"
        ) from error


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
    temperature: float = 0.01,
    writers: Sequence[Writer] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """All figures of a model on a split: those of ``metrics.evaluate``, and ``dsl`` beside them where asked for.

    ``coverage`` says what of the split took part, ``chance`` which recalls a random order reaches, ``warnings`` what
    makes them doubtful.

    Clips with the relation-swapped twin of ``amex manifest shapes`` add ``swapped_pairs``: how often a caption fits its
    own clip better than the twin, in percent; half of a tie counts.

    Args:
        temperature: of the dual softmax.
        writers: get the scores before they are ranked.
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
    """``evaluate_split`` for what ``score_split`` has made already."""
    truth, asked = truth_of(split, merged=merged)
    plain, scores = scores, scores.of_captions(asked)
    for write in writers:
        captions, clips = [split.captions[number] for number in asked], [clip.clip_id for clip in split.clips]
        write(Judged(scores=scores, truth=truth, captions=captions, clips=clips))
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
    if (pairs := swapped_pairs(plain, split)) is not None:
        result["swapped_pairs"] = pairs
    return result


def evaluate_dual_softmax(scores: Scores, truth: Truth, temperature: float, *, ties: Ties = "mean") -> dict[str, Any]:
    """``dsl``, by direction the figures after a dual softmax over its queries, and ``dsl_rsum``."""
    by_way = {}
    for way in WAYS:
        ranked = dual_softmax(scores, way == "text_to_video", temperature)
        by_way[way] = evaluate(ranked, truth, ties=ties, groups=False)[way]
    return {"dsl": by_way, "dsl_rsum": sum(found[f"R@{k}"] for found in by_way.values() for k in (1, 5, 10))}


def swapped_pairs(scores: Scores, split: Split) -> dict[str, float] | None:
    """How often captions tell a clip from its twin with the roles exchanged; None where the manifest links no twins."""
    if (twins := twin_wins(scores, split)) is None:
        return None
    return {"accuracy": 100 * float(twins[0].mean()), "queries": len(twins[0])}


def twins_of(clips: Sequence[Clip]) -> np.ndarray:
    """(clips,) the number of the clip in which the roles of each are exchanged, -1 for none."""
    number = {clip.clip_id: index for index, clip in enumerate(clips)}
    return np.array([number.get(str(clip.extras.get("swapped", "")), -1) for clip in clips], dtype=np.int64)


def twin_wins(scores: Scores, split: Split) -> tuple[np.ndarray, np.ndarray] | None:
    """1 for each caption that fits its own clip better than the twin, 0.5 for a tie; and the number of its clip."""
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
