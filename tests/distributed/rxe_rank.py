"""What a rank does inside a guest (rxe.py): sections of the suite, and buffers of up to 16 MiB.

python rxe_rank.py [section ...]
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import suite

import eager
import eager.distributed as dist
import eager.nn as nn
from eager.nn.parallel import DistributedDataParallel

MIB = 1 << 20


def held(rank: int, count: int, seed: int) -> np.ndarray:
    """Whole numbers, so that sums are exact in any order."""
    return np.random.default_rng([seed, rank]).integers(-1000, 1000, count).astype(np.float32)


@suite.section
def large() -> None:
    """all_reduce and reduce_scatter of 1 to 16 MiB, of ordinary tensors."""
    me, size = dist.get_rank(), dist.get_world_size()
    for seed, nbytes in enumerate((MIB, 5 * MIB + 4, 16 * MIB)):
        count = nbytes // 4 // size * size
        total = sum(held(rank, count, seed) for rank in range(size))
        reduced = suite.tensor(held(me, count, seed))
        dist.all_reduce(reduced)
        suite.same(reduced, total, ("all_reduce", nbytes))
        part = eager.empty(count // size)
        dist.reduce_scatter_tensor(part, suite.tensor(held(me, count, seed)))
        suite.same(part, np.split(total, size)[me], ("reduce_scatter", nbytes))


@suite.section
def static() -> None:
    """A plan over 16 MiB of a group's own memory copies nothing."""
    group = dist.group.WORLD
    assert group is not None
    me, size = dist.get_rank(), dist.get_world_size()
    count = 16 * MIB // 4
    buffer = group.backend.allocate(4 * count)
    whole = buffer.tensor((count,), eager.float32)
    plan = group.backend.plan_all_reduce(buffer, 0, count, eager.float32, dist.ReduceOp.SUM)
    before = group.backend.stats()["staged_bytes"]
    for seed in range(2):
        whole.copy_(suite.tensor(held(me, count, seed)))
        plan.run()
        suite.same(whole, sum(held(rank, count, seed) for rank in range(size)), plan.algorithm)
    suite.holds(group.backend.stats()["staged_bytes"] == before, "bytes were staged")


@suite.section
def ddp_large() -> None:
    """A step of training with 16 MiB of gradients, against all of the batch on one rank."""
    me, size = dist.get_rank(), dist.get_world_size()
    width = 2048

    def gradient(net: nn.Module, weight: eager.Tensor, rows: slice) -> np.ndarray:
        rng = np.random.default_rng(3)
        x = suite.tensor(rng.standard_normal((4 * size, width)).astype(np.float32)[rows])
        (net(x) ** 2).mean().backward()
        assert weight.grad is not None
        return weight.grad.numpy()

    alone, shared = (nn.Linear(width, width, bias=False) for _ in range(2))
    values = np.random.default_rng(4).standard_normal((width, width)).astype(np.float32)
    with eager.no_grad():
        for net in (alone, shared):
            net.weight.copy_(suite.tensor(values))
    expected = gradient(alone, alone.weight, slice(0, None))
    mine = slice(4 * me, 4 * (me + 1))
    gradient(DistributedDataParallel(shared), shared.weight, mine)
    suite.same(shared.weight.grad, expected, "gradients", 1e-4)


def cut() -> None:
    """The second of two wires is cut while ranks reduce.  Control goes over the first, so only the
    verbs device can notice."""
    dist.init_process_group("rdma")
    x = eager.ones(MIB)
    dist.all_reduce(x)  # striped over both
    start = time.monotonic()
    if dist.get_rank() == 1:
        subprocess.run(["ip", "link", "set", "eth1", "down"], check=True)
    try:
        while True:
            dist.all_reduce(x.fill_(1))
    except dist.PeerLost as error:
        assert error.rank == 1 - dist.get_rank()
        print(f"LOST after {time.monotonic() - start:.1f} s: {error}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:] == ["--cut"]:
        cut()
    else:
        suite.main()
