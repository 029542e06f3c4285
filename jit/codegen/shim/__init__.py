"""Runs printed CUDA C++ without a GPU: compiled by the host's C++ compiler, threads as fibers.

`compile` puts the source between ``host.h`` (CUDA's words for a C++ compiler) and ``launch.h``
(an entry point for ctypes).  `Kernel.launch` runs every thread of every block as a fiber that is
switched where CUDA threads wait, in an order the caller chooses; a launch that cannot finish
raises instead of hanging.  It shows missing barriers and uses of unwritten memory, not data
races within what runs between two waits, and says nothing about speed.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eager.errors import DeviceError, EagerError, IndexOutOfRange, helpful
from jit.codegen.cuda import CudaProgram
from jit.fusion.tile import FLAGS, Buffer
from jit.graph import numpy_dtype

HEADERS = Path(__file__).parent
Array = np.ndarray[Any, Any]

# Launch orders.  A block always goes as far as it can before another; then comes the next one, the
# lowest, or the highest that can go on.  Other numbers seed random choices.
IN_TURN, LOWEST_FIRST, HIGHEST_FIRST = 0, 1, 2


class LaunchError(EagerError):
    """A launch that could not finish; the text says which threads wait where."""


class Kernel:
    """A compiled source.  Made by `compile`."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.threads = threads
        self._run = library.shim_run

    def launch(
        self,
        buffers: Sequence[Array],
        words: Array,
        starts: Array,
        workers: int,
        *,
        blocks: int | None = None,
        order: int = IN_TURN,
        arrived: Array | None = None,
    ) -> None:
        """Runs the kernel once, to its end.  Shared memory is filled with 0xFF, NaN, before.

        Args:
            buffers: base addresses, as contiguous arrays; written in place.
            words: the instruction table, int64.
            starts: int64, ``epochs * workers + 1`` offsets into `words`.
            workers: columns of `starts`.
            blocks: grid size; default: one per worker.
            order: who goes first where the machine may choose; see the constants.
            arrived: the grid barrier's counter (one uint64), kept between launches.

        Raises:
            LaunchError: threads wait for what can no longer come, or a block's threads meet at
                different ``__syncthreads``.
        """
        words, starts = (np.ascontiguousarray(a, np.int64) for a in (words, starts))
        epochs = (len(starts) - 1) // workers
        counter = np.zeros(1, np.uint64) if arrived is None else arrived
        addresses = (ctypes.c_void_p * max(len(buffers), 1))(*(b.ctypes.data for b in buffers))
        problem = ctypes.create_string_buffer(8192)
        failed = self._run(
            addresses,
            ctypes.c_void_p(words.ctypes.data),
            ctypes.c_void_p(starts.ctypes.data),
            workers,
            epochs,
            ctypes.c_void_p(counter.ctypes.data),
            ctypes.c_uint(workers if blocks is None else blocks),
            ctypes.c_ulonglong(order),
            problem,
            ctypes.c_size_t(len(problem)),
        )
        if failed:
            raise LaunchError(f"launch: {problem.value.decode()}")


@functools.cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="eager-shim-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise helpful(
        DeviceError, "shim", "there is no C++ compiler", "c++, g++ or clang++", "none on PATH",
        "set CXX",
    )  # fmt: skip


@functools.cache
def compile(source: str, threads: int = 32) -> Kernel:
    """Compiles a printed program for blocks of `threads` threads (a power of two, at least 16).

    The same source and block size are compiled once per process.

    Raises:
        EagerError: the compiler refused the source; the text ends with its messages.
        DeviceError: there is no C++ compiler.
    """
    stem = _directory() / f"program{len(list(_directory().glob('*.cpp')))}"
    unit, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    unit.write_text(
        f'#include "host.h"\n#line 1 "program.cu"\n{source}\n#line 1 "tail"\n#include "launch.h"\n'
    )
    # fortified longjmp refuses to change stacks, which is what fibers do
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"]
    done = subprocess.run(
        [_compiler(), *flags, f"-DTHREADS={threads}", f"-I{HEADERS}", unit, "-o", library],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EagerError(f"shim: the C++ compiler refused the program\n{done.stderr}")
    return Kernel(ctypes.CDLL(str(library)), threads)


def _poisoned(nbytes: int) -> Array:
    """Memory filled with 0xFF: NaN in every floating dtype, -1 in every signed integer dtype."""
    return np.full(max(nbytes, 1), 0xFF, np.uint8)


def run(
    cuda: CudaProgram, inputs: Sequence[Array], *, threads: int = 32, order: int = IN_TURN
) -> list[Array]:
    """Launches a printed program once, on poisoned memory.

    Args:
        cuda: the program.
        inputs: the graph's inputs, as arrays of its types.  Those that the program writes to are
            written in place if they are contiguous.
        threads: block size to compile for; small ones are faster here.
        order: see `Kernel.launch`.

    Returns:
        The graph's outputs.

    Raises:
        LaunchError: the launch could not finish.
        IndexOutOfRange: a computed index was out of range.
    """
    program = cuda.program
    plan = program.plan
    arena = _poisoned(program.arena)
    given = {b: np.ascontiguousarray(x) for b, x in zip(plan.inputs, inputs, strict=True)}

    def memory(buffer: Buffer) -> Array:
        if buffer.id in given:
            return given[buffer.id]
        if buffer.kind == "flags":
            return np.zeros(1, np.int64)
        if buffer.data is not None:
            return np.ascontiguousarray(buffer.data)
        if buffer.id in program.offsets:
            start = program.offsets[buffer.id]
            return arena[start : start + max(buffer.nbytes, 1)]
        return _poisoned(buffer.nbytes or 8)

    buffers = [memory(b) for b in plan.buffers]
    kernel = compile(cuda.source, threads)
    kernel.launch(
        buffers, program.words, program.starts, program.workers, blocks=cuda.blocks, order=order
    )
    flag = int(buffers[FLAGS][0])
    if flag:
        name = plan.buffers[flag - 1].name or f"buffer {flag - 1}"
        raise IndexOutOfRange(f"launch: an index into {name} is out of range")
    return [
        buffers[b].reshape(-1).view(numpy_dtype(dtype))[: math.prod(shape)].reshape(shape)
        for b, shape, dtype in plan.outputs
    ]
