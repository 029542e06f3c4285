"""Building C++ alone, for tests that run it without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tool(name: str) -> str:
    """A build tool of this environment, else of the system."""
    here = Path(sys.executable).parent / name
    found = str(here) if here.exists() else shutil.which(name)
    assert found, f"{name} is not installed; install the extra: pip install '.[test]'"
    return found


def build(source: Path, build: Path, *options: str, target: str = "all") -> Path:
    """Configures and builds a CMake project in `build`; what the compiler says is the failure."""
    configure = [
        tool("cmake"), "-S", str(source), "-B", str(build), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options,
    ]  # fmt: skip
    make = [tool("cmake"), "--build", str(build), "-j", "2", "--target", target]
    for command in (configure, make):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build


def run(command: list[str], env: dict[str, str], timeout: float) -> str:
    """Runs a test program; its last lines are the failure.  Returns what it printed."""
    done = subprocess.run(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-12000:]}"
    return done.stdout


def without_random_addresses() -> list[str]:
    """What to put before a ThreadSanitizer program.

    Kernels that spread mappings over more bits than the sanitizer knows stop it at its start.
    """
    setarch = shutil.which("setarch")
    if setarch is None or subprocess.run([setarch, "-R", "true"], capture_output=True).returncode:
        return []  # a sandbox may forbid it; most kernels do not need it
    return [setarch, "-R"]
