"""Search with no training: a text is compared with what an image network that knows words says of a clip's frames.

Two kinds of streams serve. Frames of a CLIP lie in one space with what the same CLIP makes of a text: clip and text are
compared by their cosine, a clip being the mean of its frames, as in CLIP4Clip's mean pooling (Luo et al., 2021). A
classifier's probabilities of named classes make a clip the mean of its classes' sentence vectors, each weighed by its
probability, as in ConSE (Norouzi et al., ICLR 2014), and a text is compared with that. All sentence vectors have
something in common, which says nothing; so the mean over the names of all classes is taken from texts and clips first.

What encodes texts is given, as this room knows no encoders.
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

# Makes a vector of each text, (texts, D).
TextVectors = Callable[[Sequence[str]], np.ndarray]


def is_clip_frames(stream: Stream) -> bool:
    """Whether rows are frames in the space that a CLIP shares with texts."""
    network = stream.spec.get("network")
    return network in ("clip", "clip_vit_b32") or (
        network == "frames:clip" and stream.spec.get("pooling") == "projection"
    )


def is_classified(stream: Stream) -> bool:
    """Whether rows have probabilities of classes whose names are known, one for each name."""
    shape, _ = row_arrays(stream.spec).get("probabilities", ((), ""))
    return bool(stream.labels) and tuple(shape) == (len(stream.labels),)


class ZeroShot:
    """Searches the clips of one stream, with the interface of ``Searcher``.

    Args:
        clips: those to search among; such as have no features are left out.
        stream: for which ``is_clip_frames`` or ``is_classified`` holds.
        encode: a CLIP's text tower for the frames of that CLIP, else any encoder of sentences.
        says: what is searched with, in a line.
        names: of all sorts of things: what a query is compared with to tell whether a hit is weak.
        strict: clips without features are an error.
        progress: called with how many more clips are read.

    Attributes:
        clips: those that can be found.
        coverage: how many they are, and what was left out.

    Raises:
        DataError: if no clip can be found, or features are not finite.
    """

    def __init__(
        self,
        store: Store,
        clips: Sequence[Clip],
        stream: Stream,
        encode: TextVectors,
        *,
        says: str,
        names: Sequence[str],
        strict: bool = False,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.store, self.stream, self.says = store, stream, says
        self.clips, self.coverage = with_features(store, clips, [stream], None, refuse=LACKING if strict else ())
        self._encode = encode
        classified = is_classified(stream)
        labels = normalised(encode(stream.labels)) if classified else np.zeros((1, 1), np.float32)
        self._centre = labels.mean(0)
        ordinary = self._vectors_of(names)
        vectors, limits = [], []
        for block in self._blocks():
            pooled = self._pooled(block, "probabilities") @ labels if classified else self._pooled(block, "values")
            vectors.append(normalised(pooled - self._centre))
            limits.append(weak_below(ordinary @ vectors[-1].T))
            progress(len(block))
        self._vectors, self._limits = np.concatenate(vectors), np.concatenate(limits)

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """The ``k`` clips that fit a text best."""
        scores = self.scores([query])[0]
        best = np.argsort(-scores, kind="stable")[:k].tolist()
        return [self._hit(rank, scores[i], i) for rank, i in enumerate(best, start=1)]

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """The ``k`` captions of the manifest that fit a clip best."""
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
        """(texts, clips): cosines, from -1 to 1. That of a text and a clip depends on no other of either."""
        return self._vectors_of(texts) @ self._vectors.T

    def _vectors_of(self, texts: Sequence[str]) -> np.ndarray:
        return normalised(normalised(self._encode(texts)) - self._centre)

    def _blocks(self) -> Iterator[list[str]]:
        """The clips by id, in order, so many at once as are worth one read."""
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
        """(clips, D): the mean over each clip's rows, which count alike."""
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
    """(N, 1), never 0."""
    return np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 of length 1; what is 0 stays 0."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / norms(vectors)
