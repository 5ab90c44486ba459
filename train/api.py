"""Trained models in Python: embed texts and videos, score and rank them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import AmexError, did_you_mean, plural
from ..features import Batch, Store, Stream, clip_arrays, open_store
from ..storage import open_path
from .captions import Text
from .checkpoint import Checkpoint, load_checkpoint
from .data import Table, concatenate, padded
from .evaluate import TEXTS, VIDEOS, encode_all, score_embeddings
from .export import WEIGHTS, StreamSettings, read_export
from .models import Embeddings, RetrievalModel, SpacesModel
from .rolegraphs import Graphs
from .vocabulary import Vocabulary

# The features of one stream: a stream of a store, an array (clips, rows, width), or for each clip an array (rows,
# width) or, for objects, a mapping from names to arrays.
Features = Stream | NDArray[Any] | Sequence[NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]]
# Encodes texts with the settings of a stream of text: for each text the arrays of the stream.
Encoder = Callable[[Stream | StreamSettings, Sequence[str]], list[dict[str, NDArray[Any]]]]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a training run.

    Attributes:
        best: path of best.pth.
        epoch: the epoch of best.pth.
        val: its validation figures.
        parameters: number of parameters of the model.
        splits: coverage and warnings of the training and validation splits, as in data.json.
    """

    best: Path
    epoch: int
    val: dict[str, float]
    parameters: int
    splits: dict[str, Any]


class Ranked(NamedTuple):
    """A clip that was found for a text.

    Attributes:
        clip_id: of the clip.
        score: how well the clip fits the text; higher is better. Scores of different models are not comparable.
    """

    clip_id: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of texts or of videos by one model.

    Attributes:
        of: ``texts`` or ``videos``.
        ids: the texts themselves, or the ids of the clips.
        parts: tensors by name, float32 or bool, on the CPU; the first axis is the item.
        model: the network that made them.
    """

    of: Literal["texts", "videos"]
    ids: tuple[str, ...]
    parts: Embeddings
    model: RetrievalModel

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(items, dim) float32. The dot product of the vectors of a text and of a video is their score.

        Raises:
            AmexError: if the model has no such vectors because it compares parts with parts (``hgr``, ``mcsan``,
                ``hcmi``). ``TrainedModel.score`` works for every model.
        """
        if not isinstance(self.model, SpacesModel):
            name = type(self.model).__name__
            raise AmexError(f"{name} compares parts with parts and has no one vector an item: use model.score")
        return self.model.flatten(self.parts).numpy()


@dataclass(frozen=True)
class ArrayTable:
    """Clips that are given as arrays, with the interface of ``Table``."""

    batch: Batch

    def __getitem__(self, places: Sequence[int]) -> tuple[Batch, Sequence[int]]:
        return self.batch, places


