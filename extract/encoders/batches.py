"""Windows on their way through an encoder, in batches: copied to the device while the batch before runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from ...errors import AmexError, first_line

# Batches on a GPU at once: one that runs, and one whose windows are being copied or wait for it.
IN_FLIGHT = 2
# Bytes of the batches that are being filled, one for each size of frames. Past that the oldest is encoded as it is.
PENDING_BYTES = 2 << 30
# What windows can be, by NumPy's names.
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class Encoder(Protocol):
    """What turns windows into the rows of a stream.

    Attributes:
        device: where it wants its windows.
    """

    device: torch.device

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays of a row each, with a leading dimension of the windows, on any device; ``values`` among them.

        Args:
            windows: (windows, frames, height, width, 3) on the device, uint8 or float32 in [0, 255].
        """


Owner = TypeVar("Owner")


@dataclass
class Batch(Generic[Owner]):
    """Windows of one shape, and whose they are."""

    windows: torch.Tensor  # on the CPU, with room for a whole batch
    owners: list[Owner] = field(default_factory=list)


@dataclass
class Encoded(Generic[Owner]):
    """What an encoder made of a batch: arrays with a leading dimension of the owners."""

    owners: list[Owner]
    arrays: dict[str, np.ndarray]


class Batches(Generic[Owner]):
    """The windows of one stream. Results come in the order in which batches are full, one or two batches later.

    Where the device has no memory for a batch, batches are smaller from then on.

    Args:
        size: windows a batch.
        begins: told whose windows a batch has before it is encoded or waited for; None when that is over.
        note: told, once, what the user should know.
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
        self._spare: dict[tuple[Any, ...], torch.Tensor] = {}  # memory of the last batch, which the next one may have
        self._running: deque[tuple[list[Owner], dict[str, torch.Tensor], torch.cuda.Event | None]] = deque()
        self._on_gpu = encoder.device.type == "cuda"
        self._copies = torch.cuda.Stream(encoder.device) if self._on_gpu else None

    def add(self, owner: Owner, pixels: np.ndarray) -> Iterator[Encoded[Owner]]:
        """Takes a copy of a window, and yields what is encoded by now.

        Args:
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
            room = self._spare.pop(key, None)
            if room is None or len(room) != self.size:
                room = self._room(self.size, pixels.shape, DTYPES[pixels.dtype.name])
            batch = self._pending[key] = Batch(room)
        # Not by torch, whose threads would wait for one another on cores that decode.
        batch.windows[len(batch.owners)].numpy()[...] = pixels
        batch.owners.append(owner)
        if len(batch.owners) == len(batch.windows):
            del self._pending[key]
            yield from self._encode(batch)
            if not self._on_gpu:  # whose copies may still be reading it; torch keeps pinned memory by itself
                self._spare = {key: batch.windows}

    def flush(self) -> Iterator[Encoded[Owner]]:
        """Encodes what makes no whole batch, and yields all that is still to come."""
        for key in list(self._pending):
            yield from self._encode(self._pending.pop(key))
        yield from self._finish(0)

    def _encode(self, batch: Batch[Owner]) -> Iterator[Encoded[Owner]]:
        windows, owners = batch.windows, batch.owners
        if self._on_gpu:  # of one size, so that kernels are chosen once and no row depends on how full its batch is
            windows[len(owners) :] = windows[0]
        else:
            windows = windows[: len(owners)]
        self._begins(owners)
        refusal = None
        try:
            self._running.append((owners, *self._start(windows)))
        except torch.OutOfMemoryError as error:
            refusal = first_line(error)
        if refusal is not None:  # the error is gone, and with its traceback the arrays that the encoder had made
            yield from self._finish(0)  # what runs has memory too
            yield from self._in_halves(batch, refusal)
        self._begins(None)
        yield from self._finish(IN_FLIGHT - 1 if self._on_gpu else 0)

    def _room(self, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory for windows, from which a GPU copies by itself."""
        return torch.empty((size, *shape), dtype=dtype, pin_memory=self._on_gpu)

    def _start(self, windows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.cuda.Event | None]:
        """Results, which are there once the event has come."""
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
        """Yields results until so many batches are still running."""
        while len(self._running) > left:
            owners, results, event = self._running.popleft()
            if event is not None:
                self._begins(owners)
                event.synchronize()
                self._begins(None)
            arrays = {name: array[: len(owners)].cpu().numpy() for name, array in results.items()}
            yield Encoded(owners, arrays)

    def _in_halves(self, batch: Batch[Owner], refusal: str) -> Iterator[Encoded[Owner]]:
        """A batch for which there was no memory, as ``refusal`` says, as smaller ones."""
        size = len(batch.windows)
        if size == 1:
            raise AmexError(f"the device has no memory for one window: {refusal}")
        if self._on_gpu:
            torch.cuda.empty_cache()
        half = -(-size // 2)
        if half < self.size:
            self.size = half
            self._note(f"no memory for batches of {size}; batches of {half} from now on")
        for begin in range(0, len(batch.owners), half):
            owners = batch.owners[begin : begin + half]
            room = self._room(half, batch.windows.shape[1:], batch.windows.dtype)
            room[: len(owners)] = batch.windows[begin : begin + len(owners)]
            yield from self._encode(Batch(room, owners))
