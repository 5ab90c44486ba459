"""Search: clips for a text, texts for a clip, through a FAISS index over cached embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError
from ..features import Store, Stream
from ..manifests import Clip
from .checkpoint import Checkpoint
from .data import Split
from .evaluate import encode
from .models import SpacesModel

# Makes token features (tokens, D) of texts that a stream does not hold; given the stream and the texts.
TextFeatures = Callable[[Stream, Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result, the best first.

    Attributes:
        clip: what was found, or for a search among captions, one clip that the caption belongs to.
        caption: the caption found, or the clip's first.
        start, end: seconds of the clip on its video's clock, as far as they are known.
    """

    rank: int
    score: float
    clip: Clip
    caption: str
    start: float | None
    end: float | None


class Searcher:
    """A model, clips with features, and an index over their embeddings.

    Args:
        clips: those to search among; such as have no features are left out.
        kind: of index, as FAISS's ``index_factory`` has it: ``Flat`` compares with all, ``IVF1024,PQ64`` with few.
    """

    def __init__(self, checkpoint: Checkpoint, store: Store, clips: Sequence[Clip], *, kind: str = "Flat") -> None:
        checkpoint.check_features(store)
        self.checkpoint, self.store, self.kind = checkpoint, store, kind
        model = checkpoint.model()
        assert isinstance(model, SpacesModel)
        self.model = model
        self.streams = [store[name] for name in checkpoint.fingerprints if name != checkpoint.config.model.text]
        self.clips = [clip for clip in clips if all(clip.clip_id in stream for stream in self.streams)]
        if not self.clips:
            raise AmexError(f"no clip of the manifest has features in {store.path}: there is nothing to search")
        self.text = checkpoint.text(store)

    def clips_for(self, query: str, k: int, features: TextFeatures) -> list[Hit]:
        """The ``k`` clips that fit a text best."""
        vector = self._query(query, features)
        scores, found = self._index("clips").search(vector, min(k, len(self.clips)))
        hits = enumerate(zip(scores[0], found[0], strict=True), start=1)
        return [self._hit(rank, score, self.clips[i], "") for rank, (score, i) in hits if i >= 0]

    def captions_for(self, clip_id: str, k: int) -> list[Hit]:
        """The ``k`` captions of the manifest that fit a clip best."""
        names = [clip.clip_id for clip in self.clips]
        if clip_id not in names:
            raise AmexError(
                f"clip {clip_id!r} is not among the {len(names)} clips with features in {self.store.path}; "
                f"the first are {', '.join(names[:3])}"
            )
        owners: dict[str, Clip] = {}
        for clip in self.clips:
            for caption in self._captions(clip):
                owners.setdefault(caption, clip)
        if not owners:
            raise AmexError("the manifest has no captions with features to search among")
        vector = self._vectors("clips")[[names.index(clip_id)]]
        scores, found = self._index("captions").search(vector, min(k, len(owners)))
        captions = list(owners)
        hits = enumerate(zip(scores[0], found[0], strict=True), start=1)
        return [self._hit(rank, score, owners[captions[i]], captions[i]) for rank, (score, i) in hits if i >= 0]

    def _hit(self, rank: int, score: float, clip: Clip, caption: str) -> Hit:
        start, end = clip.start, clip.end
        timed = [stream for stream in self.streams if stream.spec["output"].get("times", True)]
        if (start is None or end is None) and timed and len(rows := timed[0][clip.clip_id]):
            start, end = float(rows.times[0, 0]), float(rows.times[-1, 1])
        said = caption or (clip.captions[0] if clip.captions else "")
        return Hit(rank=rank, score=float(score), clip=clip, caption=said, start=start, end=end)

    def _query(self, query: str, features: TextFeatures) -> np.ndarray:
        with torch.inference_mode():
            return self.model.flatten(self.model.encode_texts(self._text(query, features))).numpy()

    def _text(self, query: str, features: TextFeatures) -> dict[str, Tensor]:
        most = self.checkpoint.config.data.max_tokens
        stream = self.text.stream
        if stream is None:
            return self.text.batch([query], None, most)
        values = stream[query].values if query in stream else features(stream, [query])[0]
        return self.text.batch([query], [{"values": values}], most)

    def _captions(self, clip: Clip) -> tuple[str, ...]:
        """The captions of a clip that can be searched: with a stream of text, those that are in it."""
        there = self.text.stream
        return tuple(caption for caption in clip.captions if there is None or caption in there)

    def _folder(self) -> Path:
        """Where embeddings are kept: beside the checkpoint, one folder for each set of clips and captions."""
        digest = hashlib.sha256(self.checkpoint.path.read_bytes())
        for clip in self.clips:
            digest.update(json.dumps([clip.clip_id, self._captions(clip)]).encode())
        return self.checkpoint.path.parent / "embeddings" / digest.hexdigest()[:16]

    def _vectors(self, what: str) -> np.ndarray:
        path = self._folder() / f"{what}.npy"
        if not path.exists():
            self._encode()
        return np.load(path, allow_pickle=False)

    def _encode(self) -> None:
        config = self.checkpoint.config
        known = [replace(clip, captions=self._captions(clip)) for clip in self.clips]
        split = Split(self.store, known, config.model, config.data, self.text)
        videos, texts = encode(self.model, split)
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "captions.npy", self.model.flatten(texts).numpy() if texts else np.zeros((0, 1), np.float32))
        np.save(folder / "clips.npy", self.model.flatten(videos).numpy())

    def _index(self, what: str) -> faiss.Index:
        path = self._folder() / f"{what}-{self.kind.replace(',', '_')}.faiss"
        if path.exists():
            return faiss.read_index(str(path))
        vectors = self._vectors(what)
        try:
            index = faiss.index_factory(vectors.shape[1], self.kind, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        except RuntimeError as error:
            raise AmexError(
                f"--index {self.kind} cannot hold {len(vectors)} vectors: {str(error).splitlines()[-1]}"
            ) from error
        index.add(vectors)
        faiss.write_index(index, str(path))
        return index
