"""From a store and a manifest to padded batches: the clips and captions of a split, with their features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..features import Batch, Store, Stream, clip_arrays, entry_bytes, row_arrays
from ..features.dataset import Choice, as_array, pad
from ..manifests import Clip
from .captions import Text, tensors
from .config import Config, Data
from .options import Inputs, ModelOptions
from .selection import NEVER_EXTRACTED, DataError, kind, with_features
from .towers import tower_settings, tower_width, word_vectors

# Which arrays models learn from, beside ``values``: the others of a stream are not kept in memory.
LEARNED_FROM = {
    "clips": (),
    "objects": ("boxes", "scores", "counts", "frame_size", "times"),
    "text": ("sentence",),
}
# How much of a stream an evaluation reads at once. A read has a price of its own, above all from an object store.
READ_AHEAD = 64e6


class Table:
    """One stream for a list of clips or captions: rows in memory, or read from the store when they are asked for."""

    def __init__(self, stream: Stream, keys: Sequence[str]) -> None:
        self.stream, self.keys = stream, as_array(keys)
        wanted, single = {"values", *LEARNED_FROM[kind(stream)]}, clip_arrays(stream.spec)
        self._forms = {name: form for name, form in {**row_arrays(stream.spec), **single}.items() if name in wanted}
        self._single = frozenset(single)
        self._batch: Batch | None = None

    @cached_property
    def bytes(self) -> int:
        """What the clips or captions take in memory."""
        rows = self.stream.index.rows[self.stream.index.find(self.keys.tolist())]
        entries = {True: len(self.keys), False: int(rows.sum())}
        return sum(entries[name in self._single] * entry_bytes({name: form}) for name, form in self._forms.items())

    def load(self) -> None:
        """Keeps the rows in memory from now on."""
        self._batch = self._read(self.keys)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Batch, Sequence[int]]:
        """A batch that has these clips or captions, and their places in it."""
        if self._batch is not None:
            return self._batch, indices
        return self._read(self.keys[np.asarray(indices)]), range(len(indices))

    def _read(self, keys: np.ndarray) -> Batch:
        batch = self.stream.read(keys.tolist(), self._forms)
        # The extremes are NaN where anything is. Element by element halves would take twice as long as reading them.
        extremes = torch.aminmax(torch.from_numpy(batch.values)) if batch.values.size else ()
        if not all(map(torch.isfinite, extremes)):
            finite = np.isfinite(batch.values).all(axis=tuple(range(1, batch.values.ndim)))
            row = int(np.flatnonzero(~finite)[0])
            key = batch.clip_ids[int(np.searchsorted(batch.offsets, row, side="right")) - 1]
            raise DataError(
                f"stream {self.stream.name!r} of {self.stream.path.parent} holds NaN or infinity for {key!r}: "
                "features like that cannot be learned from; import or extract them again under another name"
            )
        return batch


def joined(items: Sequence[Mapping[str, np.ndarray]], single: frozenset[str] = frozenset()) -> Batch:
    """Arrays of clips or captions that no store holds as a batch; those in ``single`` have one entry each."""
    arrays = {
        name: np.stack([item[name] for item in items]) if name in single else np.concatenate([i[name] for i in items])
        for name in items[0]
    }
    offsets = np.cumsum([0, *(len(item["values"]) for item in items)])
    return Batch(arrays, offsets, tuple(map(str, range(len(items)))), single)


class Split(Dataset):
    """The clips and captions of one split, with their features.

    Args:
        second: training batches hold the videos once more, under ``second``, by other rows drawn at random.
        refuse: as of ``with_features``.

    Attributes:
        clips: those that have features, in manifest order, with captions or without.
        coverage: how many they are, and what was left out.
        captions: every different caption once: features are kept by caption.
        queries: by clip all of its captions by index; one that it repeats verbatim is there each time.
        own: by clip its different captions by index.
        pairs: (clip, caption) by index, for every different caption of every clip: what is trained on.
        with_captions: the indices of the clips that have captions; the others are in the gallery alone.
        in_memory: whether ``load`` was called; else features are read from the store when they are asked for.
    """

    def __init__(
        self,
        store: Store,
        clips: Sequence[Clip],
        options: ModelOptions,
        data: Data,
        text: Text,
        *,
        seed: int = 0,
        second: bool = False,
        refuse: Collection[str] = NEVER_EXTRACTED,
    ) -> None:
        self.second = second
        self.options, self.data, self.text, self.seed = options, data, text, seed
        self.in_memory = False
        streams = [store[name] for name in options.video_streams]
        clips, self.coverage = with_features(store, clips, streams, text.stream, refuse=refuse)
        self.clips = clips
        self.captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
        number = {caption: index for index, caption in enumerate(self.captions)}
        self.queries = [[number[caption] for caption in clip.captions] for clip in clips]
        self.own = [list(dict.fromkeys(queries)) for queries in self.queries]
        self.pairs = [(clip, caption) for clip, own in enumerate(self.own) for caption in own]
        self.with_captions = [index for index, own in enumerate(self.own) if own]
        self.tables = {stream.name: Table(stream, [clip.clip_id for clip in clips]) for stream in streams}
        self.texts = Table(text.stream, self.captions) if text.stream is not None else None

    @property
    def _all_tables(self) -> list[Table]:
        return [*self.tables.values(), *([self.texts] if self.texts is not None else [])]

    @property
    def bytes(self) -> int:
        """What all features of the split take in memory, those of captions too."""
        return sum(table.bytes for table in self._all_tables)

    def load(self) -> None:
        """Keeps all features in memory from now on."""
        for table in self._all_tables:
            table.load()
        self.in_memory = True

    def __len__(self) -> int:
        return len(self.with_captions) if self.data.captions == "one" else len(self.pairs)

    def pair(self, epoch: int, index: int) -> tuple[int, int]:
        """The clip and the caption of an index below ``len``; the epoch draws the caption."""
        if self.data.captions == "all":
            return self.pairs[index]
        clip = self.with_captions[index]
        own = self.own[clip]
        draw = np.random.default_rng((self.seed, epoch, clip)).integers(len(own)) if len(own) > 1 else 0
        return clip, own[draw]

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of pairs; an item is the epoch and an index below ``len``, as of ``pair``."""
        pairs = [self.pair(epoch, index) for epoch, index in items]
        clip, caption = np.array(pairs).T
        epoch = items[0][0]
        drawn = [np.random.default_rng((self.seed, epoch, draw, *clip)) for draw in range(2)]
        batch = {
            "video": self.videos(clip, drawn[0] if self.data.rows == "random" else None),
            "text": self.captions_batch(caption),
            "clip": torch.from_numpy(clip),
            "caption": torch.from_numpy(caption),
            "own": torch.from_numpy(self._own_captions(clip)),
        }
        if self.text.concepts is not None:
            captions = [(self.captions[i], [self.captions[j] for j in self.own[c]]) for c, i in pairs]
            batch["concepts"] = self.text.concepts.labels(captions)
        if self.second:
            batch["second"] = self.videos(clip, drawn[1])
        return batch

    def _own_captions(self, clips: Sequence[int]) -> np.ndarray:
        """(clips, K): the numbers of all captions of each, -1 where it has fewer."""
        numbers = np.full((len(clips), max(len(self.own[clip]) for clip in clips)), -1)
        for row, clip in zip(numbers, clips, strict=True):
            row[: len(self.own[clip])] = self.own[clip]
        return numbers

    def videos(self, indices: Sequence[int], draw: np.random.Generator | None = None) -> dict[str, dict[str, Tensor]]:
        """The features of clips by index, padded: by stream ``values`` and ``mask``, for objects their boxes too.

        Args:
            draw: takes rows at random places of equal segments; None those in their middles.
        """
        return {name: self.padded(*table[indices], draw) for name, table in self.tables.items()}

    def padded(self, batch: Batch, clips: Sequence[int], draw: np.random.Generator | None = None) -> dict[str, Tensor]:
        """Some clips of a batch of one stream, by their places in it, as of ``videos``."""
        return padded(batch, clips, self.data, draw)

    def video_batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, dict[str, Tensor]]]]:
        """All clips, ``size`` a batch, in the order in which they are stored: their indices, and as of ``videos``."""
        for indices, held in read_in_order(list(self.tables.values()), size):
            yield indices, {name: self.padded(*rows) for name, rows in zip(self.tables, held, strict=True)}

    def caption_batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """All captions, ``size`` a batch, in the order in which they are stored: their indices, and their tensors."""
        if self.texts is None:
            for begin in range(0, len(self.captions), size):
                indices = np.arange(begin, min(begin + size, len(self.captions)))
                yield indices, self.captions_batch(indices)
            return
        for indices, (tokens,) in read_in_order([self.texts], size):
            captions = [self.captions[i] for i in indices]
            yield indices, self.text.batch(captions, tokens, self.data.max_tokens)

    def sample_rows(self, name: str) -> Tensor:
        """(rows, D) float32 of a stream, of at most 10,000 clips, evenly spread."""
        some = np.linspace(0, len(self.clips) - 1, min(len(self.clips), 10_000)).astype(int)
        padded = pad(*self.tables[name][some])
        return torch.from_numpy(padded["values"][padded["mask"]]).float()

    def captions_batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Captions by index, as of ``Text.batch``."""
        tokens = self.texts[indices] if self.texts is not None else None
        return self.text.batch([self.captions[i] for i in indices], tokens, self.data.max_tokens)


def keep_in_memory(splits: Sequence[Split], memory_gb: float) -> None:
    """Loads the splits, in this order, that fit into so much memory together; the others are read from the store."""
    left = memory_gb * 1e9
    for split in splits:
        if split.bytes <= left:
            split.load()
            left -= split.bytes


def read_in_order(tables: Sequence[Table], size: int) -> Iterator[tuple[np.ndarray, list[tuple[Batch, Sequence[int]]]]]:
    """All clips of tables, ``size`` at once, in the order in which the largest is stored: indices, and rows by table.

    Several batches are read at once where that is little. The order is the same where rows are in memory, so that
    sums of floating-point numbers are.
    """
    largest = max(tables, key=lambda table: table.bytes)
    order = largest.stream.stored_order(largest.keys.tolist())
    batches = max(1, int(READ_AHEAD * len(order) / max(1, largest.bytes) / size))
    for window in np.split(order, range(batches * size, len(order), batches * size)):
        held = [table[window] for table in tables]
        for begin in range(0, len(window), size):
            some = slice(begin, begin + size)
            yield window[some], [(batch, places[some]) for batch, places in held]


def collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Batches come whole from ``Split.__getitems__``."""
    return batch


