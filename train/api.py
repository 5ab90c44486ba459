"""Trained models in Python: ``load`` a run or an exported folder, embed texts and videos, rank; ``fit`` trains one.

This module joins what the command line joins: it alone of ``train`` knows who encodes a new text for a stream.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError, did_you_mean
from ..features import Batch, Store, Stream, clip_arrays, open_store
from ..storage import open_path
from .captions import Text
from .checkpoint import Checkpoint, load_checkpoint
from .config import Config, load_config
from .data import Table, joined, padded
from .evaluate import TEXTS, VIDEOS, in_order, scores_of
from .export import WEIGHTS, StreamSettings, read_export
from .fitting import Fitted
from .fitting import fit as fit_config
from .models import Embeddings, RetrievalModel, SpacesModel
from .rolegraphs import Graphs
from .vocabulary import Vocabulary

# What a stream's rows are given as: a stream of a store, (clips, rows, ...), a list of (rows, ...), or a list of dicts.
Rows = Stream | np.ndarray | Sequence[Any]
# Makes the arrays of texts as those of a stream were made.
Encoder = Callable[[Any, Sequence[str]], list[dict[str, np.ndarray]]]


class Ranked(NamedTuple):
    """A clip that was found for a text, and how well it fits."""

    clip_id: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Texts or videos, as a model encodes them.

    Attributes:
        ids: the texts themselves, or the ids of the clips.
        parts: by name tensors whose first axis is the item, float32 or bool, on the CPU.
    """

    ids: tuple[str, ...]
    parts: Embeddings
    model: RetrievalModel

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> np.ndarray:
        """(items, dim) float32, such that the dot product of a text's and a video's is their score.

        Raises:
            AmexError: if the model compares parts with parts, and has no such vectors: ``TrainedModel.score``.
        """
        if not isinstance(self.model, SpacesModel):
            name = type(self.model).__name__
            raise AmexError(f"{name} compares parts with parts and has no one vector an item: use model.score")
        return self.model.flatten(self.parts).numpy()


@dataclass(frozen=True)
class Held:
    """Clips that no store holds, read as a ``Table`` is."""

    batch: Batch

    def __getitem__(self, places: np.ndarray) -> tuple[Batch, np.ndarray]:
        return self.batch, places


