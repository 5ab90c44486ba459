"""Collect windows in batches and encode them. On a GPU, the next batch is copied while the previous one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from ...errors import AmexError, first_line

# Batches on a GPU at a time: one runs, the other is copied or waits.
IN_FLIGHT = 2
# Maximum bytes of incomplete batches; there is one per frame size. Beyond it, the oldest is encoded incomplete.
PENDING_BYTES = 2 << 30
# Dtypes of windows, by NumPy's names.
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class Encoder(Protocol):
    """Encodes windows into the rows of a stream.

    Attributes:
        device: the device that the windows must be on.
    """

    device: torch.device

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode windows.

        Args:
            windows: (windows, frames, height, width, 3) on the device, uint8 or float32 in [0, 255].

        Returns:
            Arrays by name, at least ``values``, with one row per window, on any device.
        """


Owner = TypeVar("Owner")


@dataclass
class Batch(Generic[Owner]):
    """Windows of one shape, and the owner of each."""

    windows: torch.Tensor  # on the CPU, allocated for a full batch
    owners: list[Owner] = field(default_factory=list)


@dataclass
class Encoded(Generic[Owner]):
    """The output of an encoder for a batch: arrays with one row per owner."""

    owners: list[Owner]
    arrays: dict[str, np.ndarray]


class Batches(Generic[Owner]):
    """The batches of one stream. Results are in the order in which batches are complete, one or two batches later.

    If the device runs out of memory, later batches are smaller.

    Args:
        size: windows per batch.
        begins: called with the owners of a batch before it is encoded or waited for, and with None afterwards.
        note: called with lines for the user.
    """

    def __init__(
        self,
        encoder: Encoder,
        size: int,
        *,
        begins: Callable[[list[Owner] | None], None] = lambda owners: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.encoder = encoder
        self.size = size
        self._begins = begins
        self._note = note
        self._pending: dict[tuple[Any, ...], Batch[Owner]] = {}  # by shape and dtype of a window
        self._spare: dict[tuple[Any, ...], torch.Tensor] = {}  # memory of the last batch, for reuse
        self._running: deque[tuple[list[Owner], dict[str, torch.Tensor], torch.cuda.Event | None]] = deque()
        self._on_gpu = encoder.device.type == "cuda"
        self._copies = torch.cuda.Stream(encoder.device) if self._on_gpu else None

    def add(self, owner: Owner, pixels: np.ndarray) -> Iterator[Encoded[Owner]]:
        """Copy a window into its batch; yield the batches that are encoded by now.

        Args:
            owner: returned with the window's row.
            pixels: (frames, height, width, 3), uint8 or float32.
        """
        key = (*pixels.shape, pixels.dtype)
        batch = self._pending.get(key)
        if batch is None:
            needed = self.size * pixels.nbytes
            while (
                self._pending and needed + sum(each.windows.nbytes for each in self._pending.values()) > PENDING_BYTES
            ):
                yield from self._encode(self._pending.pop(next(iter(self._pending))))
            memory = self._spare.pop(key, None)
            if memory is None or len(memory) != self.size:
                memory = self._allocate(self.size, pixels.shape, DTYPES[pixels.dtype.name])
            batch = self._pending[key] = Batch(memory)
        # NumPy copies on this thread. torch's threads would wait for each other, because decoding uses the cores.
        batch.windows[len(batch.owners)].numpy()[...] = pixels
        batch.owners.append(owner)
        if len(batch.owners) == len(batch.windows):
            del self._pending[key]
            yield from self._encode(batch)
            if not self._on_gpu:  # on a GPU, a copy may still read this memory, and torch caches pinned memory itself
                self._spare = {key: batch.windows}

    def flush(self) -> Iterator[Encoded[Owner]]:
        """Encode the incomplete batches; yield all remaining results."""
        for key in list(self._pending):
            yield from self._encode(self._pending.pop(key))
        yield from self._finish(0)

    def _encode(self, batch: Batch[Owner]) -> Iterator[Encoded[Owner]]:
        windows, owners = batch.windows, batch.owners
        if self._on_gpu:  # pad: with one batch size, kernels are chosen once and no row depends on the batch's size
            windows[len(owners) :] = windows[0]
        else:
            windows = windows[: len(owners)]
        self._begins(owners)
        memory_error = None
        try:
            self._running.append((owners, *self._start(windows)))
        except torch.OutOfMemoryError as error:
            memory_error = first_line(error)
        if memory_error is not None:  # outside of the except block, so that the traceback no longer holds arrays
            yield from self._finish(0)  # frees the memory of the running batches
            yield from self._in_halves(batch, memory_error)
        self._begins(None)
        yield from self._finish(IN_FLIGHT - 1 if self._on_gpu else 0)

    def _allocate(self, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory for windows, pinned for copies to a GPU."""
        return torch.empty((size, *shape), dtype=dtype, pin_memory=self._on_gpu)

    def _start(self, windows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.cuda.Event | None]:
        """Start to encode; return the results, and the event after which they are complete."""
        if not self._on_gpu:
            return self.encoder(windows), None
        computing = torch.cuda.current_stream(self.encoder.device)
        with torch.cuda.stream(self._copies):
            copied = windows.to(self.encoder.device, non_blocking=True)
        computing.wait_stream(self._copies)
        copied.record_stream(computing)
        results = {}
        for name, array in self.encoder(copied).items():
            results[name] = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            results[name].copy_(array, non_blocking=True)
        event = torch.cuda.Event()
        event.record(computing)
        return results, event

    def _finish(self, left: int) -> Iterator[Encoded[Owner]]:
        """Yield results until only ``left`` batches are running."""
        while len(self._running) > left:
            owners, results, event = self._running.popleft()
            if event is not None:
                self._begins(owners)
                event.synchronize()
                self._begins(None)
            arrays = {name: array[: len(owners)].cpu().numpy() for name, array in results.items()}
            yield Encoded(owners, arrays)

    def _in_halves(self, batch: Batch[Owner], memory_error: str) -> Iterator[Encoded[Owner]]:
        """Encode a batch in two halves after an out-of-memory error; later batches are that small too."""
        size = len(batch.windows)
        if size == 1:
            raise AmexError(f"the device has no memory for one window: {memory_error}")
        if self._on_gpu:
            torch.cuda.empty_cache()
        half = -(-size // 2)
        if half < self.size:
            self.size = half
            self._note(f"no memory for batches of {size}; batches of {half} from now on")
        for begin in range(0, len(batch.owners), half):
            owners = batch.owners[begin : begin + half]
            memory = self._allocate(half, batch.windows.shape[1:], batch.windows.dtype)
            memory[: len(owners)] = batch.windows[begin : begin + len(owners)]
            yield from self._encode(Batch(memory, owners))
