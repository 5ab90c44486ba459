"""Search clips for a text, or texts for a clip, with cached embeddings and, for dot products, a FAISS index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError, did_you_mean, needs, plural
from ..features import Store, Stream, clip_arrays
from ..manifests import Clip
from ..storage import atomic_path
from .captions import Text
from .checkpoint import Checkpoint, learned_from
from .coverage import Coverage
from .data import Split, Table, concatenate
from .evaluate import encode, score_embeddings
from .models import Embeddings, SpacesModel
from .selection import LACKING, with_features

if TYPE_CHECKING:
    import faiss

# A hit is weak if more than a tenth of ordinary texts fit its clip better than the query. Ordinary texts are names of
# classes. On 15 real clips, 10 % of the captions that rank their own clip first are weak, and 44 % of 2,000 titles
# of other videos. These figures are for streams of class probabilities, not CLIP.
ORDINARY = 0.9

# Encodes texts that a stream does not contain, from the stream and the texts, to their arrays.
TextFeatures = Callable[[Stream, Sequence[str]], list[dict[str, np.ndarray]]]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result of a search.

    Attributes:
        rank: from 1, best first.
        score: higher is better.
        clip: the clip; in a search among captions, one of the clips that the caption belongs to.
        caption: the caption; in a search among clips, the clip's first caption.
        start, end: seconds of the clip on its video's clock, if known.
        weak: whether other texts fit equally well, so that the store may contain no match. Always False for trained
            models.
    """

    rank: int
    score: float
    clip: Clip
    caption: str
    start: float | None
    end: float | None
    weak: bool = False


def weak_below(ordinary: np.ndarray) -> np.ndarray:
    """Return the score of each clip below which a hit is weak, from scores (texts, clips) of ordinary texts."""
    return np.quantile(ordinary, ORDINARY, axis=0)


def make_hit(
    rank: int, score: float, clip: Clip, streams: Sequence[Stream], caption: str = "", *, weak: bool = False
) -> Hit:
    """Build a result, with times from the manifest or else from the rows of a stream.

    Args:
        caption: the caption, in a search among captions; empty: the clip's first caption.
    """
    start, end = clip.start, clip.end
    timed = [stream for stream in streams if stream.spec["output"].get("times", True)]
    if (start is None or end is None) and timed and len(rows := timed[0][clip.clip_id]):
        start, end = float(rows.times[0, 0]), float(rows.times[-1, 1])
    caption = caption or (clip.captions[0] if clip.captions else "")
    return Hit(rank=rank, score=float(score), clip=clip, caption=caption, start=start, end=end, weak=weak)


def place_of(clip_id: str, clips: Sequence[Clip], coverage: Coverage, store: Store) -> int:
    """Return the index of a clip among the searchable ones; raise an AmexError if it is not among them."""
    names = [clip.clip_id for clip in clips]
    if clip_id not in names:
        near = did_you_mean(clip_id, names) or f"; the first are {', '.join(names[:3])}"
        raise AmexError(
            f"clip {clip_id!r} is not among the {plural(len(names), 'clip')} with features in {store.path} "
            f"({coverage.clip_line}){near}"
        )
    return names.index(clip_id)


