"""The rendezvous of nodes, on a store in memory and on the real one; training that goes on."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eager._C import comm
from eager.distributed.elastic.failures import Failure
from eager.distributed.elastic.leader import Leader
from eager.distributed.elastic.rendezvous import Member, NodeInfo, Round, Rules, Verdict

LONG = 60.0  # seconds; nothing waits that long unless it hangs


class MemoryStore:
    """A store without a server; shared by all that connect."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            return self._values[key]

    def wait(self, keys: list[str], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.check(keys), timeout):
                raise TimeoutError(keys)

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            total = int(self._values.get(key, b"0")) + amount
            self.set(key, str(total).encode())
            return total

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(k in self._values for k in keys)

    def remove(self, key: str) -> bool:
        with self._changed:
            return self._values.pop(key, None) is not None


class Node:
    """A member, and the news it got."""

    def __init__(self, connect: Callable[[], Any], rules: Rules, info: NodeInfo) -> None:
        self.news: queue.SimpleQueue[Round | Verdict | Exception] = queue.SimpleQueue()
        self.member = Member(connect(), connect(), "test/", info, rules, self.news.put)

    def round(self) -> Round:
        news = self.news.get(timeout=LONG)
        assert isinstance(news, Round), news
        return news

    def verdict(self) -> Verdict:
        news = self.news.get(timeout=LONG)
        assert isinstance(news, Verdict), news
        return news


