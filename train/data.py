"""Build padded batches from a store and a manifest: the clips and captions of a split, with their features."""

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
from .config import Config, DataOptions
from .options import Inputs, ModelOptions
from .selection import NEVER_EXTRACTED, DataError, kind, with_features
from .towers import tower_settings, tower_width, word_vectors

# Arrays that models read beside ``values``. Other arrays of a stream are not loaded.
LEARNED_FROM = {
    "clips": (),
    "objects": ("boxes", "scores", "counts", "frame_size", "times"),
    "text": ("sentence",),
}
# Bytes of a stream that an evaluation reads at once: each read has a fixed cost, above all from an object store.
READ_AHEAD = 64e6


class Table:
    """The rows of one stream for a list of clips or captions, kept in memory or read on demand."""

    def __init__(self, stream: Stream, keys: Sequence[str]) -> None:
        self.stream, self.keys = stream, as_array(keys)
        names, single = {"values", *LEARNED_FROM[kind(stream)]}, clip_arrays(stream.spec)
        self._forms = {name: form for name, form in {**row_arrays(stream.spec), **single}.items() if name in names}
        self._single = frozenset(single)
        self._batch: Batch | None = None

    @cached_property
    def bytes(self) -> int:
        """Size of the clips or captions in memory, in bytes."""
        rows = self.stream.index.rows[self.stream.index.find(self.keys.tolist())]
        entries = {True: len(self.keys), False: int(rows.sum())}
        return sum(entries[name in self._single] * entry_bytes({name: form}) for name, form in self._forms.items())

    def load(self) -> None:
        """Read all rows and keep them in memory."""
        self._batch = self._read(self.keys)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Batch, Sequence[int]]:
        """Return a batch that contains the clips or captions, and their positions in it."""
        if self._batch is not None:
            return self._batch, indices
        return self._read(self.keys[np.asarray(indices)]), range(len(indices))

    def _read(self, keys: np.ndarray) -> Batch:
        batch = self.stream.read(keys.tolist(), self._forms)
        # aminmax returns NaN if any value is NaN. Checking each half-precision value takes twice as long as reading.
        extremes = torch.aminmax(torch.from_numpy(batch.values)) if batch.values.size else ()
        if not all(map(torch.isfinite, extremes)):
            finite = np.isfinite(batch.values).all(axis=tuple(range(1, batch.values.ndim)))
            row = int(np.flatnonzero(~finite)[0])
            key = batch.clip_ids[int(np.searchsorted(batch.offsets, row, side="right")) - 1]
            raise DataError(
                f"stream {self.stream.name!r} of {self.stream.path.parent} holds NaN or infinity for {key!r}: "
                "import or extract them again under another stream name"
            )
        return batch


def concatenate(items: Sequence[Mapping[str, np.ndarray]], single: frozenset[str] = frozenset()) -> Batch:
    """Make a batch from arrays outside of a store, one mapping for each clip or caption.

    Args:
        single: names of the arrays that have one entry per clip instead of one per row.
    """
    arrays = {
        name: np.stack([item[name] for item in items]) if name in single else np.concatenate([i[name] for i in items])
        for name in items[0]
    }
    offsets = np.cumsum([0, *(len(item["values"]) for item in items)])
    return Batch(arrays, offsets, tuple(map(str, range(len(items)))), single)


