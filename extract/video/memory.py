"""Shared memory of a feeder and its worker: a ring buffer with finished windows.

The feeder reserves space and the worker releases it in the same order. The offsets are sent through a pipe.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading

import numpy as np

# Initial size of a ring in bytes: it fits in CPU caches, and a larger ring was slower. It grows for larger windows.
RING_BYTES = 8 << 20
# Windows start at multiples of this many bytes.
ALIGNMENT = 64


def new_memory(size: int) -> int:
    """Return the descriptor of ``size`` bytes of anonymous memory. The last process that closes it frees it."""
    if hasattr(os, "memfd_create"):  # not limited by the size of /dev/shm, which is small in containers
        descriptor = os.memfd_create("amex", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Ring:
    """The feeder's end: reserves space for windows in order, and waits if the ring is full.

    Attributes:
        size: bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._map = mmap.mmap(descriptor, self.size)
        self._reserved = 0  # total bytes, over all rounds
        self._released = 0
        self._changed = threading.Condition()

    def release(self, until: int) -> None:
        """Release everything reserved before ``until``. Called from another thread than ``reserve``."""
        with self._changed:
            self._released = until
            self._changed.notify()

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int, int]:
        """Wait for space; return an array to fill, its offset, and the value to pass to ``release`` after use."""
        length = int(np.prod(shape)) * dtype.itemsize
        length += -length % ALIGNMENT
        if length > self.size:
            self._grow(2 * length)
        begin = self._reserved
        offset = begin % self.size
        if offset + length > self.size:  # an array must be contiguous: start the next round
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
        """Wait until the ring is empty, then enlarge it."""
        with self._changed:
            self._changed.wait_for(lambda: self._released == self._reserved)
            # The next round starts at a multiple of the new size.
            self._reserved += -self._reserved % size
            self._released = self._reserved
        os.ftruncate(self.descriptor, size)
        self.size, self._map = size, mmap.mmap(self.descriptor, size)


class RingReader:
    """The worker's end: maps arrays in the ring."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def array(self, size: int, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return the array at ``offset`` of a ring of ``size`` bytes, without a copy."""
        if self._map is None or len(self._map) != size:
            self._map = mmap.mmap(self.descriptor, size)
        return np.frombuffer(self._map, dtype, int(np.prod(shape)), offset).reshape(shape)

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)
