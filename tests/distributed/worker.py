"""A rank that a test drives: it joins the job, then runs the programs it is sent.

Programs are pickled lists of steps (see test_collectives_hypothesis.py) on a socket whose
descriptor is the first argument; the answer to each is the list of results, or the error.
"""

import pickle
import sys
from multiprocessing.connection import Connection

import numpy as np

import eager
import eager.distributed as dist
from eager.distributed import ReduceOp
from eager.errors import EagerError


class Rank:
    def __init__(self) -> None:
        self.groups = {"world": None}

    def group(self, ranks: tuple[int, ...] | str):
        if ranks not in self.groups:
            self.groups[ranks] = dist.new_group(ranks)
        return self.groups[ranks]

    def step(self, s: dict) -> tuple[list[eager.Tensor], object]:
        """Starts one step; gives the tensors that hold its results, and what to wait for."""
        group, later = self.group(s["group"]), s["async"]
        if dist.get_rank(group) < 0:
            return [], None
        place = dist.get_rank(group)
        size = dist.get_world_size(group)
        x = self.tensor(
            s, s["count"] * (size if s["kind"] in ("reduce_scatter", "all_to_all") else 1)
        )
        op = ReduceOp[s["op"]]
        if s["kind"] == "all_reduce":
            return [x], dist.all_reduce(x, op, group, later)
        if s["kind"] == "reduce":
            work = dist.reduce(x, None, op, group, later, group_dst=s["root"])
            return [x], work
        if s["kind"] == "broadcast":
            return [x], dist.broadcast(x, None, group, later, group_src=s["root"])
        if s["kind"] == "all_gather":
            out = self.empty(s, s["count"] * size)
            return [out], dist.all_gather_into_tensor(out, x, group, later)
        if s["kind"] == "reduce_scatter":
            out = self.empty(s, s["count"])
            return [out], dist.reduce_scatter_tensor(out, x, op, group, later)
        if s["kind"] == "all_to_all":
            out = self.empty(s, s["count"] * size)
            return [out], dist.all_to_all_single(out, x, group=group, async_op=later)
        if s["kind"] == "gather":
            outs = [self.empty(s, s["count"]) for _ in range(size)] if place == s["root"] else None
            work = dist.gather(x, outs, None, group, later, group_dst=s["root"])
            return outs or [], work
        if s["kind"] == "ring":
            out = self.empty(s, s["count"])
            ranks = dist.get_process_group_ranks(group)
            if size == 1:
                return [x], None
            works = dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, x, ranks[(place + 1) % size], group, s["seed"]),
                 dist.P2POp(dist.irecv, out, ranks[(place - 1) % size], group, s["seed"])]
            )  # fmt: skip
            return [out], works
        dist.barrier(group, later)
        return [], None

    def tensor(self, s: dict, count: int) -> eager.Tensor:
        return self.place(s, eager.from_numpy(values(s, dist.get_rank(), count)))

    def empty(self, s: dict, count: int) -> eager.Tensor:
        return self.place(s, eager.zeros(count, dtype=getattr(eager, s["dtype"])))

    def place(self, s: dict, x: eager.Tensor) -> eager.Tensor:
        """Its values at an odd address or spread over memory, as the step says."""
        offset, stride = s["place"]
        base = eager.zeros(offset + stride * x.numel(), dtype=x.dtype)
        view = base[offset::stride][: x.numel()]
        view.copy_(x)
        return view

    def run(self, program: list[dict]) -> list[list[np.ndarray]]:
        started = [self.step(s) for s in program]
        for _, work in started:
            for one in work if isinstance(work, list) else [work] if work is not None else []:
                one.wait()
        return [[t.contiguous().numpy() for t in tensors] for tensors, _ in started]


def values(s: dict, rank: int, count: int) -> np.ndarray:
    """What a rank of the job holds at a step: small whole numbers."""
    rng = np.random.default_rng([s["seed"], rank])
    return rng.integers(0, 4, count).astype(s["dtype"])


def main() -> None:
    channel = Connection(int(sys.argv[1]))
    dist.init_process_group()
    rank = Rank()
    while True:
        try:
            program = pickle.loads(channel.recv_bytes())
        except EOFError:
            break
        try:
            answer: object = rank.run(program)
        except EagerError as error:
            answer = (type(error).__name__, str(error))
        channel.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
