"""Builds csrc/comm alone and runs its own tests under sanitizers: no Python involved."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from native_build import ROOT, build, run, without_random_addresses

pytestmark = pytest.mark.xdist_group("comm_cpp")  # one build after another
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "LSAN_OPTIONS": f"suppressions={ROOT / 'csrc/comm/tests/lsan.supp'}",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_comm_under_sanitizers(sanitizer: str, tmp_path: Path) -> None:
    build(
        ROOT / "csrc/comm", tmp_path, "-DEAGER_COMM_TESTS=ON", f"-DEAGER_COMM_SANITIZE={sanitizer}",
    )  # fmt: skip
    before = without_random_addresses() if sanitizer == "thread" else []
    printed = run([*before, str(tmp_path / "comm_tests")], {**os.environ, **OPTIONS}, timeout=900)
    summary = re.search(r"(\d+) tests, 0 failed", printed)
    assert summary and int(summary[1]) > 0, printed[-4000:]
    if sanitizer != "thread":
        check_example(tmp_path / "comm_all_reduce")


def check_example(program: Path) -> None:
    """The example, as its first lines tell to run it; here under the sanitizers as well."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [str(program), str(rank), "2", "127.0.0.1", port], env={**os.environ, **OPTIONS},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank, process in enumerate(ranks):
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
            assert f"rank {rank}: 1048576 sums are right" in printed
            assert "0 bytes staged" in printed
    finally:
        for process in ranks:
            process.kill()
