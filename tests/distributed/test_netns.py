"""Ranks on two hosts, with a bad wire between them: delay, lost packets, cut cables.

The hosts are network namespaces (netns.py).  Where these are not permitted the tests fail and say
what to allow; they are never skipped.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netns import ADDRESSES, Wire

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PORT = 29400  # free in every namespace
LIMIT = 150.0  # seconds that any of this may take on a machine that does other things, too
HEARTBEAT = 4.0  # seconds; more than a busy machine keeps a process from running

pytestmark = pytest.mark.xdist_group("netns")


class Rank:
    """One process of a job."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hear(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the rank ended: {self.end()}"
        return json.loads(line)

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Waits for its end; what was wrong, or nothing."""
        _, errors = self.process.communicate()
        return "" if self.process.returncode == 0 else f"{self.process.returncode}: {errors}"


@contextmanager
def job(wire: Wire, hosts: Sequence[int], scenario: str, **settings: str) -> Iterator[list[Rank]]:
    """Ranks 0, 1, ... on these hosts, which have met; killed when they take too long."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    env.update({"EAGER_COMM_SECRET": "only for these tests", **settings})
    env.update(
        WORLD_SIZE=str(len(hosts)),
        MASTER_ADDR=ADDRESSES[hosts[0]],
        MASTER_PORT=str(PORT),
        EAGER_COMM_HEARTBEAT=str(HEARTBEAT),
    )
    ranks: list[Rank] = []

    def kill() -> None:
        for rank in ranks:
            rank.process.kill()

    watchdog = threading.Timer(LIMIT, kill)
    watchdog.start()
    try:
        for number, host in enumerate(hosts):
            env.update(RANK=str(number), LOCAL_RANK=str(hosts[:number].count(host)))
            process = wire.hosts[host].popen(
                [sys.executable, str(HERE / "netns_rank.py"), scenario],
                env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            ranks.append(Rank(process))
        yield ranks
    finally:
        watchdog.cancel()
        kill()
        for rank in ranks:
            rank.process.communicate()


@pytest.mark.parametrize(
    ("delay", "loss", "rate"),
    [(0.0, 0.0, None), (0.01, 0.0, None), (0.002, 0.02, None), (0.001, 0.0, 8e6)],
    ids=["good", "slow", "lossy", "narrow"],
)
def test_two_hosts_compute_the_same(delay: float, loss: float, rate: float | None) -> None:
    with Wire(delay, loss, rate) as wire, job(wire, [0, 1], "collectives") as ranks:
        for rank in ranks:
            assert "tcp" in json.dumps(rank.hear()["info"])
        assert [rank.hear() for rank in ranks] == [{"done": True}] * 2
        assert [rank.end() for rank in ranks] == ["", ""]
        assert wire.carried > 5000
        assert (wire.lost > 50) == (loss > 0)


def test_shared_memory_within_a_host_and_tcp_between_hosts() -> None:
    with Wire(0.002, 0.005) as wire, job(wire, [0, 0, 1], "collectives") as ranks:
        texts = [json.dumps(rank.hear()["info"]) for rank in ranks]
        assert ["shm" in text for text in texts] == [True, True, False]
        assert all("tcp" in text for text in texts)
        assert [rank.hear() for rank in ranks] == [{"done": True}] * 3
        assert [rank.end() for rank in ranks] == [""] * 3


@pytest.mark.parametrize("hosts", [[0, 1], [0, 0, 1]], ids=["two", "three"])
def test_cut_cable_is_noticed_by_all(hosts: list[int]) -> None:
    """Packets vanish, and nobody is told: only silence says so."""
    with Wire(0.001) as wire, job(wire, hosts, "endless") as ranks:
        for rank in ranks:
            rank.hear()
        wire.cut()
        heard = [rank.hear() for rank in ranks]
        for host, what in zip(hosts, heard, strict=True):
            assert hosts[what["lost"]] != host, heard
            assert "all_reduce" in what["in_flight"]
            assert what["seconds"] < LIMIT / 2  # and not the time-out of operations
        assert [rank.end() for rank in ranks] == [""] * len(ranks)


def test_cut_cable_is_noticed_by_those_who_wait_and_those_who_compute() -> None:
    with Wire(0.001) as wire, job(wire, [0, 1], "waiting") as ranks:
        for rank in ranks:
            rank.hear()
        wire.cut()
        waiter = ranks[0].hear()
        assert waiter["lost"] == 1
        assert "barrier" in waiter["in_flight"]
        ranks[1].say()
        assert ranks[1].hear()["lost"] == 0
        assert [rank.end() for rank in ranks] == ["", ""]


def test_short_cut_is_survived() -> None:
    """Shorter than a heartbeat: TCP sends again what was lost."""
    with Wire(0.002) as wire, job(wire, [0, 1], "finite") as ranks:
        for rank in ranks:
            rank.hear()
        lost = wire.lost
        wire.cut()
        threading.Event().wait(HEARTBEAT / 4)
        wire.mend()
        heard = [rank.hear() for rank in ranks]
        assert all(what["done"] for what in heard)
        assert max(what["longest"] for what in heard) > HEARTBEAT / 8
        assert wire.lost > lost
        assert [rank.end() for rank in ranks] == ["", ""]


def test_host_without_a_secret_is_not_served() -> None:
    """Without a secret nothing is served but loopback, even by explicit choice."""
    settings = {"EAGER_COMM_SECRET": "", "EAGER_COMM_INSECURE": "1"}
    with Wire() as wire, job(wire, [0, 1], "finite", **settings) as ranks:
        for rank in ranks:
            assert "jobs without a secret are for the loopback" in rank.end()
