"""The one who decides which nodes take part in which round; see `rendezvous`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from eager.distributed.elastic.failures import Failure
from eager.distributed.elastic.rendezvous import KeyValueStore, NodeInfo, Rules, Verdict, put_json
from eager.distributed.errors import DistributedError

__all__ = ["Leader"]


@dataclass(slots=True)
class _Node:
    """A node as the leader sees it."""

    id: int
    info: NodeInfo
    seen: float  # when its heartbeat last changed, by the leader's clock
    beat: str = ""
    ready: bool = True  # has no workers of an older round


class Leader(threading.Thread):
    """Decides who takes part in which round.

    Args:
        store: a connection of its own.
        prefix: of all keys.
        rules: what it goes by.
    """

    def __init__(self, store: KeyValueStore, prefix: str, rules: Rules) -> None:
        super().__init__(name="rendezvous leader", daemon=True)
        self._store, self._prefix, self._rules = store, prefix, rules
        self._nodes: dict[int, _Node] = {}
        self._events = 0  # handled so far
        self._gap = 0.0  # when the next event was found numbered but not written
        self._round = 0  # the running one, or the next
        self._members: set[int] = set()  # of the running round, or of the last one
        self._running = False
        self._succeeded: set[int] = set()
        self._departed = False  # a member of the last round is gone
        self._failures: list[Failure] = []
        self._failed = False  # the last round ended since a worker died
        self._restarts = 0
        self._since = time.monotonic()  # when the forming of the next round began
        self._enough: float | None = None  # since when there are enough nodes
        self._looked = 0.0
        self._over = False
        self._abandoned = ""

    def abandon(self, problem: str) -> None:
        """The node that hosts the store stops: ends the job, unless it has ended.

        The thread acts on it when the next event comes, or within a heartbeat.
        """
        self._abandoned = problem

    def run(self) -> None:
        """Handles events until the job is over and all nodes know it."""
        with contextlib.suppress(DistributedError):  # the store is gone: all nodes notice that
            try:
                while not self._over:
                    self._take(self._wait_event())
                    self._look_at_beats()
                    if self._abandoned and not self._over:
                        self._finish(Verdict("failed", self._abandoned))
                    if not self._over and not self._running:
                        self._form()
            except (ValueError, TypeError, KeyError) as error:
                self._finish(Verdict("failed", f"the leader cannot read an event: {error!r}"))
            deadline = time.monotonic() + self._rules.beat_limit
            while self._nodes and time.monotonic() < deadline:
                self._take(self._wait_event())

    def _wait_event(self) -> dict[str, Any] | None:
        """The next event, None if there is none for a while."""
        key = f"{self._prefix}event/{self._events + 1}"
        try:
            self._store.wait([key], self._slice())
        except TimeoutError:
            # A node may have died between numbering its event and writing it
            if self._store.add(f"{self._prefix}events", 0) <= self._events:
                self._gap = 0.0
            elif not self._gap:
                self._gap = time.monotonic()
            elif time.monotonic() - self._gap > self._rules.beat_limit:
                self._events, self._gap = self._events + 1, 0.0
            return None
        event: dict[str, Any] = json.loads(self._store.get(key))
        self._store.remove(key)
        self._events, self._gap = self._events + 1, 0.0
        return event

    def _slice(self) -> float:
        """How long to wait for an event before something else is due, seconds."""
        due = self._rules.beat_interval
        if not self._running and self._enough is not None and not self._round:
            due = min(due, self._enough + self._rules.last_call - time.monotonic())
        return max(due, 0.01)

    def _take(self, event: dict[str, Any] | None) -> None:
        if event is None:
            return
        node, kind = event["node"], event["kind"]
        if kind == "join":
            self._join(node, NodeInfo(**event["info"]))
        elif node in self._nodes:
            if kind == "leave":
                self._remove(node, f"node {self._nodes[node].info.host} left")
            elif kind == "fatal" and not self._over:
                self._finish(Verdict("failed", event["problem"]))
            elif kind == "ready":
                self._nodes[node].ready = True
                self._failures += [Failure(**f) for f in event["failures"]]
            elif not self._running or event["round"] != self._round:
                pass  # news of a round that has ended since
            elif kind == "failed":
                self._failed = True
                self._end(Verdict("restart", "a worker failed"))
            elif kind == "succeeded":
                self._succeeded.add(node)
                if self._succeeded >= self._members:
                    self._finish(Verdict("finished"))

    def _join(self, node: int, info: NodeInfo) -> None:
        self._nodes[node] = _Node(node, info, time.monotonic())
        put_json(self._store, f"{self._prefix}node/{node}", self._round + self._running)
        # who comes when the first have finished would only undo their work
        room = len(self._members) < self._rules.max_nodes
        if self._running and room and not self._succeeded:
            self._end(Verdict("membership", f"node {info.host} joined"))

    def _remove(self, node: int, problem: str) -> None:
        del self._nodes[node]
        if node in self._members:
            self._departed = True
            if self._running:
                self._end(Verdict("membership", problem))

    def _look_at_beats(self) -> None:
        now = time.monotonic()
        if now - self._looked < self._rules.beat_interval:
            return
        # a leader that was itself stopped for a while blames nobody
        paused = now - self._looked > self._rules.beat_limit / 2
        self._looked = now
        for node in list(self._nodes.values()):
            key = f"{self._prefix}beat/{node.id}"
            beat = self._store.get(key).decode() if self._store.check([key]) else ""
            if beat != node.beat or paused:
                node.beat, node.seen = beat, now
            elif now - node.seen > self._rules.beat_limit:
                silence = f"{now - node.seen:.1f} s"
                self._remove(node.id, f"node {node.info.host} was not heard of for {silence}")

    def _end(self, verdict: Verdict) -> None:
        """Has all nodes stop their workers."""
        for node in self._members & self._nodes.keys():
            self._nodes[node].ready = False
        put_json(self._store, f"{self._prefix}end/{self._round}", verdict.to_json())
        self._round += 1
        self._running = False
        self._since, self._enough = time.monotonic(), None

    def _finish(self, verdict: Verdict) -> None:
        """Ends the job: for the members of the running round, and for those that wait."""
        if self._running:
            put_json(self._store, f"{self._prefix}end/{self._round}", verdict.to_json())
            self._round += 1
        put_json(self._store, f"{self._prefix}round/{self._round}", {"over": verdict.to_json()})
        self._running, self._over = False, True

    def _form(self) -> None:
        """Begins the next round if it is time."""
        rules, now = self._rules, time.monotonic()
        if not all(n.ready for n in self._nodes.values()):
            return  # they are stopping their workers, or will be found lost
        if self._failed:
            # Workers that died with their node are a change of membership
            if not self._departed:
                self._restarts += 1
            if self._restarts > rules.max_restarts:
                problem = f"{rules.max_restarts} restarts are used up" if rules.max_restarts else ""
                self._finish(Verdict("failed", problem, self._failures))
                return
            self._failed = False
        chosen = self._choose()
        if len(chosen) < rules.min_nodes:
            self._enough = None
            if now - self._since > rules.join_timeout:
                problem = f"{len(chosen)} of at least {rules.min_nodes} nodes came within"
                problem = f"{problem} {rules.join_timeout:g} s"
                self._finish(Verdict("failed", problem, self._failures))
            return
        self._enough = now if self._enough is None else self._enough
        more_may_come = len(chosen) < rules.max_nodes and not self._round
        if not more_may_come or now - self._enough >= rules.last_call:
            self._begin(chosen)

    def _choose(self) -> list[_Node]:
        """The nodes of the next round, in the order of their ranks."""
        if any(n.info.node_rank is not None for n in self._nodes.values()):
            # of two that claim one rank the newer one counts: the older one is about to be lost
            fixed = {n.info.node_rank: n for n in self._nodes.values()}
            return [fixed[r] for r in range(self._rules.max_nodes) if r in fixed]
        nodes = sorted(self._nodes.values(), key=lambda n: (not n.info.leads, n.id))
        return nodes[: self._rules.max_nodes]

    def _begin(self, chosen: list[_Node]) -> None:
        world = sum(n.info.workers for n in chosen)
        places: dict[str, dict[str, int]] = {}
        first = 0
        roles: dict[str, int] = {}
        for group_rank, node in enumerate(chosen):
            role = node.info.role
            places[str(node.id)] = {
                "group_rank": group_rank,
                "first_rank": first,
                "role_rank": roles.get(role, 0),
                "role_size": sum(n.info.workers for n in chosen if n.info.role == role),
            }
            first += node.info.workers
            roles[role] = roles.get(role, 0) + node.info.workers
        common = {"restarts": self._restarts, "group_size": len(chosen), "world_size": world}
        spares = [n.id for n in self._nodes.values() if str(n.id) not in places]
        put_json(
            self._store,
            f"{self._prefix}round/{self._round}",
            {"places": places, "common": common, "spares": spares},
        )
        self._members, self._running = {n.id for n in chosen}, True
        self._succeeded, self._failures, self._departed = set(), [], False
