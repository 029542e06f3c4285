"""Failures, interrupts, rendezvous and the names of eager.distributed."""

import inspect
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from ranks import Ranks, environment, run

import eager.distributed as dist
from eager.distributed import errors
from eager.errors import ArgumentError, EagerError


def test_names_and_arguments_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch.distributed")
    ours = {name for name in dist.__all__ if inspect.isfunction(getattr(dist, name))}
    missing = {n for n in ours if not hasattr(torch, n)} - {"info", "by_id"}
    assert not missing
    # What torch has beyond these belongs to devices and engines that are not here.
    for name in sorted(ours - {"info", "by_id", "monitored_barrier"}):
        theirs = list(inspect.signature(getattr(torch, name)).parameters)
        mine = list(inspect.signature(getattr(dist, name)).parameters)
        assert mine[: len(theirs)] == theirs[: len(mine)], name


def test_outside_a_job() -> None:
    assert dist.is_available() and not dist.is_initialized()
    assert dist.group.WORLD is None
    with pytest.raises(errors.DistributedError, match="init_process_group"):
        dist.get_rank()
    with pytest.raises(errors.DistributedError, match="init_process_group"):
        dist.all_reduce(None)
    with pytest.raises(ArgumentError, match="rdma"):
        dist.init_process_group("gloo", "tcp://127.0.0.1:1", rank=0, world_size=1)
    with pytest.raises(ArgumentError, match="env://"):
        dist.init_process_group("rdma", "carrier://pigeon", rank=0, world_size=1)
    with pytest.raises(ArgumentError, match="rank"):
        dist.init_process_group("rdma", "tcp://127.0.0.1:1", rank=2, world_size=2)


def test_errors_are_of_one_family() -> None:
    for cls in (errors.PeerLost, errors.Mismatch, errors.Timeout, errors.AuthenticationError):
        assert issubclass(cls, errors.DistributedError) and issubclass(cls, EagerError)
    assert issubclass(errors.Timeout, TimeoutError)
    assert dist.DistError is errors.DistributedError
    lost = errors.PeerLost("gone", 3, "all_reduce, call 1 of group 0")
    assert (lost.rank, lost.in_flight) == (3, "all_reduce, call 1 of group 0")


def test_a_job_needs_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EAGER_COMM_SECRET", raising=False)
    monkeypatch.delenv("EAGER_COMM_INSECURE", raising=False)
    with pytest.raises(errors.AuthenticationError, match="EAGER_COMM_SECRET"):
        dist.init_process_group("rdma", "tcp://127.0.0.1:1", rank=0, world_size=1)
    monkeypatch.setenv("EAGER_COMM_INSECURE", "1")
    with pytest.raises(errors.AuthenticationError, match="loopback"):
        dist.init_process_group("rdma", "tcp://192.0.2.1:1", rank=0, world_size=1)


@pytest.mark.parametrize("name", ["EAGER_COMM_TIMEOUT", "EAGER_COMM_HEARTBEAT"])
def test_numbers_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGER_COMM_SECRET", "s")
    monkeypatch.setenv(name, "soon")
    with pytest.raises(ArgumentError, match=f"{name} is not usable"):
        dist.init_process_group("rdma", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    assert not dist.is_initialized()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("method", ["tcp", "file", "insecure"])
def test_rendezvous(method: str, tmp_path: Path) -> None:
    """Without a launcher's store: rank 0 serves it."""
    place = f"file://{tmp_path}/meet" if method == "file" else f"tcp://127.0.0.1:{free_port()}"
    if method == "file":
        (tmp_path / "meet").write_text("127.0.0.1 9\n")  # of an earlier job
    code = (
        "import sys, eager, eager.distributed as dist\n"
        "rank = int(sys.argv[1])\n"
        "dist.init_process_group('rdma', sys.argv[2], 60, 2, rank)\n"
        "x = eager.ones(3); dist.all_reduce(x); assert x.tolist() == [2.0] * 3\n"
        "dist.barrier(); dist.destroy_process_group()\n"
    )
    env = environment()
    if method == "insecure":
        del env["EAGER_COMM_SECRET"]
        env["EAGER_COMM_INSECURE"] = "1"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(r), place], env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for r in range(2)
    ]  # fmt: skip
    try:
        for job in jobs:
            output = job.communicate(timeout=120)[0]
            assert job.returncode == 0, output
    finally:
        for job in jobs:
            job.kill()
            job.wait()


@pytest.mark.parametrize("call", ["all_reduce", "recv", "recv from any"])
def test_ctrl_c_gets_through(call: str, tmp_path: Path) -> None:
    flag = tmp_path / "over"
    with Ranks(2, "rank_api.py", "interrupted", str(flag), call) as job:
        job.wait_for(0, "waiting")
        os.kill(job.processes[0].pid, signal.SIGINT)
        job.wait_for(0, "the group is broken")
        flag.touch()
        outputs = job.finish()
    assert "interrupted after" in outputs[0]


def test_ctrl_c_while_waiting_for_work() -> None:
    outputs = run(2, "rank_api.py", "interrupted_work")
    assert outputs[0].count("interrupted") == 2


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_killed_rank_is_named(transport: str) -> None:
    with Ranks(3, "rank_api.py", "killed", env={"EAGER_COMM_TRANSPORT": transport}) as job:
        assert job.wait() == [0, -signal.SIGKILL, 0], job.report()
        for rank in (0, 2):
            assert "lost rank 1" in job.output(rank), job.report()
            assert "the group is broken" in job.output(rank), job.report()


@pytest.mark.parametrize(
    ("scenario", "size"), [("again", 2), ("forked", 2), ("threads", 2), ("left", 3)]
)
def test_scenario(scenario: str, size: int) -> None:
    assert all("fine" in output for output in run(size, "rank_api.py", scenario))


def test_monitored_barrier_names_the_late() -> None:
    outputs = run(3, "rank_api.py", "late")
    assert all("rank 2 is late" in output for output in outputs[:2])


def test_large_tensors_need_no_copies() -> None:
    for output in run(2, "rank_api.py", "info"):
        assert "staged 0\n" in output
        assert "direct 0\n" not in output


def test_store() -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=20), secret="s")
    other = dist.TCPStore("127.0.0.1", store.port, timeout=20, secret="s")
    store.set("key", "value")
    assert other.get("key") == b"value"
    assert other.add("count", 2) == 2 and store.add("count", 3) == 5
    assert store.compare_set("key", "value", "new") == b"new"
    assert store.compare_set("key", "value", "newer") == b"new"
    assert store.check(["key"]) and not store.check(["key", "absent"])
    assert other.delete_key("key") and not other.delete_key("key")
    inner = dist.PrefixStore("a", dist.PrefixStore("b", store))
    inner.set("k", b"\0\xff")
    assert other.get("b/a/k") == b"\0\xff"
    with pytest.raises(errors.Timeout):
        store.wait(["absent"], timedelta(seconds=0.3))
    with pytest.raises(errors.AuthenticationError):
        dist.TCPStore("127.0.0.1", store.port, timeout=20, secret="another")
    store.close()
    with pytest.raises(errors.DistributedError):
        other.get("key")