class TrainedModel:
    """A trained model, with what turns texts into its inputs.

    Attributes:
        checkpoint: configuration, fingerprints of the streams, figures on the validation split.
        streams: the names of the streams of videos that it reads.
        text_stream: the stream of text that it reads; empty where the words of the vocabulary are enough.
    """

    def __init__(
        self, checkpoint: Checkpoint, text_settings: Callable[[], StreamSettings | Stream], encoder: Encoder
    ) -> None:
        options = checkpoint.config.model
        self.checkpoint = checkpoint
        self.streams: list[str] = options.video_streams
        self.text_stream: str = options.text_stream
        self._text_settings, self._encoder = text_settings, encoder
        self._model = checkpoint.model()
        self._text = Text(
            vocabulary=Vocabulary.from_json(checkpoint.vocabulary) if checkpoint.vocabulary else None,
            makes_words=options.makes_words,
            graphs=Graphs(checkpoint.parser, {}, options.graph_sizes) if options.needs_graphs else None,
        )

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.checkpoint.path)!r}, {self.checkpoint.config.model.name}, {self.streams})"

    def embed_text(self, texts: Sequence[str]) -> Embedded:
        """Texts, in their order.

        Raises:
            AmexError: if a text has no words, or the encoder of the stream of text cannot be had.
        """
        texts = _as_texts(texts)
        return Embedded(
            ids=texts, parts=self._encode(self._model.encode_texts, self._text_batches(texts)), model=self._model
        )

    def _text_batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, Any]]:
        most = self.checkpoint.config.data.max_tokens
        settings = self._text_settings() if self.text_stream else None
        text = dataclasses.replace(self._text, stream=settings)  # which says where captions are cut
        for places in _batches(len(texts), TEXTS):
            some, tokens = [texts[place] for place in places], None
            if settings is not None:
                made = self._encoder(settings, some)
                tokens = (joined(made, frozenset(clip_arrays(settings.spec))), range(len(some)))
            yield places, text.batch(some, tokens, most)

    def embed_video(self, features: Store | Stream | Mapping[str, Rows], ids: Sequence[str] | None = None) -> Embedded:
        """Videos, from the features of every stream that the model reads (``streams``).

        Args:
            features: a store; or by stream its rows; or for a model of one stream that stream of a store. Rows are a
                stream of a store, an array (clips, rows, width), or for each clip an array (rows, width). Of objects
                they are for each clip a dict of ``values`` (rows, objects, width), ``boxes`` (rows, objects, 4) in
                pixels, ``scores`` (rows, objects), ``counts`` (rows,), ``frame_size`` (rows, 2) as width and height,
                and perhaps ``times`` (rows, 2) in seconds, as a stream of objects has them.
            ids: the clips to read; None for all that every stream has. Of arrays the names of their clips; None
                numbers them.

        Raises:
            AmexError: if a stream is missing, of another width or made in another way; or a clip has no rows.
        """
        given = {features.name: features} if isinstance(features, Stream) else features
        if missing := [name for name in self.streams if name not in given]:
            raise AmexError(
                f"the model reads {', '.join(self.streams)}, and {missing[0]!r} is not there: there is "
                f"{', '.join(given) or 'nothing'}"
            )
        if not isinstance(given, Store) and (unread := [name for name in given if name not in self.streams]):
            raise AmexError(f"the model does not read {unread[0]!r}{did_you_mean(unread[0], self.streams)}")
        rows = {name: given[name] for name in self.streams}
        stored = [name for name, value in rows.items() if isinstance(value, Stream)]
        if stored and len(stored) < len(rows):
            raise AmexError(f"give streams of a store or arrays, not both: {stored[0]!r} is a stream")
        if stored:
            self._check_fingerprints(rows)
            ids = _with_rows(list(rows.values()), ids)
            held = {name: Table(stream, ids) for name, stream in rows.items()}
        else:
            held = {name: Held(self._as_batch(name, value)) for name, value in rows.items()}
            counts = {name: len(some.batch.clip_ids) for name, some in held.items()}
            if len(set(counts.values())) > 1:
                each = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
                raise AmexError(f"every stream needs the same clips, and there are {each}")
            count = next(iter(counts.values()))
            ids = [str(number) for number in range(count)] if ids is None else list(ids)
            if len(ids) != count:
                raise AmexError(f"{len(ids)} ids are given for the features of {count} clips")
        if not len(ids):
            raise AmexError("there are no clips to embed")
        data = self.checkpoint.config.data
        batches = (
            (places, {name: padded(*table[places], data) for name, table in held.items()})
            for places in _batches(len(ids), VIDEOS)
        )
        return Embedded(ids=tuple(ids), parts=self._encode(self._model.encode_videos, batches), model=self._model)

    def score(self, texts: Embedded | Sequence[str], videos: Embedded) -> np.ndarray:
        """(texts, videos) float32: how well each text fits each video; higher is better."""
        return torch.cat(list(self._scores(texts, videos))).numpy()

    def rank(self, texts: Embedded | Sequence[str], videos: Embedded, top: int = 10) -> list[list[Ranked]]:
        """For each text the ``top`` videos that fit it best, the best first."""
        if top < 1:
            raise AmexError(f"top is how many videos to name for a text, 1 or more, and not {top}")
        found = []
        for block in self._scores(texts, videos):
            best = block.topk(min(top, block.shape[1]))
            for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                found.append([Ranked(videos.ids[place], score) for place, score in zip(places, scores, strict=True)])
        return found

    def _scores(self, texts: Embedded | Sequence[str], videos: Embedded) -> Iterator[Tensor]:
        """The scores of some texts after others, (some, videos)."""
        texts = texts if isinstance(texts, Embedded) else self.embed_text(texts)
        if not texts.model is videos.model is self._model:
            raise AmexError("embeddings of another model cannot be compared: embed texts and videos with one model")
        return (block for _, block in scores_of(self._model, videos.parts, texts.parts).rows())

    def _encode(self, encoder: Callable[[Any], Embeddings], batches: Iterable[tuple[np.ndarray, Any]]) -> Embeddings:
        with torch.inference_mode():
            return in_order(encoder, batches, self._model, lambda done: None)

    def _check_fingerprints(self, streams: Mapping[str, Stream]) -> None:
        for name, stream in streams.items():
            if stream.fingerprint != (known := self.checkpoint.fingerprints[name]):
                raise AmexError(
                    f"{self.checkpoint.path} was trained on stream {name!r} of fingerprint {known[:12]}, and this one "
                    f"is {stream.fingerprint[:12]}: features made in another way"
                )

    def _as_batch(self, name: str, rows: Any) -> Batch:
        """Arrays of clips as a batch. Raises AmexError if they are not what the model reads."""
        inputs = self.checkpoint.inputs
        objects, width = name in inputs.objects, inputs.widths[name]
        wanted = f"(clips, rows, {width}), or for each clip an array (rows, {width})"
        needed = ("values", "boxes", "scores", "counts", "frame_size")
        if objects:
            wanted = f"a list of dicts of {', '.join(needed)}, with values (rows, objects, {width})"
        items = []
        for clip in rows:
            clip = clip if isinstance(clip, Mapping) else {"values": clip}
            if objects and (lacking := [key for key in needed if key not in clip]):
                raise AmexError(f"stream {name!r} is of objects: give {wanted}; {lacking[0]!r} is missing")
            item = {key: np.asarray(array) for key, array in clip.items()}
            values = item["values"]
            if values.ndim != 2 + objects or values.shape[-1] != width or not np.issubdtype(values.dtype, np.number):
                raise AmexError(f"stream {name!r}: give {wanted}; a clip's values have the shape {values.shape}")
            if len({len(array) for array in item.values()}) > 1:
                raise AmexError(f"stream {name!r}: the arrays of a clip differ in their number of rows")
            if not len(values) or not np.isfinite(values).all():
                raise AmexError(f"stream {name!r}: a clip has {'NaN or infinity' if len(values) else 'no rows'}")
            items.append(item)
        if not items:
            raise AmexError("there are no clips to embed")
        return joined(items)


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
    for begin in range(0, count, size):
        yield np.arange(begin, min(begin + size, count))


