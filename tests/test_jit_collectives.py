"""Collectives in traced graphs and in plans, without other ranks: what is kept, where it lies."""

from types import SimpleNamespace

import numpy as np
import pytest

import eager
import jit
from eager import nn
from eager.distributed import graph
from eager.ops import collectives as ops
from jit import passes
from jit.codegen.cuda import print_program
from jit.fusion import build_plan, build_program
from jit.fusion.tile import Exchange, Gemm, writes
from jit.tracer import Tracer

WHOLE = {"group": 0, "reduction": 0, "plan": ops.NO_PLAN}


class TwoAlike:
    """A backend of two ranks that always have the same data."""

    rank, size = 0, 2

    def __init__(self, address: int) -> None:
        self.address = address
        self.calls: list[str] = []

    def all_reduce(self, tensor, op, async_op):
        self.calls.append("all_reduce")
        tensor.mul_(2)

    def broadcast(self, tensor, root, async_op):
        self.calls.append("broadcast")

    def all_gather(self, out, x, async_op):
        self.calls.append("all_gather")
        out.copy_(eager.cat([x, x]))

    def reduce_scatter(self, out, x, op, async_op):
        self.calls.append("reduce_scatter")
        out.copy_(x[: out.shape[0]] * 2)


@pytest.fixture
def foreign(monkeypatch) -> TwoAlike:
    """Group 0 belongs to a library that programs cannot call."""
    backend = TwoAlike(address=0)
    monkeypatch.setattr(graph, "backend_of", lambda number: None if number < 0 else backend)
    return backend


@pytest.fixture
def native(monkeypatch) -> TwoAlike:
    """Group 0 has an address, so that plans can be made (and not run)."""
    backend = TwoAlike(address=64)
    monkeypatch.setattr(graph, "backend_of", lambda number: None if number < 0 else backend)
    return backend


def everything(x):
    a = ops.all_reduce(x * 2, **WHOLE)
    b = ops.all_gather(a.tanh(), group=0, size=2)
    c = ops.reduce_scatter(b + 1, group=0, size=2, reduction=0)
    return ops.broadcast(c, group=0, root=0) - x


def trace(fn, *arguments):
    tracer = Tracer(list(arguments))
    with eager.op.push(tracer):
        result = fn(*arguments)
    found = tracer.finish(result)
    assert found is not None, tracer.refused
    return found


def test_a_foreign_group_runs_between_programs(foreign):
    x = eager.randn(4, 3)
    compiled = jit.compile(everything, warmup=0)
    expected = everything(x)
    for _ in range(3):
        assert np.array_equal(compiled(x).numpy(), expected.numpy())
    stats = compiled.stats()
    assert stats.compiled_calls == 2 and stats.eager_ops_per_call == 4
    assert foreign.calls == ["all_reduce", "all_gather", "reduce_scatter", "broadcast"] * 4


def test_alone_there_is_nothing_to_exchange():
    def fn(x):
        y = ops.all_reduce(x + 1, group=ops.SELF, reduction=0, plan=ops.NO_PLAN)
        return ops.all_gather(y, group=ops.SELF, size=1) * 2

    x = eager.randn(5)
    compiled = jit.compile(fn, fullgraph=True, warmup=0)
    for _ in range(2):
        assert np.array_equal(compiled(x).numpy(), fn(x).numpy())
    assert compiled.stats().launches_per_call == 1


def test_collectives_are_neither_dropped_nor_merged(native):
    def fn(x):
        ops.all_reduce(x, **WHOLE)  # nobody reads it, but other ranks wait
        return ops.all_reduce(x, **WHOLE) + ops.all_reduce(x, **WHOLE)

    clean = passes.run(trace(fn, eager.randn(3)).graph)
    assert [n.op.name for n in clean.nodes].count("all_reduce") == 3


@pytest.mark.filterwarnings("ignore::jit.CompileWarning")
def test_a_call_whose_path_depends_on_data_stays_eager(foreign):
    """A guard that fails would repeat the collective on this rank alone."""

    def fn(x):
        y = ops.all_reduce(x, **WHOLE)
        return y if y.sum() > 0 else -y

    compiled = jit.compile(fn, warmup=0)
    for x in (eager.ones(3), -eager.ones(3), eager.ones(3)):
        assert compiled(x).tolist() == [2.0, 2.0, 2.0]
    assert compiled.stats().compiled_calls == 0
    assert "collectives" in compiled.stats().fallbacks[0]
    assert foreign.calls == ["all_reduce"] * 3


