"""How the agents of a job's nodes agree on who takes part, round after round.

A *round* is one start of all workers.  One node, the host of the store, runs a `Leader`, a
thread that decides alone; the others talk to it through keys of the store:

============== ========== =======================================================================
key            written by meaning
============== ========== =======================================================================
``events``     nodes      counter that numbers the events
``event/<k>``  nodes      what happened: join, ready, failed, succeeded, leave, fatal
``beat/<id>``  nodes      counter that shows the node is alive
``node/<id>``  leader     answer to a join: the next round
``round/<n>``  leader     the round has begun, with these members; or: the job is over
``end/<n>``    leader     the round is over: stop the workers, and why
============== ========== =======================================================================

Nobody polls: the leader waits for the next event, nodes for the next ``round`` or ``end`` key, and
the store answers when the key appears.  Only heartbeats are looked at in intervals.

After ``end`` every node stops its workers and reports ready.  The next round begins when all
nodes that live have done so, hence no worker of the old round sees one of the new.  The *last
call*, the time given to stragglers when there are enough nodes but fewer than the maximum,
applies to the first round only: later rounds begin at once, and who comes late starts another.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from eager.distributed.elastic.failures import Failure
from eager.distributed.errors import DistributedError

__all__ = ["KeyValueStore", "Member", "NodeInfo", "Round", "Rules", "Verdict", "put_json"]

_SLICE = 0.2  # seconds of waiting after which a member looks whether it has left


class KeyValueStore(Protocol):
    """What is used of a store; `eager._C.comm.Store` has it."""

    def set(self, key: str, value: bytes) -> None:
        """Stores a value."""

    def get(self, key: str) -> bytes:
        """The value of a key."""
        ...

    def wait(self, keys: list[str], timeout: float) -> None:
        """Waits for keys; raises `TimeoutError`."""

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter and returns the sum."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...

    def remove(self, key: str) -> bool:
        """Removes a key."""
        ...


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node says of itself.

    Attributes:
        host: its name, for reports.
        workers: how many it starts.
        role: the role of its workers.
        node_rank: its fixed number; None: the leader gives one.
        leads: it hosts the store.
    """

    host: str
    workers: int
    role: str = "default"
    node_rank: int | None = None
    leads: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What the leader goes by; times in seconds.

    Attributes:
        min_nodes: a round needs that many.
        max_nodes: and takes no more; others wait as spares.
        max_restarts: how many failures of workers are forgiven.
        join_timeout: for enough nodes to come.
        last_call: how long the first round waits for more nodes than ``min_nodes``.
        beat_interval: between two heartbeats of a node.
        beat_limit: silence after which a node is lost.
    """

    min_nodes: int = 1
    max_nodes: int = 1
    max_restarts: int = 0
    join_timeout: float = 600.0
    last_call: float = 30.0
    beat_interval: float = 1.0
    beat_limit: float = 10.0


@dataclass(frozen=True, slots=True)
class Round:
    """One node's place in a round.

    Attributes:
        number: of the round, from 0.
        restarts: how many failures were forgiven so far.
        group_rank: the node's number in this round.
        group_size: number of nodes.
        first_rank: rank of the node's first worker.
        world_size: number of workers of all nodes.
        role_rank: number of the node's first worker among those of its role.
        role_size: number of workers of its role.
    """

    number: int
    restarts: int
    group_rank: int
    group_size: int
    first_rank: int
    world_size: int
    role_rank: int
    role_size: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a round ended.

    Attributes:
        why: ``"finished"``, ``"failed"`` (both end the job), ``"restart"`` or ``"membership"``.
        problem: in words.
        failures: the workers that failed.
    """

    why: str
    problem: str = ""
    failures: list[Failure] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.why in ("finished", "failed")

    def to_json(self) -> dict[str, Any]:
        """A dict that survives JSON."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        failures = [Failure(**f) for f in value["failures"]]
        return Verdict(value["why"], value["problem"], failures)


def put_json(store: KeyValueStore, key: str, value: object) -> None:
    """Stores a value as JSON."""
    store.set(key, json.dumps(value).encode())


class Member:
    """A node's side: tells the leader what happens, and its agent what the leader decides.

    Args:
        store: a connection to the store.
        watched: another one, for waiting.
        prefix: of all keys.
        info: of this node.
        rules: the intervals are used.
        notify: called, from a thread, with each `Round` this node takes part in, each `Verdict`,
            and the exception that ended the connection.
    """

    def __init__(
        self,
        store: KeyValueStore,
        watched: KeyValueStore,
        prefix: str,
        info: NodeInfo,
        rules: Rules,
        notify: Callable[[Round | Verdict | Exception], None],
    ) -> None:
        self._store, self._watched = store, watched
        self._prefix, self._info, self._rules, self._notify = prefix, info, rules, notify
        self._lock = threading.Lock()  # of _store
        self._closed = threading.Event()
        self._id = 0
        self._join()
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            for loop, name in ((self._beat, "heartbeat"), (self._watch, "rendezvous"))
        ]
        for thread in self._threads:
            thread.start()

    def ready(self, failures: list[Failure]) -> None:
        """This node has stopped its workers; those failed by themselves."""
        self._send("ready", failures=[f.to_json() for f in failures])

    def failed(self, number: int) -> None:
        """A worker of this node failed in round ``number``."""
        self._send("failed", round=number)

    def succeeded(self, number: int) -> None:
        """All workers of this node ended well in round ``number``."""
        self._send("succeeded", round=number)

    def fatal(self, problem: str) -> None:
        """This node cannot go on, and neither can the job."""
        with contextlib.suppress(DistributedError):
            self._send("fatal", problem=problem)

    def leave(self) -> None:
        """This node takes part no more."""
        self._closed.set()
        with contextlib.suppress(DistributedError):
            self._send("leave")
        for thread in self._threads:
            thread.join(10 * _SLICE)

    def _join(self) -> None:
        with self._lock:
            self._id = self._store.add(f"{self._prefix}nodes", 1)
        self._send("join", info=asdict(self._info))

    def _send(self, kind: str, **more: object) -> None:
        with self._lock:
            number = self._store.add(f"{self._prefix}events", 1)
            event = {"kind": kind, "node": self._id, **more}
            put_json(self._store, f"{self._prefix}event/{number}", event)

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            if not self._closed.is_set():
                self._notify(error)

    def _beat(self) -> None:
        count = 0
        while not self._closed.wait(self._rules.beat_interval):
            count += 1
            with self._lock:
                self._store.set(f"{self._prefix}beat/{self._id}", str(count).encode())

    def _wait(self, key: str) -> Any:
        """The value of a key; None once this node has left."""
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                self._watched.wait([self._prefix + key], _SLICE)
                return json.loads(self._watched.get(self._prefix + key))
        return None

    def _watch(self) -> None:
        number = self._wait(f"node/{self._id}")
        while (begun := self._wait(f"round/{number}")) is not None:
            if "over" in begun:
                self._notify(Verdict.from_json(begun["over"]))
                return
            place = begun["places"].get(str(self._id))
            if place:
                self._notify(Round(number=number, **begun["common"], **place))
            elif self._id not in begun["spares"]:
                # taken for lost, while it was only slow
                self._join()
                number = self._wait(f"node/{self._id}")
                continue
            ended = self._wait(f"end/{number}")
            if ended is None:
                return
            verdict = Verdict.from_json(ended)
            if place or verdict.over:
                self._notify(verdict)
            if verdict.over:
                return
            number += 1
