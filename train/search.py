"""Search: clips for a text, texts for a clip, over cached embeddings; by a FAISS index where scores are products."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError, did_you_mean
from ..features import Store, Stream, clip_arrays
from ..manifests import Clip
from ..storage import replacing
from .captions import Text
from .checkpoint import Checkpoint, learned_from
from .coverage import Coverage
from .data import Split, Table, joined
from .evaluate import encode, scores_of
from .models import Embeddings, SpacesModel
from .selection import LACKING, with_features

# A hit is weak if more than a tenth of ordinary texts fit its clip better than the query. With the names of classes for
# ordinary texts, of 217 captions of 15 real clips so do 10 % of those whose own clip is first, and 44 % of 2,000 titles
# of other videos; of class names, no CLIP.
ORDINARY = 0.9

# Makes the arrays of texts that a stream does not hold; given the stream and the texts.
TextFeatures = Callable[[Stream, Sequence[str]], list[dict[str, np.ndarray]]]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result, the best first.

    Attributes:
        clip: what was found, or for a search among captions, one clip that the caption belongs to.
        caption: the caption found, or the clip's first.
        start, end: seconds of the clip on its video's clock, as far as they are known.
        weak: whether other texts fit as well: the store may have nothing that fits. No trained model says so.
    """

    rank: int
    score: float
    clip: Clip
    caption: str
    start: float | None
    end: float | None
    weak: bool = False


def weak_below(ordinary: np.ndarray) -> np.ndarray:
    """The score of each clip below which a hit is weak, from scores (texts, clips) of ordinary texts."""
    return np.quantile(ordinary, ORDINARY, axis=0)


def make_hit(
    rank: int, score: float, clip: Clip, streams: Sequence[Stream], caption: str = "", *, weak: bool = False
) -> Hit:
    """A result, with the seconds that the manifest or else the rows of a stream have.

    Args:
        caption: what was found where captions are searched; else the clip's first.
    """
    start, end = clip.start, clip.end
    timed = [stream for stream in streams if stream.spec["output"].get("times", True)]
    if (start is None or end is None) and timed and len(rows := timed[0][clip.clip_id]):
        start, end = float(rows.times[0, 0]), float(rows.times[-1, 1])
    said = caption or (clip.captions[0] if clip.captions else "")
    return Hit(rank=rank, score=float(score), clip=clip, caption=said, start=start, end=end, weak=weak)


def place_of(clip_id: str, clips: Sequence[Clip], coverage: Coverage, store: Store) -> int:
    """Which of the clips that can be searched one is. Raises AmexError if it is none of them."""
    names = [clip.clip_id for clip in clips]
    if clip_id not in names:
        near = did_you_mean(clip_id, names) or f"; the first are {', '.join(names[:3])}"
        raise AmexError(
            f"clip {clip_id!r} is not among the {len(names)} clips with features in {store.path} "
            f"({coverage.clip_line}){near}"
        )
    return names.index(clip_id)


