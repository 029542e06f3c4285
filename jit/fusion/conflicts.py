"""Which epoch a task may run in: exact bookkeeping of who last read and wrote what.

Every buffer is divided into granules (runs of elements that every access takes as a whole).  For
each granule `Ledger` keeps the worker and the epoch of the last write, and of the latest reads
by two different workers since.  From these follows the earliest epoch in which a set of tasks is
safe: a task that depends on another worker's task must come at least one barrier later.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from eager.layout import Layout
from jit.fusion.tile import Buffer, Stage, Term, reads, writes

Array = np.ndarray[Any, np.dtype[Any]]

GRAIN = 8
"""Granules are at most so long, and n indices are cut at multiples of ``gcd(n, GRAIN)``: whether
they run along contiguous elements or not, so that equal extents are cut at equal places."""


class Access:
    """The elements one access of a stage touches, in granules.

    Attributes:
        buffer: which buffer.
        shape, strides, offset: of the granules, over the stage's space and, behind it, what
            computed coordinates may reach.
        unit: how many indices of each dimension make one granule step.
        exclusive: whether different indices (where they count at all) touch different granules.
    """

    def __init__(self, buffer: int, layout: Layout, terms: tuple[Term, ...], grain: int) -> None:
        self.buffer = buffer
        shape = [*layout.shape, *(t.size for t in terms)]
        strides = [*layout.strides, *(t.stride for t in terms)]
        self.unit = [1] * len(shape)
        for d, (n, s) in enumerate(zip(shape, strides, strict=True)):
            if s == 1 and n > 1 and grain > 1:
                self.unit[d] = grain
                shape[d] = n // grain
            elif n > 1:
                strides[d] = s // grain
        self.shape, self.strides, self.offset = shape, strides, layout.offset // grain
        order = sorted(
            ((abs(s), n) for n, s in zip(shape, strides, strict=True) if n > 1 and s), reverse=True
        )
        self.exclusive = all(
            s > sum((m - 1) * t for t, m in order[i + 1 :]) for i, (s, _) in enumerate(order)
        )

    def of(self, cells: Array) -> Array:
        """The touched granules of a per-granule array, as a view over the space."""
        size = cells.itemsize
        shape = [1 if s == 0 else n for n, s in zip(self.shape, self.strides, strict=True)]
        strides = [s * size for s in self.strides]
        return np.lib.stride_tricks.as_strided(cells[self.offset :], shape, strides)


def grain_of(buffer: Buffer, accesses: list[tuple[Layout, tuple[Term, ...]]]) -> int:
    """The longest granule (at most `GRAIN`) such that every access consists of whole ones."""
    grain = gcd(GRAIN, buffer.size) if buffer.size else 1
    for layout, terms in accesses:
        runs = 0
        dims = [*zip(layout.shape, layout.strides, strict=True), *(t[1:] for t in terms)]
        for n, s in dims:
            if n == 1:
                continue
            runs += s == 1
            grain = gcd(grain, n if s == 1 else s)
        grain = gcd(grain, layout.offset)
        if runs != 1:
            grain = 1
    return grain


class Ledger:
    """The state of all buffers while a schedule is made."""

    def __init__(self, buffers: list[Buffer], stages: list[Stage], workers: int) -> None:
        self.workers = workers
        places: dict[int, list[tuple[Layout, tuple[Term, ...]]]] = {}
        for stage in stages:
            for b, layout, terms in reads(stage):
                places.setdefault(b, []).append((layout, terms))
            for b, layout in writes(stage):
                places.setdefault(b, []).append((layout, ()))
        self.grain = {b: grain_of(buffers[b], accesses) for b, accesses in places.items()}

        def cells(b: int, value: int) -> Array:
            return np.full(-(-buffers[b].size // self.grain[b]), value, np.int16)

        self.writer = {b: cells(b, -1) for b in places}
        self.written = {b: cells(b, -1) for b in places}  # epoch
        self.reader = {b: cells(b, -1) for b in places}
        self.read = {b: cells(b, -1) for b in places}  # epoch of the latest read, by `reader`
        self.read_too = {b: cells(b, -1) for b in places}  # ... by any other worker
        # The one worker that accesses a granule; -1: none so far, -2: several
        self.owner = {b: cells(b, -1) for b in places}

    def accesses(self, stage: Stage) -> tuple[list[Access], list[Access]]:
        """(reads, writes) of a stage."""
        return (
            [Access(b, x, t, self.grain[b]) for b, x, t in reads(stage)],
            [Access(b, x, (), self.grain[b]) for b, x in writes(stage)],
        )

    @staticmethod
    def _ids(access: Access, dim: int, workers: Array) -> Array | None:
        """The worker of each touched granule: `workers` is that of each index along `dim` (or of
        all, if it has one).  None: several workers touch the same granule."""
        if workers.size == 1:
            return workers.reshape([1] * len(access.shape))
        if access.shape[dim] == 1 and access.unit[dim] == 1:
            return None if (workers != workers[0]).any() else workers[:1]
        if access.strides[dim] == 0 or not access.exclusive:
            return None
        shape = [1] * len(access.shape)
        shape[dim] = access.shape[dim]
        return workers[:: access.unit[dim]].reshape(shape)

    def earliest(
        self, accesses: tuple[list[Access], list[Access]], dim: int, workers: Array
    ) -> int:
        """The first epoch in which a stage may run, index i along `dim` by ``workers[i]``."""
        epoch = 0
        for access in [*accesses[0], *accesses[1]]:
            ids = self._ids(access, dim, workers)
            written, writer = (
                access.of(self.written[access.buffer]),
                access.of(self.writer[access.buffer]),
            )
            epoch = max(epoch, _after(written, writer, ids))
        for access in accesses[1]:
            ids = self._ids(access, dim, workers)
            b = access.buffer
            read, reader = access.of(self.read[b]), access.of(self.reader[b])
            epoch = max(epoch, _after(read, reader, ids))
            epoch = max(epoch, int(access.of(self.read_too[b]).max()) + 1)
        return epoch

    def record(
        self, accesses: tuple[list[Access], list[Access]], dim: int, workers: Array, epoch: int
    ) -> None:
        """Notes that a stage runs so."""
        for access in accesses[0]:
            self._record_read(access, self._ids(access, dim, workers), epoch)
        for access in accesses[1]:
            ids = self._ids(access, dim, workers)
            assert ids is not None
            b = access.buffer
            access.of(self.writer[b])[...] = ids
            access.of(self.written[b])[...] = epoch
            for cells in (self.reader, self.read, self.read_too):
                access.of(cells[b])[...] = -1
        for access in [*accesses[0], *accesses[1]]:
            owner = access.of(self.owner[access.buffer])
            ids = self._ids(access, dim, workers)
            if ids is None:
                owner[...] = -2
            else:
                owner[...] = np.where((owner == -1) | (owner == ids), ids, -2)

    def _record_read(self, access: Access, ids: Array | None, epoch: int) -> None:
        b = access.buffer
        read, reader = access.of(self.read[b]), access.of(self.reader[b])
        other = access.of(self.read_too[b])
        if ids is None:
            other[...] = np.maximum(other, epoch)
            newer = read < epoch
            reader[...] = np.where(newer, 0, reader)
            read[...] = np.maximum(read, epoch)
            return
        same = reader == ids
        newer = read <= epoch
        pushed = np.where(newer, read, epoch)  # what falls to second place
        other[...] = np.where(same, other, np.maximum(other, pushed))
        reader[...] = np.where(newer, ids, reader)
        read[...] = np.maximum(read, epoch)


def _after(epochs: Array, workers: Array, ids: Array | None) -> int:
    """The first epoch after accesses in `epochs` by `workers`, for tasks of workers `ids`."""
    if ids is None:
        return int(epochs.max()) + 1  # for some of the tasks it was another worker
    return int((epochs + (workers != ids)).max())
