"""Whatever bytes come over a control channel: a million inputs for what takes them (libFuzzer)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from native_build import ROOT, build, run

pytestmark = pytest.mark.xdist_group("comm_fuzz")  # one process builds
# Inputs for each fuzzer; a slow one gets fewer.
RUNS = {
    "fuzz_frame": 400_000,
    "fuzz_join": 200_000,
    "fuzz_auth": 300_000,
    "fuzz_control": 150_000,
    "fuzz_store": 150_000,
    "fuzz_tcp": 200_000,
}


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
    clang = next(filter(None, map(shutil.which, names)), None)
    assert clang, "the fuzzers need clang: install clang and its libclang-rt-dev"
    options = ["-DEAGER_COMM_FUZZ=ON", f"-DCMAKE_CXX_COMPILER={clang}"]
    folder = tmp_path_factory.mktemp("fuzzers")
    return build(ROOT / "csrc/comm", folder, *options, target="comm_fuzzers")


def test_there_are_a_million_inputs() -> None:
    written = {source.stem for source in (ROOT / "csrc/comm/fuzz").glob("*.cpp")}
    assert set(RUNS) == written
    assert sum(RUNS.values()) >= 1_000_000


@pytest.mark.parametrize("name", RUNS)
def test_fuzz(name: str, fuzzers: Path, tmp_path: Path) -> None:
    found = tmp_path / "found-"
    flags = ["-timeout=20", "-rss_limit_mb=3000", "-max_len=512", "-print_final_stats=1"]
    printed = run(
        [str(fuzzers / name), f"-runs={RUNS[name]}", f"-artifact_prefix={found}", *flags],
        {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"},
        timeout=900,
    )
    units = re.search(r"stat::number_of_executed_units: (\d+)", printed)
    assert units and int(units[1]) >= RUNS[name], printed[-4000:]