class Split(Dataset):
    """The clips and captions of one split, with their features.

    Args:
        store: the features.
        clips: the clips of the split in the manifest.
        options: the model's options, with streams named.
        data: the options of batches and rows.
        text: the sources of caption batches.
        seed: seed of the drawn captions and rows.
        second: add to each training batch the videos again, as ``second``, with other randomly drawn rows.
        refuse: states that are an error; see ``with_features``.

    Attributes:
        clips: the clips with features, in manifest order, with or without captions.
        coverage: how many clips and captions take part, and why others are left out.
        captions: the different captions. Features are stored by caption.
        queries: for each clip, the indices of all its captions; a repeated caption appears each time.
        own: for each clip, the indices of its different captions.
        pairs: (clip, caption) indices of every different caption of every clip: the training pairs.
        with_captions: indices of the clips with captions. Other clips are only in the gallery.
        in_memory: whether ``load`` was called; else features are read from the store on demand.
    """

    def __init__(
        self,
        store: Store,
        clips: Sequence[Clip],
        options: ModelOptions,
        data: DataOptions,
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
        """Size of all features of the split in memory, with those of captions, in bytes."""
        return sum(table.bytes for table in self._all_tables)

    def load(self) -> None:
        """Read all features and keep them in memory."""
        for table in self._all_tables:
            table.load()
        self.in_memory = True

    def __len__(self) -> int:
        return len(self.with_captions) if self.data.captions == "one" else len(self.pairs)

    def pair(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the clip and caption of an index below ``len``. The epoch selects the caption."""
        if self.data.captions == "all":
            return self.pairs[index]
        clip = self.with_captions[index]
        own = self.own[clip]
        draw = np.random.default_rng((self.seed, epoch, clip)).integers(len(own)) if len(own) > 1 else 0
        return clip, own[draw]

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return a batch of pairs; an item is the epoch and an index below ``len``."""
        pairs = [self.pair(epoch, index) for epoch, index in items]
        clip, caption = np.array(pairs).T
        epoch = items[0][0]
        draws = [np.random.default_rng((self.seed, epoch, draw, *clip)) for draw in range(2)]
        batch = {
            "video": self.videos(clip, draws[0] if self.data.rows == "random" else None),
            "text": self.captions_batch(caption),
            "clip": torch.from_numpy(clip),
            "caption": torch.from_numpy(caption),
            "own": torch.from_numpy(self._own_captions(clip)),
        }
        if self.text.concepts is not None:
            captions = [(self.captions[i], [self.captions[j] for j in self.own[c]]) for c, i in pairs]
            batch["concepts"] = self.text.concepts.labels(captions)
        if self.second:
            batch["second"] = self.videos(clip, draws[1])
        return batch

    def _own_captions(self, clips: Sequence[int]) -> np.ndarray:
        """Return (clips, K) indices of all captions of each clip, padded with -1."""
        numbers = np.full((len(clips), max(len(self.own[clip]) for clip in clips)), -1)
        for row, clip in zip(numbers, clips, strict=True):
            row[: len(self.own[clip])] = self.own[clip]
        return numbers

    def videos(self, indices: Sequence[int], draw: np.random.Generator | None = None) -> dict[str, dict[str, Tensor]]:
        """Return padded features of clips by stream: ``values`` and ``mask``, for objects also boxes and scores.

        Args:
            draw: draws a random row from each of the equal segments; None takes the middle rows.
        """
        return {name: self.padded(*table[indices], draw) for name, table in self.tables.items()}

    def padded(self, batch: Batch, clips: Sequence[int], draw: np.random.Generator | None = None) -> dict[str, Tensor]:
        """Pad the clips at some positions of a one-stream batch; see ``videos``."""
        return padded(batch, clips, self.data, draw)

    def video_batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, dict[str, Tensor]]]]:
        """Yield all clips in stored order, ``size`` a batch: their indices and features, as from ``videos``."""
        for indices, rows_by_table in read_in_order(list(self.tables.values()), size):
            yield indices, {name: self.padded(*rows) for name, rows in zip(self.tables, rows_by_table, strict=True)}

    def caption_batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Yield all captions in stored order, ``size`` a batch: their indices and tensors."""
        if self.texts is None:
            for begin in range(0, len(self.captions), size):
                indices = np.arange(begin, min(begin + size, len(self.captions)))
                yield indices, self.captions_batch(indices)
            return
        for indices, (tokens,) in read_in_order([self.texts], size):
            captions = [self.captions[i] for i in indices]
            yield indices, self.text.batch(captions, tokens, self.data.max_tokens)

    def sample_rows(self, name: str) -> Tensor:
        """Return (rows, D) float32 rows of a stream from at most 10,000 clips, evenly spread."""
        sample = np.linspace(0, len(self.clips) - 1, min(len(self.clips), 10_000)).astype(int)
        padded = pad(*self.tables[name][sample])
        return torch.from_numpy(padded["values"][padded["mask"]]).float()

    def captions_batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the tensors of captions by index; see ``Text.batch``."""
        tokens = self.texts[indices] if self.texts is not None else None
        return self.text.batch([self.captions[i] for i in indices], tokens, self.data.max_tokens)


def keep_in_memory(splits: Sequence[Split], memory_gb: float) -> None:
    """Load the splits, in this order, as long as they fit into the memory; others are read from the store."""
    left = memory_gb * 1e9
    for split in splits:
        if split.bytes <= left:
            split.load()
            left -= split.bytes


def read_in_order(tables: Sequence[Table], size: int) -> Iterator[tuple[np.ndarray, list[tuple[Batch, Sequence[int]]]]]:
    """Yield all clips of tables, ``size`` at once, in the stored order of the largest: indices, and rows by table.

    If batches are small, several are read at once. Rows in memory come in the same order, so that sums of
    floating-point numbers do not depend on where rows are.
    """
    largest = max(tables, key=lambda table: table.bytes)
    order = largest.stream.stored_order(largest.keys.tolist())
    batches = max(1, int(READ_AHEAD * len(order) / max(1, largest.bytes) / size))
    for window in np.split(order, range(batches * size, len(order), batches * size)):
        rows = [table[window] for table in tables]
        for begin in range(0, len(window), size):
            part = slice(begin, begin + size)
            yield window[part], [(batch, places[part]) for batch, places in rows]


def collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch unchanged: ``Split.__getitems__`` already collates."""
    return batch


def spread_rows(counts: np.ndarray, most: int, draw: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Choose at most ``most`` rows of each clip: the middle of equal segments, or a random row of each segment.

    A random draw takes at most half of a clip's rows; else two draws of a short clip would be equal.

    Args:
        counts: (clips,) number of rows.

    Returns:
        (clips, rows) row numbers, and (clips,) how many of them are valid.
    """
    sizes = np.minimum(counts, most if draw is None else np.minimum(most, np.maximum(1, counts // 2)))
    columns = np.arange(max(1, sizes.max(initial=0)))
    places = np.full((len(counts), len(columns)), 0.5)
    if draw is not None:
        random = (columns < sizes[:, None]) & (sizes < counts)[:, None]
        places[random] = draw.random(np.count_nonzero(random))
    numbers = (columns + places) * counts[:, None] / np.maximum(1, sizes)[:, None]
    return np.minimum(numbers.astype(int), np.maximum(1, counts)[:, None] - 1), sizes


def padded(
    batch: Batch, clips: Sequence[int], data: DataOptions, draw: np.random.Generator | None = None
) -> dict[str, Tensor]:
    """Pad the clips at some positions of a one-stream batch; see ``Split.videos``."""
    choose = partial(spread_rows, most=data.max_rows, draw=draw)
    if "boxes" in batch.arrays:
        return tensors(pad_objects(batch, clips, choose, data.max_objects))
    return tensors(pad(batch, clips, choose))


def pad_objects(batch: Batch, clips: Sequence[int], choose: Choice, most: int) -> dict[str, np.ndarray]:
    """Pad the objects of clips, at most ``most`` per row, into the arrays that ``RelationBranch`` reads."""
    regions = max(1, min(most, batch.values.shape[1]))
    cut = {name: batch[name][:, :regions] for name in ("values", "boxes", "scores")}
    padded = pad(replace(batch, arrays={**batch.arrays, **cut}), clips, choose)
    mask = np.arange(regions) < padded["counts"][..., None]  # padding rows have no objects
    for name in cut:
        padded[name][~mask] = 0
    frames = np.tile(padded["frame_size"].astype(np.float32), 2)[:, :, None]
    boxes = np.zeros(padded["boxes"].shape, np.float32)
    np.divide(padded["boxes"], frames, out=boxes, where=mask[..., None])
    # Imported objects may have no times: use their order.
    begin = padded["times"][..., 0] if "times" in padded else np.arange(mask.shape[1], dtype=float)[None]
    seconds = np.where(padded["mask"], begin - begin[:, :1], 0).astype(np.float32)
    return {"values": padded["values"], "boxes": boxes, "scores": padded["scores"], "mask": mask, "seconds": seconds}


def fingerprints(store: Store, options: ModelOptions) -> dict[str, str]:
    """Return the fingerprints of all streams that a model reads, by name."""
    names = [*options.video_streams, *([options.text_stream] if options.text_stream else [])]
    return {name: store[name].fingerprint for name in names}


def inputs(store: Store, config: Config, text: Text) -> Inputs:
    """Return the input sizes for which to build a model and its objective."""
    options = config.model
    widths = {name: store[name].spec["output"]["shape"][-1] for name in fingerprints(store, options)}
    tower = tower_settings(options.tower) if options.tower else {}
    text_width = tower_width(tower) if tower else options.word_dim
    if options.text == "words" and options.word_vectors:
        text_width = word_vectors(options.word_vectors)[0].shape[1]
    widths["text"] = widths[options.text_stream] if options.text_stream else text_width
    return Inputs(
        widths=widths,
        tower=tower,
        objects=tuple(name for name in options.video_streams if kind(store[name]) == "objects"),
        words=len(text.vocabulary or ()) if options.needs_words else 0,
        sentence=text_width if tower else sentence_width(text.stream),
        concepts=text.concepts.sizes if text.concepts else {},
    )


def sentence_width(stream: Stream | None) -> int:
    """Return the dimension of the sentence vector in a text stream; 0 if it has none."""
    arrays = stream.spec["output"].get("clip_arrays", {}) if stream is not None else {}
    return arrays["sentence"]["shape"][-1] if "sentence" in arrays else 0