class TrainedModel:
    """A trained model on the CPU, made by ``amex.load``. It embeds texts and videos, scores and ranks them.

    Attributes:
        checkpoint: the configuration, the fingerprints of the streams, and the figures on the validation split.
        streams: the names of the streams of videos that the model reads.
        text_stream: the name of the stream of text that the model reads; empty if it reads the words of a vocabulary.
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
            pools_tokens=options.pools_tokens,
            graphs=Graphs(checkpoint.parser, {}, options.graph_sizes) if options.needs_graphs else None,
        )

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.checkpoint.path)!r}, {self.checkpoint.config.model.name}, {self.streams})"

    def embed_text(self, texts: Sequence[str]) -> Embedded:
        """Embed texts, in the order given.

        Texts are encoded as the captions of the training were.

        Args:
            texts: one text or more, as a list.

        Returns:
            The embeddings; ``ids`` are the texts.

        Raises:
            AmexError: if a text has no words, or the encoder of the stream of text is not available.
        """
        texts = _as_texts(texts)
        parts = self._encode(self._model.encode_texts, self._text_batches(texts))
        return Embedded(of="texts", ids=texts, parts=parts, model=self._model)

    def _text_batches(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[Any], Any]]:
        most = self.checkpoint.config.data.max_tokens
        settings = self._text_settings() if self.text_stream else None
        # The stream may be gone. Its settings are enough: they have the maximum number of tokens.
        text = dataclasses.replace(self._text, stream=settings)  # type: ignore[arg-type]
        for places in _batches(len(texts), TEXTS):
            batch, tokens = [texts[place] for place in places], None
            if settings is not None:
                arrays = self._encoder(settings, batch)
                tokens = (concatenate(arrays, frozenset(clip_arrays(settings.spec))), range(len(batch)))
            yield places, text.batch(batch, tokens, most)

    def embed_video(
        self, features: Store | Stream | Mapping[str, Features], ids: Sequence[str] | None = None
    ) -> Embedded:
        """Embed videos, from the features of every stream that the model reads (``streams``).

        Args:
            features: a store; or for a model of one stream that stream; or a mapping from the name of each stream to
                its features. These are a stream of a store, an array (clips, rows, width), or for each clip an array
                (rows, width). For a stream of objects they are for each clip a mapping of the arrays ``values`` (rows,
                objects, width), ``boxes`` (rows, objects, 4) in pixels, ``scores`` (rows, objects), ``counts`` (rows,),
                ``frame_size`` (rows, 2) as width and height, and optionally ``times`` (rows, 2) in seconds.
            ids: the clips to read; None for all clips that every stream has. For arrays: the ids of their clips; None
                numbers them.

        Returns:
            The embeddings; ``ids`` are the ids of the clips.

        Raises:
            AmexError: if a stream is missing, has another width or another fingerprint than in training, or a clip has
                no rows.
        """
        by_name = {features.name: features} if isinstance(features, Stream) else features
        if missing := [name for name in self.streams if name not in by_name]:
            raise AmexError(
                f"the model reads {', '.join(self.streams)}, and {missing[0]!r} is missing: features has "
                f"{', '.join(by_name) or 'nothing'}"
            )
        if not isinstance(by_name, Store) and (unread := [name for name in by_name if name not in self.streams]):
            raise AmexError(f"the model does not read {unread[0]!r}{did_you_mean(unread[0], self.streams)}")
        rows = {name: by_name[name] for name in self.streams}
        streams = {name: value for name, value in rows.items() if isinstance(value, Stream)}
        if streams and len(streams) < len(rows):
            raise AmexError(f"give streams of a store or arrays, not both: {next(iter(streams))!r} is a stream")
        tables: dict[str, Table | ArrayTable]
        if streams:
            self._check_fingerprints(streams)
            ids = _with_rows(list(streams.values()), ids)
            tables = {name: Table(stream, ids) for name, stream in streams.items()}
        else:
            arrays = {name: self._as_batch(name, value) for name, value in rows.items()}
            tables = {name: ArrayTable(batch) for name, batch in arrays.items()}
            counts = {name: len(batch.clip_ids) for name, batch in arrays.items()}
            if len(set(counts.values())) > 1:
                each = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
                raise AmexError(f"every stream needs the same clips, and there are {each}")
            count = next(iter(counts.values()))
            ids = [str(number) for number in range(count)] if ids is None else list(ids)
            if len(ids) != count:
                raise AmexError(f"{plural(len(ids), 'id')} for the features of {plural(count, 'clip')}")
        if not len(ids):
            raise AmexError("there are no clips to embed")
        data = self.checkpoint.config.data
        batches = (
            (places, {name: padded(*table[places.tolist()], data) for name, table in tables.items()})
            for places in _batches(len(ids), VIDEOS)
        )
        parts = self._encode(self._model.encode_videos, batches)
        return Embedded(of="videos", ids=tuple(ids), parts=parts, model=self._model)

    def score(self, texts: Embedded | Sequence[str], videos: Embedded) -> NDArray[np.float32]:
        """Score every text against every video.

        Args:
            texts: embeddings of ``embed_text``, or texts.
            videos: embeddings of ``embed_video``.

        Returns:
            (texts, videos) float32; higher is better.

        Raises:
            AmexError: if the arguments are swapped, or are embeddings of another model.
        """
        return torch.cat(list(self._scores(texts, videos))).numpy()

    def rank(self, texts: Embedded | Sequence[str], videos: Embedded, top: int = 10) -> list[list[Ranked]]:
        """Find for each text the videos that fit it best.

        Args:
            texts: embeddings of ``embed_text``, or texts.
            videos: embeddings of ``embed_video``.
            top: videos per text, at most.

        Returns:
            For each text its videos, the best first.

        Raises:
            AmexError: as of ``score``.
        """
        if top < 1:
            raise AmexError(f"top must be 1 or more, not {top}")
        rankings = []
        for block in self._scores(texts, videos):
            best = block.topk(min(top, block.shape[1]))
            for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                rankings.append([Ranked(videos.ids[place], score) for place, score in zip(places, scores, strict=True)])
        return rankings

    def _scores(self, texts: Embedded | Sequence[str], videos: Embedded) -> Iterator[Tensor]:
        """Yield the scores of successive blocks of texts, (texts of the block, videos)."""
        if not isinstance(videos, Embedded) or videos.of != "videos":
            raise AmexError("the second argument must be videos, from embed_video; texts come first")
        texts = texts if isinstance(texts, Embedded) else self.embed_text(texts)
        if texts.of != "texts":
            raise AmexError("the first argument must be texts, from embed_text; videos come second")
        if not texts.model is videos.model is self._model:
            raise AmexError("embeddings of another model cannot be compared: embed texts and videos with one model")
        return (block for _, block in score_embeddings(self._model, videos.parts, texts.parts).rows())

    def _encode(self, encoder: Callable[[Any], Embeddings], batches: Iterable[tuple[NDArray[Any], Any]]) -> Embeddings:
        with torch.inference_mode():
            return encode_all(encoder, batches, self._model, lambda done: None)

    def _check_fingerprints(self, streams: Mapping[str, Stream]) -> None:
        for name, stream in streams.items():
            if stream.fingerprint != (expected := self.checkpoint.fingerprints[name]):
                raise AmexError(
                    f"{self.checkpoint.path} was trained on stream {name!r} of fingerprint {expected[:12]}, and this "
                    f"one is {stream.fingerprint[:12]}: features made with other settings"
                )

    def _as_batch(self, name: str, rows: Any) -> Batch:
        """Return the arrays of clips as a batch; raise AmexError if they are not what the model reads."""
        inputs = self.checkpoint.inputs
        objects, width = name in inputs.objects, inputs.widths[name]
        expected = f"(clips, rows, {width}), or for each clip an array (rows, {width})"
        needed = ("values", "boxes", "scores", "counts", "frame_size")
        if objects:
            expected = f"a list of dicts of {', '.join(needed)}, with values (rows, objects, {width})"
        items = []
        for clip in rows:
            clip = clip if isinstance(clip, Mapping) else {"values": clip}
            if objects and (lacking := [key for key in needed if key not in clip]):
                raise AmexError(f"stream {name!r} is of objects: give {expected}; {lacking[0]!r} is missing")
            item = {key: np.asarray(array) for key, array in clip.items()}
            values = item["values"]
            if values.ndim != 2 + objects or values.shape[-1] != width or not np.issubdtype(values.dtype, np.number):
                raise AmexError(f"stream {name!r}: give {expected}; a clip's values have the shape {values.shape}")
            if len({len(array) for array in item.values()}) > 1:
                raise AmexError(f"stream {name!r}: the arrays of a clip differ in their number of rows")
            if not len(values) or not np.isfinite(values).all():
                raise AmexError(f"stream {name!r}: a clip has {'NaN or infinity' if len(values) else 'no rows'}")
            items.append(item)
        if not items:
            raise AmexError("there are no clips to embed")
        return concatenate(items)


def _batches(count: int, size: int) -> Iterator[NDArray[Any]]:
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
    """Return ``ids``, or if they are None all clips of the first stream that have rows in every stream.

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
    return [clip_id for clip_id, has_rows in zip(chosen, usable, strict=True) if has_rows]


def load_model(path: str | os.PathLike[str], encoder: Encoder) -> TrainedModel:
    """Load a trained model onto the CPU.

    Args:
        path: the folder of a run, a checkpoint in it, or a folder that ``amex train export`` wrote.
        encoder: encodes new texts as the stream of text that the model reads was encoded.

    Raises:
        AmexError: if there is no model, or a later version of amex wrote it.
    """
    if (Path(path) / WEIGHTS).is_file():
        checkpoint, settings = read_export(Path(path))
        return TrainedModel(checkpoint, lambda: settings[checkpoint.config.model.text_stream], encoder)
    checkpoint = load_checkpoint(path)
    return TrainedModel(
        checkpoint,
        lambda: open_store(open_path(checkpoint.sources["store"]))[checkpoint.config.model.text_stream],
        encoder,
    )
