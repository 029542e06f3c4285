"""Compiles CUDA C++ with NVRTC from its PyPI wheel: no CUDA installation, no GPU needed.

The library is opened with ctypes on the first use, from ``site-packages/nvidia/*/lib`` (where the
wheels ``nvidia-cuda-nvrtc`` and ``nvidia-cuda-nvrtc-cu12`` put it), else from the loader's path.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eager.errors import DeviceError, EagerError, helpful

ARCHITECTURES = ("sm_80", "sm_90a")


class CompileError(EagerError):
    """The compiler refused a printed program; the text ends with its log."""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source.

    Attributes:
        arch: the real architecture it was compiled for, such as "sm_90a".
        cubin: machine code, as the driver's module loader takes it.
        ptx: the assembly it came from.
        log: warnings; empty if there were none.
        seconds: compile time.
    """

    arch: str
    cubin: bytes
    ptx: str
    log: str
    seconds: float


def find_library() -> Path | None:
    """The NVRTC library of the newest installed wheel, or None."""
    spec = importlib.util.find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return None
    found = [
        path
        for root in spec.submodule_search_locations
        for path in Path(root).glob("*/lib/libnvrtc.so.*")
        if "alt" not in path.name
    ]
    return max(found, key=lambda path: int(path.name.split(".so.")[1].split(".")[0]), default=None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    try:
        library = ctypes.CDLL(str(path) if path else "libnvrtc.so")
    except OSError as error:
        raise helpful(
            DeviceError,
            "nvrtc",
            "the CUDA compiler library cannot be loaded",
            expected="libnvrtc.so from the wheel nvidia-cuda-nvrtc",
            given=str(error),
            hint="pip install nvidia-cuda-nvrtc",
        ) from None
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> tuple[int, int]:
    """NVRTC's version.  Raises `DeviceError` if it is not installed."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compile(source: str, arch: str = "sm_80", options: Sequence[str] = ()) -> Compiled:
    """Compiles `source` to machine code for `arch`.

    Warnings do not fail the compilation; they are in the result's log.

    Raises:
        CompileError: the source does not compile; the text ends with the compiler's log.
        DeviceError: NVRTC is not installed.
    """
    library = _library()
    program = ctypes.c_void_p()

    def check(code: int) -> None:
        if code:
            reason = library.nvrtcGetErrorString(code).decode()
            raise CompileError(f"nvrtc: {reason}\n{_text(library, 'ProgramLog', program)}".strip())

    begin = time.perf_counter()
    check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"program.cu", 0, None, None
        )
    )
    try:
        flags = [f"--gpu-architecture={arch}", "--std=c++17", *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        check(library.nvrtcCompileProgram(program, len(flags), array))
        return Compiled(
            arch,
            _bytes(library, "CUBIN", program),
            _text(library, "PTX", program),
            _text(library, "ProgramLog", program).strip(),
            time.perf_counter() - begin,
        )
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, data)
    return data.raw


def _text(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    return _bytes(library, what, program).rstrip(b"\0").decode(errors="replace")
