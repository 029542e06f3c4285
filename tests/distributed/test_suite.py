"""The conformance suite (suite.py) over every transport and backend of this machine."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from ranks import run

JOBS = [
    (1, "shm", "rdma"), (2, "shm", "rdma"), (3, "shm", "rdma"), (4, "shm", "rdma"),
    (2, "tcp", "rdma"), (3, "tcp", "rdma"), (2, "mpi", "mpi"), (3, "mpi", "mpi"),
]  # fmt: skip


def check(outputs: list[str], size: int) -> None:
    found = {
        int(r): int(n) for o in outputs for r, n in re.findall(r"SUITE OK rank (\d+) \((\d+)", o)
    }
    assert sorted(found) == list(range(size)), "\n".join(outputs)
    assert all(n > 100 for n in found.values()), found


@pytest.mark.parametrize(("size", "transport", "backend"), JOBS)
def test_suite(size: int, transport: str, backend: str) -> None:
    if backend == "mpi":
        assert importlib.util.find_spec("mpi4py"), "install the extra: pip install '.[test]'"
        assert shutil.which("mpirun"), "install Debian's openmpi-bin"
        outputs = run(size, "suite.py", "--backend", "mpi", launcher="mpirun", timeout=240)
        check(outputs, size)
        return
    outputs = run(size, "suite.py", env={"EAGER_COMM_TRANSPORT": transport}, timeout=240)
    check(outputs, size)
    for rank, output in enumerate(outputs):
        others = re.findall(r"^  rank (\d+): (\w+) \(host", output, re.M)
        expected = {r: "self" if r == rank else transport for r in range(size)}
        assert {int(r): name for r, name in others} == expected


@pytest.mark.parametrize("algorithm", ["one_shot", "ring", "halving_doubling", "hierarchical"])
def test_every_algorithm(algorithm: str) -> None:
    """The table picks few of them on one machine; each is forced once."""
    names = ["all_reduce", "views", "identical", "reduce_scatter", "all_gather", "plans"]
    outputs = run(3, "suite.py", *names, env={"EAGER_COMM_ALGORITHM": algorithm}, timeout=240)
    check(outputs, 3)


def test_without_shared_tensors() -> None:
    """Ordinary memory goes through scratch, and the results are the same."""
    names = ["all_reduce", "views", "identical", "reduce_scatter", "all_gather", "broadcast"]
    outputs = run(2, "suite.py", *names, env={"EAGER_COMM_SHARED_TENSORS": "0"}, timeout=240)
    check(outputs, 2)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text("# everything\nmapped - - halving_doubling\ncopied - - halving_doubling\n")
    for output in run(2, "suite.py", "all_reduce", env={"EAGER_COMM_TABLE": str(table)}):
        chosen = re.findall(r"all_reduce of \d+ bytes: (\w+)", output)
        assert set(chosen) == {"halving_doubling"}, output