def test_collectives_keep_their_order(native):
    def fn(x, y):
        late = ops.all_reduce(x @ x, **WHOLE)
        ops.broadcast(y, group=0, root=1)
        return late, ops.all_reduce(y * 2, group=0, reduction=3, plan=ops.NO_PLAN)

    plan = build_plan(passes.run(trace(fn, eager.randn(8, 8), eager.randn(3)).graph))
    made = [(s.collective, s.reduction) for s in plan.stages if isinstance(s, Exchange)]
    assert made == [("all_reduce", 0), ("broadcast", 0), ("all_reduce", 3)]


def bucket_step(model, bucket, places):
    """One training step whose gradients are reduced in `bucket`."""
    parameters = list(model.parameters())
    optimizer = eager.optim.SGD(parameters, lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        views = graph.reduce_gradients(bucket, 0, 1, places, [p.grad for p in parameters])
        for p, view in zip(parameters, views, strict=True):
            p.grad = view
        optimizer.step()
        return loss

    return step


def model_and_bucket(number: int):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    places, end = [], 0
    for p in model.parameters():
        places.append((end, tuple(p.shape)))
        end += -(-p.numel() // 16) * 16
    return model, SimpleNamespace(tensor=eager.zeros(end), number=number), places


def test_products_write_gradients_where_they_are_reduced(native, monkeypatch):
    """No stage copies: products and sums store into the static memory, the collective works there,
    and the update reads it."""
    model, bucket, places = model_and_bucket(number=7)
    monkeypatch.setattr(graph, "plan_by_number", lambda n: SimpleNamespace(
        tensor=bucket.tensor, plan=SimpleNamespace(run=lambda: None, address=128)))  # fmt: skip
    found = trace(bucket_step(model, bucket, places), eager.randn(32, 8), eager.randn(32, 4))
    targets = {e.output: e.target for e in found.effects if e.kind == "write"}
    plan = build_plan(passes.run(found.graph), targets)
    (exchange,) = [s for s in plan.stages if isinstance(s, Exchange)]
    assert exchange.source == exchange.target and exchange.plan == 7
    assert plan.buffers[exchange.target].kind == "input"
    into = [s for s in plan.stages if any(b == exchange.target for b, _ in writes(s))]
    weights = [s for s in into if isinstance(s, Gemm)]
    assert len(weights) == 2  # both weights' gradients
    before = plan.stages[: plan.stages.index(exchange)]
    assert not any(  # nothing reads the gradients before they are reduced
        load.buffer == exchange.target for s in before for load in getattr(s, "loads", [])
    )
    assert all(e.kind != "grad" for e in found.effects)  # .grad are views of the static memory


def test_static_memory_that_is_read_elsewhere_is_refused(native, monkeypatch):
    model, bucket, places = model_and_bucket(number=7)
    monkeypatch.setattr(graph, "plan_by_number", lambda n: SimpleNamespace(
        tensor=bucket.tensor, plan=SimpleNamespace(run=lambda: None, address=128)))  # fmt: skip
    step = bucket_step(model, bucket, places)

    def reads_too(x, y):
        before = bucket.tensor.sum()
        return step(x, y), before, bucket.tensor.flip(0)

    found = trace(reads_too, eager.randn(32, 8), eager.randn(32, 4))
    with pytest.raises(NotImplementedError, match="static memory"):
        build_plan(passes.run(found.graph))  # not told that it may overwrite the bucket


def test_a_card_cannot_issue_them_yet(native):
    found = trace(lambda x: ops.all_reduce(x * 2, **WHOLE), eager.randn(64))
    with pytest.raises(NotImplementedError, match="collectives"):
        print_program(build_program(passes.run(found.graph), workers=2))


@pytest.mark.parametrize("reduction", [0, 1])
def test_gradients_of_reductions(foreign, reduction):
    x = eager.randn(4, requires_grad=True)
    (ops.all_reduce(x, group=0, reduction=reduction, plan=ops.NO_PLAN) ** 2).sum().backward()
    y = x.detach() * 2
    assert np.allclose(x.grad.numpy(), (2 * y * 2).numpy())


def test_a_maximum_has_no_gradient(foreign):
    x = eager.randn(4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="gradient"):
        ops.all_reduce(x, group=0, reduction=3, plan=ops.NO_PLAN).sum().backward()


def test_a_plan_that_is_gone_says_so():
    with pytest.raises(eager.errors.ArgumentError, match="compile the function again"):
        graph.plan_by_number(10**9)
