"""What the machine that runs compiled bodies can do.  Needs llvmlite, but not Numba."""

from __future__ import annotations

import functools

import llvmlite.binding as llvm


@functools.cache
def features() -> frozenset[str]:
    """Names of the host's instruction set extensions, as LLVM spells them."""
    return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)


def has(feature: str) -> bool:
    """Whether the host has an instruction set extension."""
    return feature in features()


@functools.cache
def identity() -> str:
    """The processor and its extensions, for cache keys."""
    return f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()} {','.join(sorted(features()))}"


def lanes() -> int:
    """Lanes per vector: what fills one register with float32."""
    return 16 if has("avx512f") else 8 if has("avx2") else 4


def masks_are_free() -> bool:
    """Whether loads and stores of every element size can be masked by one instruction.

    Where not, loops are printed twice: full vectors, then the masked rest.
    """
    return has("avx512bw") and has("avx512vl")