class Searcher:
    """A model, clips with features, and an index over their embeddings.

    Args:
        clips: those to search among; such as have no features are left out.
        text: what batches of captions are made from, as ``checkpoint.text`` gives it.
        features: encodes a query that is no caption of the store.
        kind: of index, as FAISS's ``index_factory`` has it: ``Flat`` compares with all, ``IVF1024,PQ64`` with few.
        strict: clips and captions without features are an error.

    Attributes:
        clips: those that can be found.
        says: what is searched with, in a line.
        coverage: how many they are, and what was left out.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        store: Store,
        clips: Sequence[Clip],
        text: Text,
        features: TextFeatures,
        *,
        kind: str = "Flat",
        strict: bool = False,
    ) -> None:
        checkpoint.check_features(store)
        self.checkpoint, self.store, self.kind = checkpoint, store, kind
        self.model = checkpoint.model()
        if kind != "Flat" and not isinstance(self.model, SpacesModel):
            raise AmexError(
                f"--index {kind} holds one vector a clip, but {checkpoint.config.model.name} compares parts with "
                "parts: leave it at Flat"
            )
        self.streams = [store[name] for name in checkpoint.fingerprints if name != checkpoint.config.model.text_stream]
        # A search may be of a store that is still being filled: what is not extracted yet is left out too.
        refuse = LACKING if strict else ()
        self._known, self.coverage = with_features(store, clips, self.streams, text.stream, refuse=refuse)
        whole = {clip.clip_id: clip for clip in clips}
        self.clips = [whole[clip.clip_id] for clip in self._known]
        self.text, self.features = text, features
        self.says = f"{checkpoint.path} ({checkpoint.config.model.name})"

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """The ``k`` clips that fit a text best."""
        with torch.inference_mode():
            asked = self.model.encode_texts(self.model.to_device(self._text(query)))
        scores, found = self._nearest("clips", asked, min(k, len(self.clips)))
        hits = enumerate(zip(scores, found, strict=True), start=1)
        return [self._hit(rank, score, self.clips[i], "") for rank, (score, i) in hits if i >= 0]

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """The ``k`` captions of the manifest that fit a clip best."""
        place = place_of(clip_id, self.clips, self.coverage, self.store)
        owners: dict[str, Clip] = {}
        for clip, known in zip(self.clips, self._known, strict=True):
            for caption in known.captions:
                owners.setdefault(caption, clip)
        if not owners:
            raise AmexError("the manifest has no captions with features to search among")
        asked = {name: x[[place]] for name, x in self._embeddings("clips").items()}
        scores, found = self._nearest("captions", asked, min(k, len(owners)))
        captions = list(owners)
        hits = enumerate(zip(scores, found, strict=True), start=1)
        return [self._hit(rank, score, owners[captions[i]], captions[i]) for rank, (score, i) in hits if i >= 0]

    def _hit(self, rank: int, score: float, clip: Clip, caption: str) -> Hit:
        return make_hit(rank, score, clip, self.streams, caption)

    def _nearest(self, among: str, asked: Embeddings, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers of the ``k`` clips or captions that fit one caption or clip best."""
        if isinstance(self.model, SpacesModel):
            scores, found = self._index(among, self.model).search(self.model.flatten(asked).numpy(), k)
            return scores[0], found[0]
        there = self._embeddings(among)
        videos, texts = (there, asked) if among == "clips" else (asked, there)
        ((_, scores),) = scores_of(self.model, videos, texts).rows()
        best = scores.flatten().topk(k)
        return best.values.numpy(), best.indices.numpy()

    def _text(self, query: str) -> dict[str, Tensor]:
        most = self.checkpoint.config.data.max_tokens
        stream = self.text.stream
        if stream is None:
            return self.text.batch([query], None, most)
        if query in stream:
            return self.text.batch([query], Table(stream, [query])[[0]], most)
        batch = joined(self.features(stream, [query]), frozenset(clip_arrays(stream.spec)))
        return self.text.batch([query], (batch, [0]), most)

    @cached_property
    def _folder(self) -> Path:
        """Where embeddings are kept: beside the checkpoint, one folder for each state of what they are made from.

        Features that are computed again have the same stream and the same ids: which rows are committed counts too.
        """
        options = self.checkpoint.config.model
        learned = learned_from(self.store, options, {"search": self._known}, self.text.graphs)
        digest = hashlib.sha256(self.checkpoint.path.read_bytes())
        digest.update(json.dumps(learned).encode())
        return self.checkpoint.path.parent / "embeddings" / digest.hexdigest()[:16]

    def _embeddings(self, what: str) -> Embeddings:
        path = self._folder / f"{what}.npz"
        with contextlib.suppress(*UNREADABLE):
            return _read_embeddings(path)
        self._encode()
        return _read_embeddings(path)

    def _encode(self) -> None:
        config = self.checkpoint.config
        split = Split(self.store, self._known, config.model, config.data, self.text)
        videos, texts = encode(self.model, split)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, embeddings in (("captions", texts), ("clips", videos)):
            with replacing(self._folder / f"{name}.npz") as temporary:
                np.savez(temporary, **{part: x.numpy() for part, x in embeddings.items()})

    def _index(self, what: str, model: SpacesModel) -> faiss.Index:
        path = self._folder / f"{what}-{self.kind.replace(',', '_')}.faiss"
        with contextlib.suppress(*UNREADABLE):
            return faiss.read_index(str(path))
        vectors = model.flatten(self._embeddings(what)).numpy()
        try:
            index = faiss.index_factory(vectors.shape[1], self.kind, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        except RuntimeError as error:
            raise AmexError(
                f"--index {self.kind} cannot hold {len(vectors)} vectors: {str(error).splitlines()[-1]}"
            ) from error
        index.add(vectors)
        with replacing(path) as temporary:
            faiss.write_index(index, str(temporary))
        return index


# What NumPy, zip files and FAISS raise for a file that is not there, or not whole: it is made again.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)


def _read_embeddings(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}
