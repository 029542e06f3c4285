"""Sections of the conformance suite about static memory: plans, windows, training."""

from __future__ import annotations

import numpy as np
from suite_tools import combined, data, holds, mine, raises, ranks, same, section, tensor

import eager
import eager.distributed as dist
from eager.distributed import ReduceOp
from eager.errors import ArgumentError


@section
def plans() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    backend = dist.group.WORLD.backend
    for count in (1, 1000, 300_007):
        buffer = backend.allocate(4 * (count * size + 3))
        x = buffer.tensor((count,), eager.float32, 4)
        plan = backend.plan_all_reduce(buffer, 4, count, eager.float32, ReduceOp.SUM)
        for turn in range(3):
            x.copy_(mine(count, eager.float32, turn))
            if turn == 0:
                plan.run()
            elif turn == 1:
                plan.start()
                plan.finish()
            else:
                plan.run_async().wait()
            columns = [data(r, count, eager.float32, turn) for r in ranks()]
            same(x, combined(columns, ReduceOp.SUM), ("plan_all_reduce", count, turn))
        whole = buffer.tensor((size, count), eager.float32)
        plan = backend.plan_reduce_scatter(buffer, 0, count, eager.float32, ReduceOp.AVG)
        whole.copy_(mine(count * size, eager.float32).reshape(size, count))
        plan.run()
        columns = [data(r, count * size, eager.float32) for r in ranks()]
        expected = combined(columns, ReduceOp.AVG).reshape(size, count)[me]
        same(whole[me], expected, ("plan_reduce_scatter", count), 1e-6)
        plan = backend.plan_all_gather(buffer, 0, count, eager.float32)
        whole.zero_()
        whole[me] = mine(count, eager.float32)
        plan.run()
        expected = np.stack([data(r, count, eager.float32) for r in ranks()])
        same(whole, expected, ("plan_all_gather", count))
    raises(ArgumentError, lambda: buffer.tensor((1 << 40,), eager.float32), "bytes")
    raises(ArgumentError, lambda: buffer.tensor((1,), eager.float32, 1), "multiple")


@section
def ddp() -> None:
    """Two steps of training: every rank a part of the batch, against all of it on one rank."""
    import eager.nn as nn
    from eager.nn.parallel import DistributedDataParallel

    size, me = dist.get_world_size(), dist.get_rank()

    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
        rng = np.random.default_rng(5)
        with eager.no_grad():
            for p in net.parameters():
                p.copy_(tensor(rng.standard_normal(tuple(p.shape)).astype(np.float32) / 4))
        return net

    def train(net: nn.Module, rows: slice) -> None:
        optimizer = eager.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(2):
            rng = np.random.default_rng(step)
            x = tensor(rng.standard_normal((8 * size, 12)).astype(np.float32)[rows])
            y = tensor(rng.standard_normal((8 * size, 3)).astype(np.float32)[rows])
            optimizer.zero_grad()
            ((net(x) - y) ** 2).mean().backward()
            optimizer.step()

    alone, shared = model(), model()
    train(alone, slice(0, None))
    train(DistributedDataParallel(shared), slice(8 * me, 8 * (me + 1)))
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        same(b, a.detach().numpy(), "ddp", 1e-5)


@section
def compiled() -> None:
    """The same training as one program with its collectives inside, on some ranks or on all."""
    import eager.nn as nn
    import jit
    from eager.nn.parallel import DistributedDataParallel

    size, me = dist.get_world_size(), dist.get_rank()

    def train(sizes: list[int], decorate: bool) -> tuple[list[np.ndarray], object]:
        """`sizes`: of this rank's batches; ranks whose sizes change trace again, alone."""
        eager.manual_seed(3)
        net = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 3))
        parallel = DistributedDataParallel(net, bucket_cap_mb=0.001)
        optimizer = eager.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x: eager.Tensor, y: eager.Tensor) -> eager.Tensor:
            optimizer.zero_grad()
            loss = ((parallel(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss

        call = jit.compile(step) if decorate else step
        for turn, n in enumerate(sizes):
            rng = np.random.default_rng(10 * turn + me)
            x, y = rng.standard_normal((n, 12)), rng.standard_normal((n, 3))
            call(tensor(x.astype(np.float32)), tensor(y.astype(np.float32)))
        weights = [p.detach().numpy().copy() for p in net.parameters()]
        return weights, call.stats() if decorate else None

    whole = [8] * 8
    uneven = [8, 8, 8, 8 + 3 * me, 8, 8 + me, 8, 8]
    native = dist.get_backend() == "rdma" and size > 1
    for sizes in (whole, uneven):
        expected, _ = train(sizes, False)
        found, stats = train(sizes, True)
        for a, b in zip(found, expected, strict=True):
            same(tensor(a), b, ("compiled", sizes), 1e-5)
        if native and sizes is whole:
            holds(stats.launches_per_call == 1, stats)
            holds(stats.eager_ops_per_call == 0, stats)
    # some ranks compile, others do not: on the wire the calls are the same
    expected, _ = train(whole, False)
    found, _ = train(whole, me % 2 == 0)
    for a, b in zip(found, expected, strict=True):
        same(tensor(a), b, "half compiled", 1e-5)

    x = mine(1000, eager.float32)

    def mixed(x: eager.Tensor) -> eager.Tensor:
        y = x * 2
        dist.all_reduce(y)
        return y.tanh()

    call = jit.compile(mixed, warmup=0)
    for _ in range(3):
        columns = [2 * data(r, 1000, eager.float32) for r in ranks()]
        same(call(x), np.tanh(combined(columns, ReduceOp.SUM)), "all_reduce in a program", 1e-5)


@section
def windows() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    if dist.get_backend() != "rdma":
        raises(dist.DistributedError, lambda: dist.Window(8), "one-sided")
        return
    window = dist.Window(8 * size)
    for turn in range(3):
        for r in ranks():
            window.put(eager.tensor([float(me), float(turn)]), r, 8 * me)
        for r in ranks():
            window.wait(r)
        expected = np.array([[r, turn] for r in ranks()], np.float32)
        same(window.tensor((size, 2), eager.float32), expected, ("window", turn))
        for r in ranks():
            window.signal(r)
        for r in ranks():
            window.wait(r)
    raises(ArgumentError, lambda: window.put(eager.zeros(4), me, 8 * size - 8), "fit")
    raises(ArgumentError, lambda: dist.Window(-1), "size")
