"""The on-disk cache: a second process compiles nothing, and damage is repaired."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import eager
from eager.errors import IndexOutOfRange
from jit.fusion import compile_segment
from jit.parser import parse
from jit.runtime import cache

GRAPH = """graph(%0: f32[4,6], %1: f32[6,5]) {
    %2: f32[4,5] = matmul(%0, %1) %3: f32[4,5] = tanh(%2)
    %4: f32[4] = sum(%3; dims=[1], keepdim=false) return %3, %4 }"""

SCRIPT = f"""
import json, sys
import eager
from jit.fusion import compile_segment
from jit.parser import parse
from jit.runtime import native
executable = compile_segment(parse('''{GRAPH}'''), threads=2)
x, w = eager.ones(4, 6), eager.ones(6, 5)
total = executable.run([x, w])[1].sum().item()
print(json.dumps([native.stats.compiled, native.stats.loaded, "numba" in sys.modules, total]))
"""


def start(directory: Path) -> subprocess.Popen:
    environment = {**os.environ, "EAGER_CACHE_DIR": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> list:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


def test_second_process_compiles_nothing(tmp_path):
    compiled, loaded, _, total = finish(start(tmp_path))
    assert compiled > 0 and loaded == 0
    again = finish(start(tmp_path))
    assert again == [0, compiled, False, total]  # nor does it import Numba


def test_damaged_entries_are_compiled_again(tmp_path):
    compiled, *_ = finish(start(tmp_path))
    files = sorted(tmp_path.glob("*.o"))
    assert len(files) == compiled
    for i, f in enumerate(files):
        data = f.read_bytes()
        f.write_bytes(data[: len(data) // 2] if i % 2 else data[:-1] + b"?")
    assert finish(start(tmp_path))[:2] == [compiled, 0]
    assert finish(start(tmp_path))[:2] == [0, compiled]


def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    results = [finish(p) for p in processes]
    assert results[0][3] == results[1][3]
    assert not [f for f in tmp_path.iterdir() if f.suffix != ".o"]


def test_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("EAGER_CACHE_DIR", str(tmp_path / "deep" / "er"))
    key = cache.digest("a", "bc")
    assert key != cache.digest("ab", "c")
    assert cache.load(key) is None
    cache.store(key, b"code")
    assert cache.load(key) == b"code"
    monkeypatch.setenv("EAGER_CACHE_DIR", "")
    assert cache.directory() is None
    cache.store(key, b"code")
    assert cache.load(key) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EAGER_CACHE_DIR", str(tmp_path / "file"))
    cache.store(cache.digest("x"), b"code")
    assert cache.load(cache.digest("x")) is None


# --- launches ----------------------------------------------------------------------------------


def test_launch_gives_fresh_tensors():
    executable = compile_segment(parse(GRAPH), threads=2)
    x, w = eager.ones(4, 6), eager.ones(6, 5)
    first = executable.run([x, w])
    second = executable.run([x * 2, w])
    np.testing.assert_allclose(first[0].numpy(), np.tanh(np.full((4, 5), 6.0)), rtol=1e-6)
    assert first[0].data_ptr() != second[0].data_ptr()
    assert executable.launches == 1


def test_launch_checks_its_inputs():
    executable = compile_segment(parse(GRAPH), threads=1)
    x, w = eager.ones(4, 6), eager.ones(6, 5)
    for bad in ([x], [x, w.double()], [w, x], [eager.ones(6, 4).T, w]):
        with pytest.raises(ValueError, match="program"):
            executable.run(bad)


def test_an_index_out_of_range_raises_and_leaves_the_program_usable():
    graph = parse("""graph(%0: f32[4,6], %1: i64[3]) {
        %2: f32[3,6] = index_select(%0, %1; dim=0) return %2 }""")
    executable = compile_segment(graph, threads=1)
    x = eager.randn(4, 6)
    with pytest.raises(IndexOutOfRange, match="out of range"):
        executable.run([x, eager.tensor([0, 4, 1])])
    (row,) = executable.run([x, eager.tensor([0, -1, 1])])
    np.testing.assert_array_equal(row.numpy(), x.numpy()[[0, 3, 1]])


def test_threads_take_turns():
    executable = compile_segment(parse(GRAPH), threads=2)
    w = eager.ones(6, 5)
    wrong = []

    def work(scale: float) -> None:
        x = eager.ones(4, 6) * scale
        expected = np.tanh(np.full((4, 5), 6 * scale))
        results = [executable.run([x, w])[0].numpy() for _ in range(200)]
        wrong.extend(scale for r in results if not np.allclose(r, expected, rtol=1e-5))

    threads = [threading.Thread(target=work, args=(0.1 * i,)) for i in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_launch_costs_microseconds():
    """What a call adds to the work itself: a launch of almost no work."""
    import time

    graph = parse("graph(%0: f32[4]) { %1: f32[4] = neg(%0) return %1 }")
    executable = compile_segment(graph, threads=1)
    x = [eager.ones(4)]
    times = []
    for _ in range(2000):
        start_time = time.perf_counter()
        executable.run(x)
        times.append(time.perf_counter() - start_time)
    assert sorted(times)[len(times) // 10] < 10e-6