def spread_rows(counts: np.ndarray, most: int, draw: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """At most so many rows of each clip, from the middles of equal segments, or one drawn from each.

    Of clips with few rows half as many are drawn, or two draws would never differ.
    """
    kept = np.minimum(counts, most if draw is None else np.minimum(most, np.maximum(1, counts // 2)))
    columns = np.arange(max(1, kept.max(initial=0)))
    places = np.full((len(counts), len(columns)), 0.5)
    if draw is not None:
        drawn = (columns < kept[:, None]) & (kept < counts)[:, None]
        places[drawn] = draw.random(np.count_nonzero(drawn))
    numbers = (columns + places) * counts[:, None] / np.maximum(1, kept)[:, None]
    return np.minimum(numbers.astype(int), np.maximum(1, counts)[:, None] - 1), kept


def padded(
    batch: Batch, clips: Sequence[int], data: Data, draw: np.random.Generator | None = None
) -> dict[str, Tensor]:
    """Some clips of a batch of one stream, by their places in it, as of ``Split.videos``."""
    choose = partial(spread_rows, most=data.max_rows, draw=draw)
    if "boxes" in batch.arrays:
        return tensors(pad_objects(batch, clips, choose, data.max_objects))
    return tensors(pad(batch, clips, choose))


def pad_objects(batch: Batch, clips: Sequence[int], choose: Choice, most: int) -> dict[str, np.ndarray]:
    """Objects of several clips, at most ``most`` a row: what ``RelationBranch`` takes."""
    regions = max(1, min(most, batch.values.shape[1]))
    cut = {name: batch[name][:, :regions] for name in ("values", "boxes", "scores")}
    padded = pad(replace(batch, arrays={**batch.arrays, **cut}), clips, choose)
    mask = np.arange(regions) < padded["counts"][..., None]  # a row that is padding has no objects
    for name in cut:
        padded[name][~mask] = 0
    frames = np.tile(padded["frame_size"].astype(np.float32), 2)[:, :, None]
    boxes = np.zeros(padded["boxes"].shape, np.float32)
    np.divide(padded["boxes"], frames, out=boxes, where=mask[..., None])
    # Imported objects may have no times; their order is all there is then.
    begin = padded["times"][..., 0] if "times" in padded else np.arange(mask.shape[1], dtype=float)[None]
    seconds = np.where(padded["mask"], begin - begin[:, :1], 0).astype(np.float32)
    return {"values": padded["values"], "boxes": boxes, "scores": padded["scores"], "mask": mask, "seconds": seconds}


def fingerprints(store: Store, options: ModelOptions) -> dict[str, str]:
    """Of every stream a model reads: name -> fingerprint."""
    names = [*options.video_streams, *([options.text_stream] if options.text_stream else [])]
    return {name: store[name].fingerprint for name in names}


def inputs(store: Store, config: Config, text: Text) -> Inputs:
    """What a model and its objective are built for."""
    options = config.model
    widths = {name: store[name].spec["output"]["shape"][-1] for name in fingerprints(store, options)}
    tower = tower_settings(options.tower) if options.tower else {}
    own = tower_width(tower) if tower else options.word_dim
    if options.text == "words" and options.word_vectors:
        own = word_vectors(options.word_vectors)[0].shape[1]
    widths["text"] = widths[options.text_stream] if options.text_stream else own
    return Inputs(
        widths=widths,
        tower=tower,
        objects=tuple(name for name in options.video_streams if kind(store[name]) == "objects"),
        words=len(text.vocabulary or ()) if options.needs_words else 0,
        sentence=own if tower else sentence_width(text.stream),
        concepts=text.concepts.sizes if text.concepts else {},
    )


def sentence_width(stream: Stream | None) -> int:
    """Length of a caption's own vector in a stream of text, beside its tokens; 0 where it has none."""
    arrays = stream.spec["output"].get("clip_arrays", {}) if stream is not None else {}
    return arrays["sentence"]["shape"][-1] if "sentence" in arrays else 0