class Cluster:
    """A store, a leader, and nodes."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect
        self.nodes: list[Node] = []
        self.leader: Leader | None = None

    def lead(self, **rules: Any) -> None:
        self.rules = Rules(**{"beat_interval": 0.05, "beat_limit": 30.0, **rules})
        self.leader = Leader(self.connect(), "test/", self.rules)
        self.leader.start()

    def join(self, host: str = "host", workers: int = 1, **info: Any) -> Node:
        self.nodes.append(Node(self.connect, self.rules, NodeInfo(host, workers, **info)))
        return self.nodes[-1]

    def close(self) -> None:
        assert self.leader
        self.leader.abandon("the test is over")
        for node in self.nodes:
            node.member.leave()
        self.leader.join(LONG)
        assert not self.leader.is_alive()


@pytest.fixture(params=["memory", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if request.param == "memory":
        shared = MemoryStore()
        made = Cluster(lambda: shared)
    else:
        server = comm.StoreServer("127.0.0.1", 0, "secret")
        made = Cluster(lambda: comm.Store("127.0.0.1", server.port, "secret", LONG))
    yield made
    made.close()


def failure(rank: int = 0, error: str = "") -> Failure:
    return Failure(rank, rank, "host", 1, 1, time.time(), error)


def test_one_node(cluster: Cluster) -> None:
    cluster.lead()
    node = cluster.join(workers=3)
    begun = node.round()
    assert begun == Round(0, 0, 0, 1, 0, 3, 0, 3)
    node.member.succeeded(0)
    assert node.verdict() == Verdict("finished")


def test_ranks_of_several_nodes_and_roles(cluster: Cluster) -> None:
    cluster.lead(min_nodes=3, max_nodes=3)
    first = cluster.join("a", 2, role="reader")
    leads = cluster.join("b", 1, role="trainer", leads=True)
    last = cluster.join("c", 4, role="trainer")
    assert leads.round() == Round(0, 0, 0, 3, 0, 7, 0, 5)  # the store's host is always first
    assert first.round() == Round(0, 0, 1, 3, 1, 7, 0, 2)
    assert last.round() == Round(0, 0, 2, 3, 3, 7, 1, 5)


def test_static_ranks_do_not_follow_arrival(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2)
    one = cluster.join("b", 3, node_rank=1)
    zero = cluster.join("a", 2, node_rank=0, leads=True)
    assert (zero.round().first_rank, one.round().first_rank) == (0, 2)


def test_success_needs_all_nodes(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2)
    nodes = [cluster.join(), cluster.join()]
    for node in nodes:
        node.round()
    nodes[0].member.succeeded(0)
    with pytest.raises(queue.Empty):
        nodes[0].news.get(timeout=0.2)
    nodes[1].member.succeeded(0)
    assert [n.verdict().why for n in nodes] == ["finished", "finished"]


def test_a_failure_restarts_all_and_then_ends_the_job(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2, max_restarts=1)
    a, b = cluster.join(), cluster.join()
    for number in (0, 1):
        assert (a.round().restarts, b.round().restarts) == (number, number)
        b.member.failed(number)
        assert (a.verdict().why, b.verdict().why) == ("restart", "restart")
        b.member.ready([failure(1)])
        # nothing begins while a node may still have workers of the old round
        with pytest.raises(queue.Empty):
            b.news.get(timeout=0.2)
        a.member.ready([failure(0, "PeerLost")])
    end = a.verdict()
    assert end == b.verdict() and end.why == "failed" and "1 restarts" in end.problem
    assert sorted(f.rank for f in end.failures) == [0, 1]


def test_two_failures_of_one_round_count_once(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2, max_restarts=1)
    nodes = [cluster.join(), cluster.join()]
    for node in nodes:
        node.round()
    for node in nodes:
        node.member.failed(0)
    for node in nodes:
        assert node.verdict().why == "restart"
        node.member.ready([])
    assert [n.round().restarts for n in nodes] == [1, 1]


def test_the_last_call_waits_for_more_nodes(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=2, last_call=LONG)
    a = cluster.join()
    with pytest.raises(queue.Empty):
        a.news.get(timeout=0.2)
    b = cluster.join()
    assert a.round().group_size == b.round().group_size == 2


def test_after_the_last_call_fewer_nodes_begin(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=4, last_call=0.1)
    assert cluster.join().round().group_size == 1


def test_a_node_that_comes_later_starts_a_new_round(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=2, last_call=0.0)
    a = cluster.join("a")
    assert a.round().world_size == 1
    b = cluster.join("b")
    ended = a.verdict()
    assert ended.why == "membership" and "b joined" in ended.problem
    a.member.ready([])
    again = a.round()
    assert (again.world_size, again.restarts, again.number) == (2, 0, 1)
    assert b.round().group_rank == 1


def test_a_node_too_many_waits_and_takes_a_free_place(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=1)
    a = cluster.join("a")
    a.round()
    spare = cluster.join("spare")
    with pytest.raises(queue.Empty):
        spare.news.get(timeout=0.2)
    a.member.leave()
    assert spare.round().world_size == 1
    spare.member.succeeded(1)
    assert spare.verdict().why == "finished"


def test_a_spare_learns_that_the_job_is_done(cluster: Cluster) -> None:
    cluster.lead()
    a = cluster.join("a")
    a.round()
    spare = cluster.join("spare")
    a.member.succeeded(0)
    assert a.verdict().why == spare.verdict().why == "finished"


def test_a_silent_node_is_lost_and_costs_no_restart(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=2, last_call=LONG, beat_limit=1.0)
    a, b = cluster.join("a"), cluster.join("b")
    a.round(), b.round()
    b.member._closed.set()  # no heartbeat any more, and no farewell
    # its peers' workers fail first, as they would
    a.member.failed(0)
    assert a.verdict().why == "restart"
    a.member.ready([failure(0, "PeerLost")])
    again = a.round()
    assert (again.world_size, again.restarts) == (1, 0)


def test_silence_alone_ends_the_round(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=2, last_call=LONG, beat_limit=1.0)
    a, b = cluster.join("a"), cluster.join("b")
    a.round(), b.round()
    b.member._closed.set()
    ended = a.verdict()
    assert ended.why == "membership" and "b was not heard of" in ended.problem
    a.member.ready([])
    assert a.round().world_size == 1


def test_a_node_that_was_taken_for_lost_joins_again(cluster: Cluster) -> None:
    cluster.lead(min_nodes=1, max_nodes=2, last_call=LONG, beat_limit=1.0)
    a, b = cluster.join("a"), cluster.join("b")
    a.round(), b.round()
    with b.member._lock:  # the heartbeat cannot be sent
        assert a.verdict().why == "membership"
    a.member.ready([])
    assert b.verdict().why == "membership"
    b.member.ready([])
    while a.round().world_size < 2:
        assert a.verdict().why == "membership"
        a.member.ready([])
    assert b.round().world_size == 2


def test_too_few_nodes(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2, join_timeout=0.2)
    a = cluster.join("a")
    end = a.verdict()
    assert end.why == "failed" and "1 of at least 2 nodes" in end.problem


def test_a_node_that_cannot_go_on_ends_the_job(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2)
    a, b = cluster.join("a"), cluster.join("b")
    a.round(), b.round()
    b.member.fatal("b: no such program")
    assert a.verdict() == b.verdict() == Verdict("failed", "b: no such program")


def test_an_event_that_was_numbered_but_never_written_is_skipped(cluster: Cluster) -> None:
    cluster.lead(beat_limit=1.0)
    cluster.connect().add("test/events", 1)  # by a node that died at this point
    assert cluster.join().round().world_size == 1


def test_news_of_an_old_round_changes_nothing(cluster: Cluster) -> None:
    cluster.lead(max_restarts=5)
    a = cluster.join()
    a.round()
    a.member.failed(0)
    a.verdict()
    a.member.ready([])
    assert a.round().restarts == 1
    a.member.failed(0)
    a.member.succeeded(0)
    a.member.succeeded(1)
    assert a.verdict().why == "finished"


def test_the_leader_s_end_ends_the_job(cluster: Cluster) -> None:
    cluster.lead(min_nodes=2, max_nodes=2)
    a = cluster.join("a")
    assert cluster.leader
    cluster.leader.abandon("the agent on host0 has ended")
    assert a.verdict() == Verdict("failed", "the agent on host0 has ended")


def test_a_store_that_goes_away_is_reported() -> None:
    server = comm.StoreServer("127.0.0.1", 0, "secret")
    port = server.port
    rules = Rules(beat_interval=0.05)
    node = Node(lambda: comm.Store("127.0.0.1", port, "secret", LONG), rules, NodeInfo("a", 1))
    del server
    assert isinstance(node.news.get(timeout=LONG), Exception)
    node.member.leave()


# --- training -------------------------------------------------------------------------------------


def launch(folder: Path, *words: str, **environ: str) -> tuple[str, str]:
    """Runs a script on two ranks; its output and the launcher's."""
    launcher = [sys.executable, "-m", "eager.distributed.run", "--nproc-per-node", "2"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EAGER_COMM")}
    done = subprocess.run(
        [*launcher, "--max-restarts", "2", *words],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
        capture_output=True,
        text=True,
        timeout=LONG * 3,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def train(folder: Path, *options: str) -> tuple[str, str]:
    """The same with the script of the Kubernetes tutorial."""
    script = Path(__file__).parents[2] / "tutorials" / "kubernetes" / "train.py"
    return launch(folder, str(script), "--steps", "60", *options)


def final_loss(output: str) -> float:
    found = re.search(r"final loss .* \((-?0x\S+)\)", output)
    assert found, output
    return float.fromhex(found[1])


def test_training_survives_a_killed_rank_bit_for_bit(tmp_path: Path) -> None:
    straight, _ = train(tmp_path, "--checkpoints", "straight")
    killed, log = train(tmp_path, "--checkpoints", "killed", "--die-at-step", "37")
    assert "dies after step 37" in killed and "killed by SIGKILL" in log
    # both ranks went on from the newest complete checkpoint, which was written meanwhile
    begun = [int(n) for n in re.findall(r"starts at step (\d+)", killed)]
    assert begun[0] == begun[1] == 0 and begun[2] == begun[3] and begun[2] in (10, 20, 30)
    assert final_loss(killed) == final_loss(straight)
    # and so does a run of its own from a checkpoint
    name = "step-000000050"
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "straight" / name, tmp_path / "again" / name)
    again, _ = train(tmp_path, "--checkpoints", "again")
    assert again.count("starts at step 50") == 2
    assert final_loss(again) == final_loss(straight)


HANGS = """
import os, signal, sys
import eager, eager.distributed as dist

dist.init_process_group()
total = eager.ones(8)
dist.all_reduce(total)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(total)
sys.stdout.write(f"sum {total.sum().item()}\\n")  # in one piece: ranks share the console
dist.destroy_process_group()
"""


def test_a_hanging_rank_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(HANGS)
    output, log = launch(tmp_path, "script.py", EAGER_COMM_HEARTBEAT="2")
    assert output.count("sum 16.0") == 2
    assert "PeerLost: " in log and "rank 1 is lost" in log