class Searcher:
    """A model, clips with features, and an index of their embeddings.

    Args:
        clips: the clips to search; clips without features are left out.
        text: sources of caption batches, as from ``checkpoint.text``.
        features: encodes a query that the text stream does not contain.
        kind: an index of FAISS's ``index_factory``: ``Flat`` compares all vectors, ``IVF1024,PQ64`` few.
        strict: treat clips and captions without features as errors.

    Attributes:
        clips: the searchable clips.
        description: a line that names the model.
        coverage: how many clips and captions take part, and why others are left out.
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
                f"--index {kind} needs one vector per clip, but {checkpoint.config.model.name} compares parts: "
                "use --index Flat"
            )
        self.streams = [store[name] for name in checkpoint.fingerprints if name != checkpoint.config.model.text_stream]
        # The store may still be filled: clips that are not extracted yet are left out.
        refuse = LACKING if strict else ()
        self._usable, self.coverage = with_features(store, clips, self.streams, text.stream, refuse=refuse)
        by_id = {clip.clip_id: clip for clip in clips}
        self.clips = [by_id[clip.clip_id] for clip in self._usable]
        self.text, self.features = text, features
        self.description = f"{checkpoint.path} ({checkpoint.config.model.name})"

    def clips_for(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` clips that fit a text best."""
        with torch.inference_mode():
            query_embeddings = self.model.encode_texts(self.model.to_device(self._text(query)))
        scores, places = self._nearest("clips", query_embeddings, min(k, len(self.clips)))
        hits = enumerate(zip(scores, places, strict=True), start=1)
        return [self._hit(rank, score, self.clips[i], "") for rank, (score, i) in hits if i >= 0]

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """Return the ``k`` captions of the manifest that fit a clip best."""
        place = place_of(clip_id, self.clips, self.coverage, self.store)
        owners: dict[str, Clip] = {}
        for clip, usable in zip(self.clips, self._usable, strict=True):
            for caption in usable.captions:
                owners.setdefault(caption, clip)
        if not owners:
            raise AmexError("the manifest has no captions with features to search among")
        clip_embeddings = {name: x[[place]] for name, x in self._embeddings("clips").items()}
        scores, places = self._nearest("captions", clip_embeddings, min(k, len(owners)))
        captions = list(owners)
        hits = enumerate(zip(scores, places, strict=True), start=1)
        return [self._hit(rank, score, owners[captions[i]], captions[i]) for rank, (score, i) in hits if i >= 0]

    def _hit(self, rank: int, score: float, clip: Clip, caption: str) -> Hit:
        return make_hit(rank, score, clip, self.streams, caption)

    def _nearest(self, among: str, query: Embeddings, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and indices of the ``k`` clips or captions that fit one caption or clip best."""
        if isinstance(self.model, SpacesModel):
            scores, places = self._index(among, self.model).search(self.model.flatten(query).numpy(), k)
            return scores[0], places[0]
        gallery = self._embeddings(among)
        videos, texts = (gallery, query) if among == "clips" else (query, gallery)
        ((_, scores),) = score_embeddings(self.model, videos, texts).rows()
        best = scores.flatten().topk(k)
        return best.values.numpy(), best.indices.numpy()

    def _text(self, query: str) -> dict[str, Tensor]:
        most = self.checkpoint.config.data.max_tokens
        stream = self.text.stream
        if stream is None:
            return self.text.batch([query], None, most)
        if query in stream:
            return self.text.batch([query], Table(stream, [query])[[0]], most)
        batch = concatenate(self.features(stream, [query]), frozenset(clip_arrays(stream.spec)))
        return self.text.batch([query], (batch, [0]), most)

    @cached_property
    def _folder(self) -> Path:
        """Folder of cached embeddings beside the checkpoint, named by a digest of all their inputs.

        The digest includes the features, since extracting them again keeps the stream and the ids.
        """
        options = self.checkpoint.config.model
        learned = learned_from(self.store, options, {"search": self._usable}, self.text.graphs)
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
        split = Split(self.store, self._usable, config.model, config.data, self.text)
        videos, texts = encode(self.model, split)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, embeddings in (("captions", texts), ("clips", videos)):
            with atomic_path(self._folder / f"{name}.npz") as temporary:
                np.savez(temporary, **{part: x.numpy() for part, x in embeddings.items()})

    def _index(self, what: str, model: SpacesModel) -> faiss.Index:
        with needs("train", "search with a trained model"):
            import faiss

        path = self._folder / f"{what}-{self.kind.replace(',', '_')}.faiss"
        with contextlib.suppress(*UNREADABLE):
            return faiss.read_index(str(path))
        vectors = model.flatten(self._embeddings(what)).numpy()
        try:
            index = faiss.index_factory(vectors.shape[1], self.kind, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        except RuntimeError as error:
            raise AmexError(
                f"--index {self.kind} cannot index {len(vectors)} vectors: {str(error).splitlines()[-1]}"
            ) from error
        index.add(vectors)
        with atomic_path(path) as temporary:
            faiss.write_index(index, str(temporary))
        return index


# Errors of NumPy, zip files and FAISS for a file that is missing or incomplete: it is written again.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)


def _read_embeddings(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}
