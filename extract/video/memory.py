"""Memory that a feeder and its worker both map: a ring of bytes in which finished windows lie.

The feeder reserves, the worker releases, both in the same order. What is where is told by pipe.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading

import numpy as np

# Bytes of a ring: what caches hold. A larger ring was slower, and a window that is larger makes it grow.
RING_BYTES = 8 << 20
# Windows begin at multiples of so many bytes.
ALIGNMENT = 64


def new_memory(size: int) -> int:
    """The descriptor of ``size`` bytes of memory without a name, gone with the last process that has it open."""
    if hasattr(os, "memfd_create"):  # is not bound by /dev/shm, which containers make small
        descriptor = os.memfd_create("amex", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Ring:
    """The feeder's end: places for windows, in order, waiting where there is no room.

    Attributes:
        size: bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._map = mmap.mmap(descriptor, self.size)
        self._reserved = 0  # bytes since the beginning, in all rounds
        self._released = 0
        self._changed = threading.Condition()

    def release(self, until: int) -> None:
        """The worker needs no more what was reserved before ``until``. From another thread than the others' calls."""
        with self._changed:
            self._released = until
            self._changed.notify()

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int, int]:
        """An array to fill, the offset at which it lies, and what ``release`` is told when it is read."""
        length = int(np.prod(shape)) * dtype.itemsize
        length += -length % ALIGNMENT
        if length > self.size:
            self._grow(2 * length)
        begin = self._reserved
        offset = begin % self.size
        if offset + length > self.size:  # not in two pieces
            begin += self.size - offset
            offset = 0
        with self._changed:
            self._changed.wait_for(
                lambda: self._released == self._reserved or begin + length - self._released <= self.size
            )
        self._reserved = begin + length
        array = np.frombuffer(self._map, dtype, int(np.prod(shape)), offset).reshape(shape)
        return array, offset, self._reserved

    def _grow(self, size: int) -> None:
        """Makes the ring larger, once it is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._released == self._reserved)
            # The next round begins at a multiple of the new size.
            self._reserved += -self._reserved % size
            self._released = self._reserved
        os.ftruncate(self.descriptor, size)
        self.size, self._map = size, mmap.mmap(self.descriptor, size)


class Mapped:
    """The worker's end: arrays in a ring."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def array(self, size: int, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """What lies at ``offset`` of a ring of ``size`` bytes."""
        if self._map is None or len(self._map) != size:
            self._map = mmap.mmap(self.descriptor, size)
        return np.frombuffer(self._map, dtype, int(np.prod(shape)), offset).reshape(shape)

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)
