"""Machine code for bodies: compiled by Numba, or loaded from the code cache without it."""

from __future__ import annotations

import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

import eager.scalar
import eager.scalar_math
import jit.codegen.printer
from jit.codegen import target
from jit.codegen.numba import print_body
from jit.fusion.bodies import Body
from jit.runtime import cache


@dataclass(slots=True)
class CodeStats:
    """How bodies were obtained in this process.

    Attributes:
        compiled: by Numba.
        loaded: from the code cache.
        reused: already in memory.
    """

    compiled: int = 0
    loaded: int = 0
    reused: int = 0


stats = CodeStats()
_lock = threading.RLock()
_addresses: dict[str, int] = {}


@functools.cache
def _environment() -> str:
    """Everything besides a body's source that determines its code."""
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("numba", "llvmlite")]
    codegen = Path(jit.codegen.printer.__file__).parent
    sources = [
        Path(f).read_text()
        for f in (
            eager.scalar.__file__, eager.scalar_math.__file__, codegen / "vectors.py",
            codegen / "memory.py", codegen / "target.py", __file__,
        )
    ]  # fmt: skip
    return cache.digest(*versions, target.identity(), *sources)


@functools.cache
def _engine() -> Any:
    """The linker of object code; lives as long as the process, as the code does."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def source(body: Body, name: str = "tile") -> str:
    """The Python source of a body for this machine."""
    return print_body(body, target.lanes(), split=not target.masks_are_free(), name=name)


def addresses(bodies: Sequence[Body]) -> list[int]:
    """The entry points of compiled bodies: ``void(void* const* buffers, const int64_t* ins)``."""
    with _lock:
        return [_address(body) for body in bodies]


def _address(body: Body) -> int:
    key = cache.digest(source(body), _environment())
    if key in _addresses:
        stats.reused += 1
        return _addresses[key]
    name = f"tile_{key[:24]}"
    code = cache.load(key)
    if code is None:
        code = compile_source(source(body, name), name)
        cache.store(key, code)
        stats.compiled += 1
    else:
        stats.loaded += 1
    _addresses[key] = load(code)
    return _addresses[key]


def compile_source(text: str, name: str, lanes: int | None = None) -> bytes:
    """Machine code of a printed body: a line with the entry point's symbol, then object code.

    Args:
        text: as printed by `jit.codegen.numba.print_body`.
        name: the function's name in it.
        lanes: for which `text` was printed, if not for this machine.
    """
    import numba

    from jit.codegen.memory import namespace

    names = namespace(lanes or target.lanes())
    exec(compile(text, f"<{name}>", "exec"), names)
    signature = numba.types.void(numba.types.voidptr, numba.types.voidptr)
    compiled: Any = numba.cfunc(signature, error_model="numpy")(names[name])
    library = compiled._library
    defined = [f.name for f in library._final_module.functions if not f.is_declaration]
    (symbol,) = (s for s in defined if s.startswith("cfunc."))
    return b"\n".join([symbol.encode(), library._get_compiled_object()])


def load(code: bytes) -> int:
    """Links what `compile_source` gave into the process; gives the entry point."""
    symbol, _, object_code = code.partition(b"\n")
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    return int(engine.get_function_address(symbol.decode()))
