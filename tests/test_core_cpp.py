"""Builds csrc with AddressSanitizer and UBSan and runs its own tests: no Python involved."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from native_build import ROOT, build, run

pytestmark = pytest.mark.xdist_group("core")  # one process builds


def blas_library() -> str:
    """The OpenBLAS that the package uses."""
    import scipy_openblas32

    (library,) = Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so*")
    return str(library)


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["-DEAGER_TESTS=ON", "-DEAGER_SANITIZE=ON", "-DEAGER_PYTHON=OFF"]
    folder = tmp_path_factory.mktemp("core")
    return build(ROOT, folder, *options, f"-DPython_EXECUTABLE={sys.executable}") / "core_tests"


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_core_under_sanitizers(core_tests: Path, isa: str) -> None:
    env = {
        **os.environ,
        "EAGER_ISA": isa,  # lowers what the processor offers, never raises it
        "EAGER_BLAS": blas_library(),
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    run([str(core_tests)], env, timeout=900)