def _as_texts(texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise AmexError("give a list of texts, not a single one: [text]")
    texts = tuple(texts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise AmexError("give one text or more, each with words")
    return texts


def _with_rows(streams: Sequence[Stream], ids: Sequence[str] | None) -> list[str]:
    """The ids, or else all clips of the first stream that have rows in every stream.

    Raises:
        AmexError: if one of ``ids`` has no rows in a stream.
    """
    chosen = list(streams[0]) if ids is None else list(ids)
    usable = np.ones(len(chosen), bool)
    for stream in streams:
        states = stream.states(chosen)
        if ids is not None and (lacking := np.flatnonzero(states != "done")).size:
            first = int(lacking[0])
            raise AmexError(f"clip {chosen[first]!r} has no rows in stream {stream.name!r}: it is {states[first]}")
        usable &= states == "done"
    return [clip_id for clip_id, kept in zip(chosen, usable, strict=True) if kept]


def load(path: str | os.PathLike[str], *, text_encoder: str | None = None) -> TrainedModel:
    """A trained model, on the CPU.

    Args:
        path: the folder of a run, a checkpoint in it, or a folder that ``amex train export`` wrote. That folder needs
            neither store nor manifest; a run that reads a stream of text needs its store, for how texts were encoded.
        text_encoder: the model that made the stream of text that the model reads: a directory, ``minilm``, or a name
            on a hub. None tries those that amex knows. Not needed where words are learned.

    Raises:
        AmexError: if there is no model, or it was written by a later amex.
    """

    def encode(stream: Any, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        from ..extract.encoders import encode_like

        return encode_like(stream, texts, text_encoder)

    if (Path(path) / WEIGHTS).is_file():
        checkpoint, settings = read_export(Path(path))
        return TrainedModel(checkpoint, lambda: settings[checkpoint.config.model.text_stream], encode)
    checkpoint = load_checkpoint(path)
    return TrainedModel(
        checkpoint,
        lambda: open_store(open_path(checkpoint.sources["store"]))[checkpoint.config.model.text_stream],
        encode,
    )


def fit(
    config: str | Config,
    *,
    store: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    settings: Iterable[str] = (),
    **options: Any,
) -> Fitted:
    """Trains a model, as ``amex train`` does; ``load(fitted.best)`` is what it made.

    Args:
        config: the name of a model or a configuration, the path of a file of one, or a ``Config``.
        settings: ``section.key=value``, applied on top of a name or a file.
        options: ``resume``, ``strict`` and ``say``, as of ``amex.train.fitting.fit``.

    Raises:
        AmexError: for anything missing or unfit, before the first step.
    """
    if isinstance(config, Config):
        if tuple(settings):
            raise AmexError("settings are for a configuration by name: a Config has its own")
    else:
        config = load_config(config, settings)
    return fit_config(config, store=open_path(store), manifest=open_path(manifest), work_dir=Path(work_dir), **options)
