"""The linters and type checkers, and the rules about who may know whom."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["eager", "jit", "csrc", "tests", "benchmarks", "tutorials"]


def run(*command: str) -> None:
    """Runs a tool of this environment and shows what it printed if it fails."""
    tool = Path(sys.executable).parent / command[0]
    found = str(tool) if tool.exists() else shutil.which(command[0])
    assert found, f"{command[0]} is not installed; install the extra: pip install '.[test]'"
    done = subprocess.run([found, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check() -> None:
    run("ruff", "check", *SOURCES)


def test_ruff_format() -> None:
    run("ruff", "format", "--check", *SOURCES)


def test_mypy() -> None:
    run("mypy")


@pytest.mark.xdist_group("quality")
def test_groups_share_a_worker(request: pytest.FixtureRequest) -> None:
    """Versions of pytest and pytest-xdist that do not fit ignore the mark in silence, and guests
    boot and libraries are built twice."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@quality")


def test_import_contracts() -> None:
    run("lint-imports")


def test_clang_format() -> None:
    files = [
        str(f.relative_to(ROOT))
        for folder in ("csrc", "jit")
        for f in (ROOT / folder).rglob("*")
        if f.suffix in (".cpp", ".h")
    ]
    run("clang-format", "--dry-run", "-Werror", *files)


def test_files_stay_readable() -> None:
    """A file is read at one sitting; 700 lines is the outer limit."""
    long = [
        (n, f.relative_to(ROOT))
        for folder in SOURCES
        for f in (ROOT / folder).rglob("*")
        if f.suffix in (".py", ".cpp", ".h") and (n := len(f.read_text().splitlines())) > 700
    ]
    assert not long


@pytest.mark.parametrize("folder", ["core", "comm"])
def test_core_knows_no_python(folder: str) -> None:
    """csrc/core and csrc/comm include neither Python, pybind11, csrc/bind nor each other."""
    other = {"core": "comm", "comm": "core"}[folder]
    allowed = re.compile(r'#include [<"](?!Python|pybind11|numpy|\.\./|bind/|' + other + "/)")
    for file in (ROOT / "csrc" / folder).rglob("*.[ch]*"):
        for line in file.read_text().splitlines():
            if line.startswith("#include"):
                assert allowed.match(line), f"{file.name}: {line}"


def test_eager_alone_loads_nothing_heavy() -> None:
    """`import eager` brings in neither the compiler nor what it needs."""
    code = (
        "import eager, sys; eager.ones(3).add(1);"
        "print([m for m in ('jit', 'numba', 'llvmlite', 'cupy', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_wheel_code_is_portable() -> None:
    """Nothing is compiled for the build machine: dispatch is at run time."""
    for file in [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]:
        assert "march=native" not in file.read_text()
