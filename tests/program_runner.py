"""Runs programs on NumPy arrays, one task at a time, in any order the barriers allow.

This is the reference for what a schedule promises.  The workers of an epoch run one after the
other in a chosen order, which a correct program cannot notice, and intermediates begin as NaN, so
that a read which comes too early shows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from jit.fusion.bodies import FIRST, GEMM
from jit.fusion.program import Program
from jit.graph import numpy_dtype
from jit.runtime import native

Array = np.ndarray[Any, Any]
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


def _gemm(buffers: Sequence[Array], words: Sequence[int]) -> None:
    kind, m, n, k, batch = words[:5]
    a, b, c = words[5:10], words[10:15], words[15:19]
    dtype = np.float64 if kind else np.float32

    def view(buffer: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        flat = buffers[buffer].view(dtype)[offset:]
        return np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides])

    x = view(a[0], a[1], (batch, m, k), (a[4], a[2], a[3]))
    y = view(b[0], b[1], (batch, k, n), (b[4], b[2], b[3]))
    z = view(c[0], c[1], (batch, m, n), (c[3], c[2], 1))
    z[...] = x @ y + (z if words[19] else 0)


def run(
    program: Program, inputs: Sequence[Array], *, order: str = "forward"
) -> tuple[list[Array], int]:
    """The outputs, and the error flag.  Inputs that are overwritten are changed in place.

    `order`: the workers of each epoch "forward", "backward", or "last epoch first".
    """
    plan = program.plan
    arena = np.full(max(program.arena, 1), 0xFF, np.uint8)  # floats: NaN
    buffers: list[Array] = []
    for b in plan.buffers:
        if b.kind == "arena":
            at = program.offsets.get(b.id, 0)
            buffers.append(arena[at : at + b.nbytes])
        elif b.data is not None:
            buffers.append(np.ascontiguousarray(b.data))
        elif b.kind == "output":
            buffers.append(np.full(b.nbytes, 0xFF, np.uint8))
        else:
            buffers.append(np.zeros(1, np.int64))
    for number, array in zip(plan.inputs, inputs, strict=True):
        assert array.flags.c_contiguous
        if number is not None:
            buffers[number] = array.reshape(-1)
    addresses = native.addresses(program.bodies)
    table = (ctypes.c_void_p * len(buffers))(*[b.ctypes.data for b in buffers])
    words = program.words
    workers = range(program.workers)
    for epoch in range(program.epochs):
        for worker in workers if order == "forward" else reversed(workers):
            at, end = program.starts[epoch * program.workers + worker :][:2]
            while at < end:
                length, body = words[at], words[at + 1]
                if body == GEMM:
                    _gemm(buffers, words[at + 2 : at + length].tolist())
                else:
                    pointer = words.ctypes.data + 8 * (int(at) + 2)
                    _BODY(addresses[body - FIRST])(ctypes.addressof(table), pointer)
                at += length
    outputs = [
        buffers[b].reshape(-1).view(np.uint8).view(numpy_dtype(dtype)).reshape(shape)
        for b, shape, dtype in plan.outputs
    ]
    return outputs, int(buffers[0][0])
