"""Search without training: compare a text with what a pretrained image network recognises in a clip's frames.

Two kinds of streams are supported. Frames of a CLIP share a space with the CLIP's text vectors: the score is the cosine
of a text and the mean of a clip's frames, as in CLIP4Clip's mean pooling (Luo et al., 2021). If rows are a classifier's
probabilities of named classes, a clip is the mean of the classes' sentence vectors, weighted by probability, as in
ConSE (Norouzi et al., ICLR 2014). Sentence vectors share a large common component, so the mean over all class names is
first subtracted from texts and clips.

The caller passes the text encoder: this package knows no encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import AmexError
from ..features import Store, Stream, row_arrays
from ..manifests import Clip
from .data import READ_AHEAD
from .search import Hit, make_hit, place_of, weak_below
from .selection import LACKING, DataError, with_features

# Encodes texts to vectors, (texts, D).
TextVectors = Callable[[Sequence[str]], np.ndarray]


def is_clip_frames(stream: Stream) -> bool:
    """Whether rows are frames in the joint space of a CLIP."""
    network = stream.spec.get("network")
    return network in ("clip", "clip_vit_b32") or (
        network == "frames:clip" and stream.spec.get("pooling") == "projection"
    )


def is_classified(stream: Stream) -> bool:
    """Whether rows hold a probability for each of the stream's class names."""
    shape, _ = row_arrays(stream.spec).get("probabilities", ((), ""))
    return bool(stream.labels) and tuple(shape) == (len(stream.labels),)


class ZeroShot:
    """Search the clips of one stream; the interface equals that of ``Searcher``.

    Args:
        clips: the clips to search; clips without features are left out.
        stream: a stream that satisfies ``is_clip_frames`` or ``is_classified``.
        encode: the text tower of the frames' CLIP, or for classes any sentence encoder.
        description: a line that names the networks.
        names: names of various things; a hit is weak if they fit a clip better than the query.
        strict: treat clips without features as errors.
        progress: receives the number of newly read clips.

    Attributes:
        clips: the searchable clips.
        coverage: how many clips take part, and why others are left out.

    Raises:
        DataError: if no clip is searchable, or features are not finite.
    """

    def __init__(
        self,
        store: Store,
        clips: Sequence[Clip],
        stream: Stream,
        encode: TextVectors,
        *,
        description: str,
        names: Sequence[str],
        strict: bool = False,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.store, self.stream, self.description = store, stream, description
        self.clips, self.coverage = with_features(store, clips, [stream], None, refuse=LACKING if strict else ())
        self._encode = encode
        classified = is_classified(stream)
        labels = normalise(encode(stream.labels)) if classified else np.zeros((1, 1), np.float32)
        self._centre = labels.mean(0)
        ordinary = self._vectors_of(names)
        vectors, limits = [], []
        for block in self._blocks():
            pooled = self._pooled(block, "probabilities") @ labels if classified else self._pooled(block, "values")
            vectors.append(normalise(pooled - self._centre))
            limits.append(weak_below(ordinary @ vectors[-1].T))
            progress(len(block))
        self._vectors, self._limits = np.concatenate(vectors), np.concatenate(limits)

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` clips that fit a text best."""
        scores = self.scores([query])[0]
        best = np.argsort(-scores, kind="stable")[:k].tolist()
        return [self._hit(rank, scores[i], i) for rank, i in enumerate(best, start=1)]

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """Return the ``k`` captions of the manifest that fit a clip best."""
        place = place_of(clip_id, self.clips, self.coverage, self.store)
        owners: dict[str, int] = {}
        for owner, clip in enumerate(self.clips):
            for caption in clip.captions:
                owners.setdefault(caption, owner)
        if not owners:
            raise AmexError("the manifest has no captions to search among")
        captions = list(owners)
        scores = self.scores(captions)[:, place]
        best = np.argsort(-scores, kind="stable")[:k].tolist()
        weak = scores < self._limits[place]
        return [
            make_hit(rank, scores[i], self.clips[owners[captions[i]]], [self.stream], captions[i], weak=bool(weak[i]))
            for rank, i in enumerate(best, start=1)
        ]

    def _hit(self, rank: int, score: float, place: int) -> Hit:
        return make_hit(rank, score, self.clips[place], [self.stream], weak=bool(score < self._limits[place]))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return (texts, clips) cosines. Each depends only on its text and its clip."""
        return self._vectors_of(texts) @ self._vectors.T

    def _vectors_of(self, texts: Sequence[str]) -> np.ndarray:
        return normalise(normalise(self._encode(texts)) - self._centre)

    def _blocks(self) -> Iterator[list[str]]:
        """Yield clip ids in order, in blocks that are large enough for one read."""
        ids = [clip.clip_id for clip in self.clips]
        width = max(np.prod(shape, dtype=int) for shape, _ in row_arrays(self.stream.spec).values())
        rows = np.cumsum(self.stream.index.rows[self.stream.index.find(ids)])
        block = (rows * width * 2 // int(READ_AHEAD)).tolist()
        begin = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or block[end] != block[begin]:
                yield ids[begin:end]
                begin = end

    def _pooled(self, clip_ids: Sequence[str], array: str) -> np.ndarray:
        """Return (clips, D) the mean over each clip's rows, all with the same weight."""
        batch = self.stream.read(clip_ids, [array])
        rows = batch[array].astype(np.float32)
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            clip_id = clip_ids[int(np.searchsorted(batch.offsets, row, side="right")) - 1]
            raise DataError(
                f"stream {self.stream.name!r} of {self.store.path} holds NaN or infinity for {clip_id!r}: import or "
                "extract it again under another name"
            )
        rows /= np.maximum(rows.sum(1, keepdims=True), TINY) if array == "probabilities" else norms(rows)
        return np.add.reduceat(rows, batch.offsets[:-1]) / np.diff(batch.offsets)[:, None]


TINY = np.float32(1e-12)


def norms(vectors: np.ndarray) -> np.ndarray:
    """Return (N, 1) norms, never 0."""
    return np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Normalise (N, D) vectors to length 1, as float32; zeros remain zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / norms(vectors)
