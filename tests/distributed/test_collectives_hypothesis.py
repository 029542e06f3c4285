"""Random programs of collectives on ranks that live through the whole test, against NumPy."""

from __future__ import annotations

import pickle
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import HERE, environment
from worker import values

from eager._C import comm

SIZE = 3
GROUPS: list[object] = ["world", (0, 1), (0, 2), (1, 2), (2,)]
KINDS = ["all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all",
         "gather", "ring", "barrier"]  # fmt: skip
SLOW = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Workers:
    """SIZE ranks that run what they are sent."""

    def __init__(self, transport: str) -> None:
        env = environment({"EAGER_COMM_TRANSPORT": transport, "EAGER_COMM_TIMEOUT": "30"})
        self.server = comm.StoreServer("127.0.0.1", 0, env["EAGER_COMM_SECRET"])
        self.channels: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(SIZE):
            ours, theirs = socket.socketpair()
            mine = {
                "RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.server.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
            command = [sys.executable, str(HERE / "worker.py"), str(theirs.fileno())]
            self.processes.append(
                subprocess.Popen(command, env={**env, **mine}, pass_fds=[theirs.fileno()])
            )
            theirs.close()
            self.channels.append(Connection(ours.detach()))

    def run(self, programs: list[list[dict]]) -> list:
        """Every rank's answer to its program."""
        for channel, program in zip(self.channels, programs, strict=True):
            channel.send_bytes(pickle.dumps(program))
        answers = []
        for channel in self.channels:
            assert channel.poll(90), "a rank hangs"
            answers.append(pickle.loads(channel.recv_bytes()))
        return answers

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(60))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        assert codes == [0] * SIZE


@pytest.fixture(scope="module", params=["shm", "tcp"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param)
    yield made
    made.close()


counts = st.sampled_from([0, 1, 2, 3, 5, 17, 64, 1000, 1023, 9001, 70_001])
steps = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "group": st.sampled_from(GROUPS),
        "count": counts,
        "dtype": st.sampled_from(["float32", "float64", "float16", "int8", "int32", "int64"]),
        "op": st.sampled_from(["SUM", "MIN", "MAX", "PRODUCT"]),
        "root": st.integers(0, 2),
        "seed": st.integers(0, 1 << 20),
        "place": st.sampled_from([(0, 1), (1, 1), (3, 1), (0, 2), (1, 3)]),
        "async": st.booleans(),
    }
)


def members(step: dict) -> tuple[int, ...]:
    return tuple(range(SIZE)) if step["group"] == "world" else step["group"]


def expected(step: dict, rank: int) -> list[np.ndarray]:
    """What a rank must hold after a step."""
    ranks = members(step)
    if rank not in ranks:
        return []
    size, place, count, kind = len(ranks), ranks.index(rank), step["count"], step["kind"]
    if kind == "barrier":
        return []
    wide = kind in ("reduce_scatter", "all_to_all")
    columns = [values(step, r, count * size if wide else count) for r in ranks]
    if kind in ("all_reduce", "reduce", "reduce_scatter"):
        if kind == "reduce" and place != step["root"]:
            return [columns[place]]
        function = {"SUM": np.add, "MIN": np.minimum, "MAX": np.maximum,
                    "PRODUCT": np.multiply}[step["op"]]  # fmt: skip
        total = function.reduce(np.stack(columns), axis=0, dtype=columns[0].dtype)
        if kind == "reduce_scatter":
            total = total[place * count : (place + 1) * count]
        return [total]
    if kind == "broadcast":
        return [columns[step["root"]]]
    if kind == "all_gather":
        return [np.concatenate(columns)]
    if kind == "all_to_all":
        return [np.concatenate([c[place * count : (place + 1) * count] for c in columns])]
    if kind == "gather":
        return columns if place == step["root"] else []
    return [columns[(place - 1) % size]]


def fit(step: dict) -> dict:
    """The step with a root that its group has."""
    return {**step, "root": step["root"] % len(members(step))}


@given(program=st.lists(steps, min_size=1, max_size=6))
@SLOW
def test_random_programs(workers: Workers, program: list[dict]) -> None:
    program = [fit(s) for s in program]
    # Groups are made by all ranks, in one order: before the steps that use them.
    setup = [{**s, "kind": "barrier", "count": 0, "async": False, "group": g}
             for g in GROUPS for s in program[:1]]  # fmt: skip
    answers = workers.run([setup + program] * SIZE)
    for rank, answer in enumerate(answers):
        assert isinstance(answer, list), answer
        for step, found in zip(program, answer[len(setup) :], strict=True):
            wanted = expected(step, rank)
            assert len(found) == len(wanted), step
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=str(step))


@given(
    step=steps,
    change=st.sampled_from(["count", "dtype", "op", "kind", "root"]),
    odd=st.integers(0, SIZE - 1),
)
@SLOW
def test_mismatches_raise_on_all_ranks(
    workers: Workers, step: dict, change: str, odd: int
) -> None:  # fmt: skip
    step = {**step, "group": "world"}
    if change in ("op", "dtype") or step["kind"] in ("ring", "barrier"):
        step["kind"] = "all_reduce"
    if change == "root":
        step["kind"] = "broadcast"
    other = dict(step)
    other["count"] += change == "count"
    other["root"] = (step["root"] + (change == "root")) % SIZE
    if change == "dtype":
        other["dtype"] = "int32" if step["dtype"] == "float32" else "float32"
    if change == "op":
        other["op"] = "MAX" if step["op"] == "MIN" else "MIN"
    if change == "kind":
        other["kind"] = "all_gather" if step["kind"] != "all_gather" else "all_reduce"
    answers = workers.run([[other if r == odd else step] for r in range(SIZE)])
    for answer in answers:
        assert isinstance(answer, tuple) and answer[0] == "Mismatch", (step, other, answer)
    again = {**step, "kind": "all_reduce", "op": "SUM", "count": 100, "seed": secrets.randbelow(99)}
    for rank, answer in enumerate(workers.run([[again]] * SIZE)):
        assert isinstance(answer, list), answer
        np.testing.assert_array_equal(answer[0][0], expected(again, rank)[0])
