"""Builds csrc with AddressSanitizer and UBSan and runs its own tests: no Python involved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.xdist_group("core")  # one process builds


def tool(name: str) -> str:
    """A build tool of this environment, else of the system."""
    here = Path(sys.executable).parent / name
    found = str(here) if here.exists() else shutil.which(name)
    assert found, f"{name} is not installed; install the extra: pip install '.[test]'"
    return found


def blas_library() -> str:
    """The OpenBLAS that the package uses."""
    import scipy_openblas32

    (library,) = Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so*")
    return str(library)


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("core")
    configure = [
        tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DEAGER_TESTS=ON", "-DEAGER_SANITIZE=ON",
        "-DEAGER_PYTHON=OFF", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    for command in (configure, [tool("cmake"), "--build", str(build), "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "core_tests"


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_core_under_sanitizers(core_tests: Path, isa: str) -> None:
    env = {
        **os.environ,
        "EAGER_ISA": isa,  # lowers what the processor offers, never raises it
        "EAGER_BLAS": blas_library(),
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run([str(core_tests)], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
