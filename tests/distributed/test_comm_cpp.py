"""Builds csrc/comm alone and runs its own tests under sanitizers: no Python involved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from native_build import ROOT, build, run, without_random_addresses

pytestmark = pytest.mark.xdist_group("comm_cpp")  # one build after another
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:suppressions="
    + str(ROOT / "csrc/comm/tests/tsan.supp"),
}


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_comm_under_sanitizers(sanitizer: str, tmp_path: Path) -> None:
    build(
        ROOT / "csrc/comm", tmp_path, "-DEAGER_COMM_TESTS=ON", f"-DEAGER_COMM_SANITIZE={sanitizer}",
        target="comm_tests",
    )  # fmt: skip
    before = without_random_addresses() if sanitizer == "thread" else []
    printed = run([*before, str(tmp_path / "comm_tests")], {**os.environ, **OPTIONS}, timeout=900)
    summary = re.search(r"(\d+) tests, 0 failed", printed)
    assert summary and int(summary[1]) > 0, printed[-4000:]
