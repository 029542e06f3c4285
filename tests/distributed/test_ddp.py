"""DistributedDataParallel: same gradients as one process, in place, in buckets, with hooks."""

import copy
import gc

import local_ranks
import numpy as np
import pytest

import eager
from eager import nn
from eager.distributed.algorithms.ddp_comm_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    fp16_compress_wrapper,
)
from eager.distributed.backends.base import ReduceOp
from eager.distributed.errors import DistributedError, Mismatch
from eager.errors import ArgumentError, AutogradError
from eager.nn.parallel import DistributedDataParallel as DDP

ROWS = 24


def network(seed: int = 0) -> nn.Module:
    return local_ranks.seeded(lambda: nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(),
        nn.Linear(32, 4),
    ), seed)  # fmt: skip


def data(step: int = 0):
    rng = np.random.default_rng(step)
    x, y = rng.standard_normal((ROWS, 16)), rng.standard_normal((ROWS, 4))
    return eager.tensor(x.astype(np.float32)), eager.tensor(y.astype(np.float32))


def loss_of(model, x, y):
    return ((model(x) - y) ** 2).mean()


def grads(model):
    return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


def alone(steps: int, lr: float = 0.1):
    """Parameters and last gradients of one process that sees all rows."""
    model = network()
    optimizer = eager.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, *data(step)).backward()
        optimizer.step()
    return [p.detach().numpy().copy() for p in model.parameters()], grads(model)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("cap", [25, 0.0005])
def test_training_equals_that_of_one_process_and_copies_nothing(size, cap):
    def body(group):
        model = network(seed=group.rank())  # rank 0's counts
        ddp = DDP(model, process_group=group, bucket_cap_mb=cap)
        optimizer = eager.optim.SGD(ddp.parameters(), lr=0.1)
        for step in range(4):
            x, y = data(step)
            optimizer.zero_grad()
            loss_of(ddp, x[group.rank() :: size], y[group.rank() :: size]).backward()
            optimizer.step()
        return [p.detach().numpy().copy() for p in model.parameters()], ddp.stats()

    expected, _ = alone(4)
    results = local_ranks.run(size, body)
    for params, stats in results:
        for mine, first, right in zip(params, results[0][0], expected, strict=True):
            assert np.array_equal(mine, first)
            np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)
        assert stats["staging_copies"] == stats["staging_bytes"] == 0
        assert stats["rounds"] == 4
        assert stats["buckets"] == (1 if cap == 25 else 3)
        assert stats["bytes_reduced"] >= 4 * 4 * sum(p.size for p in params)


def test_gradients_are_views_of_aligned_buckets():
    def body(group):
        ddp = DDP(network(), process_group=group, bucket_cap_mb=0.0005)
        loss_of(ddp, *data()).backward()
        for bucket in ddp._reducer.buckets:
            begin = bucket.flat.data_ptr()
            for view, (offset, _) in zip(bucket.views, bucket.places, strict=True):
                assert view.data_ptr() == begin + 4 * offset and offset % 16 == 0
        held = {v.data_ptr() for b in ddp._reducer.buckets for v in b.views}
        assert {p.grad.data_ptr() for p in ddp.parameters()} == held

    local_ranks.run(2, body)


def test_no_sync_accumulates_and_the_next_backward_reduces_the_sum():
    def body(group):
        r, ddp = group.rank(), DDP(network(), process_group=group)
        (x0, y0), (x1, y1) = data(0), data(1)
        with ddp.no_sync():
            loss_of(ddp, x0[r::2], y0[r::2]).backward()
        local = grads(ddp)
        loss_of(ddp, x1[r::2], y1[r::2]).backward()
        return local, grads(ddp), ddp.stats()["rounds"]

    (a, both, rounds), (b, other, _) = local_ranks.run(2, body)
    assert rounds == 1 and not np.array_equal(a[0], b[0])
    model = network()
    for step in range(2):
        loss_of(model, *data(step)).backward()
    for mine, second, right in zip(both, other, grads(model), strict=True):
        assert np.array_equal(mine, second)
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


def test_two_forwards_and_two_backwards():
    def body(group):
        r, ddp = group.rank(), DDP(network(), process_group=group)
        losses = [loss_of(ddp, x[r::2], y[r::2]) for x, y in (data(0), data(1))]
        for loss in losses:
            loss.backward()
        return grads(ddp)

    model = network()
    for step in range(2):
        loss_of(model, *data(step)).backward()
    for mine, right in zip(local_ranks.run(2, body)[1], grads(model), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


class Branches(nn.Module):
    """Uses one of two layers, and never the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.never = local_ranks.seeded(
            lambda: [nn.Linear(16, 4) for _ in range(3)]
        )

    def forward(self, x, which):
        return (self.a if which == 0 else self.b)(x)


def test_unused_parameters_count_as_zeros_and_those_of_nobody_stay_none():
    def body(group):
        model = Branches()
        ddp = DDP(model, process_group=group, find_unused_parameters=True, bucket_cap_mb=1e-4)
        results = []
        for which in (group.rank(), 0):  # different, then the same on both
            for p in model.parameters():
                p.grad = None
            x, y = data()
            ((ddp(x, which) - y) ** 2).mean().backward()
            results.append((grads(model.a), grads(model.b), grads(model.never)))
        return results

    (first, second), other = local_ranks.run(2, body)
    model = Branches()
    x, y = data()
    ((model(x, 0) - y) ** 2).mean().backward()
    np.testing.assert_allclose(first[0][0], model.a.weight.grad.numpy() / 2, rtol=1e-5)
    assert np.array_equal(first[1][0], other[0][1][0]) and np.abs(first[1][0]).max() > 0
    np.testing.assert_allclose(second[0][0], model.a.weight.grad.numpy(), rtol=1e-5)
    assert second[1] == [None, None] and second[2] == first[2] == [None, None]


def test_missing_gradients_are_an_error_that_names_them():
    def body(group):
        ddp = DDP(Branches(), process_group=group)
        x, _ = data()
        ddp(x, 0).sum().backward()
        with pytest.raises(DistributedError, match=r"b\.weight.*never\.bias"):
            ddp(x, 0)

    local_ranks.run(2, body)


def test_a_static_graph_may_leave_parameters_out():
    def body(group):
        model = Branches()
        ddp = DDP(model, process_group=group, static_graph=True)
        for _ in range(2):
            x, _ = data()
            ddp(x, 0).sum().backward()
        return grads(model.a)[0], model.b.weight.grad

    (a, unused), _ = local_ranks.run(2, body)
    assert unused is None and np.abs(a).max() > 0


def test_buckets_follow_the_order_in_which_gradients_arrive():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = local_ranks.seeded(
                lambda: (nn.Linear(32, 4), nn.Linear(16, 32))
            )

        def forward(self, x):
            return self.last(self.first(x))

    def body(group):
        ddp = DDP(Backwards(), process_group=group, bucket_cap_mb=0.001)
        before = [b.members for b in ddp._reducer.buckets]
        kept = None
        for step in range(3):
            loss_of(ddp, *data(step)).backward()  # accumulates over the change of buckets
            if step == 0:
                kept = grads(ddp)
        after = [b.members for b in ddp._reducer.buckets]
        return before, after, kept, grads(ddp), ddp.stats()["staging_copies"]

    before, after, _, total, copies = local_ranks.run(2, body)[0]
    assert before[0] == (3, 2) and after != before and after[0][0] in (0, 1) and copies == 0
    model = Backwards()
    for step in range(3):
        loss_of(model, *data(step)).backward()
    for mine, right in zip(total, grads(model), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = local_ranks.seeded(lambda: (nn.Linear(16, 8), nn.Linear(8, 4).double()))

    def forward(self, x):
        return self.b(self.a(x).double())


def test_dtypes_have_buckets_of_their_own():
    def body(group):
        r, ddp = group.rank(), DDP(Mixed(), process_group=group)
        x, y = data()
        loss_of(ddp, x[r::2], y[r::2]).backward()
        return {b.dtype for b in ddp._reducer.buckets}, grads(ddp), ddp.stats()["staging_copies"]

    dtypes, mine, copies = local_ranks.run(2, body)[0]
    assert dtypes == {eager.float32, eager.float64} and copies == 0
    model = Mixed()
    loss_of(model, *data()).backward()
    for a, b in zip(mine, grads(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Counting(nn.Module):
    """Adds its rank to two buffers of different dtypes in every forward."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.layer = rank, nn.Linear(4, 4)
        self.register_buffer("seen", eager.zeros(3))
        self.register_buffer("calls", eager.zeros((), dtype=eager.int64))

    def forward(self, x):
        with eager.no_grad():
            self.seen.add_(1 + self.rank)
            self.calls.add_(1 + self.rank)
        return self.layer(x)


@pytest.mark.parametrize(("shared", "expected"), [(True, [2, 3]), (False, [2, 4])])
def test_forward_begins_with_the_buffers_of_rank_0(shared, expected):
    def body(group):
        model = Counting(group.rank())
        ddp = DDP(model, process_group=group, broadcast_buffers=shared)
        for _ in range(2):
            ddp(eager.ones(2, 4)).sum().backward()
        return [*model.seen.tolist(), model.calls.item()]

    assert local_ranks.run(2, body) == [[n] * 4 for n in expected]


def test_different_modules_are_found_on_all_ranks():
    def body(group):
        model = nn.Linear(4, 4 + group.rank())
        with pytest.raises(Mismatch, match=r"rank 1 differs.*"):
            DDP(model, process_group=group)

    local_ranks.run(2, body)


@pytest.mark.parametrize(
    ("hook", "tolerance"),
    [(allreduce_hook, 1e-6), (bf16_compress_hook, 1e-2),
     (fp16_compress_wrapper(allreduce_hook), 1e-3)],
)  # fmt: skip
def test_communication_hooks(hook, tolerance):
    def body(group):
        r, ddp = group.rank(), DDP(network(), process_group=group, bucket_cap_mb=0.0005)
        ddp.register_comm_hook(group, hook)
        with pytest.raises(ArgumentError, match="once"):
            ddp.register_comm_hook(group, hook)
        x, y = data()
        loss_of(ddp, x[r::2], y[r::2]).backward()
        return grads(ddp)

    model = network()
    loss_of(model, *data()).backward()
    first, second = local_ranks.run(2, body)
    for mine, other, right in zip(first, second, grads(model), strict=True):
        assert np.array_equal(mine, other)
        np.testing.assert_allclose(mine, right, rtol=tolerance, atol=tolerance)


def test_a_hook_sees_every_bucket_once():
    def body(group):
        seen = []
        ddp = DDP(network(), process_group=group, bucket_cap_mb=0.0005)

        class Done:
            def __init__(self, tensor) -> None:
                self.tensor = tensor

            def wait(self):
                return [self.tensor * 2]

        def hook(state, bucket):
            seen.append((bucket.index(), bucket.is_last(), len(bucket.parameters()),
                         [tuple(g.shape) for g in bucket.gradients()]))  # fmt: skip
            assert state == "state"
            return Done(bucket.buffer())

        ddp.register_comm_hook("state", hook)
        loss_of(ddp, *data()).backward()
        return seen, grads(ddp)

    seen, doubled = local_ranks.run(1, body)[0]
    assert [s[0] for s in seen] == [0, 1, 2] and [s[1] for s in seen] == [False, False, True]
    assert sum(s[2] for s in seen) == 8
    model = network()
    loss_of(model, *data()).backward()
    for mine, right in zip(doubled, grads(model), strict=True):
        assert np.array_equal(mine, right * 2)


def test_a_failed_backward_leaves_the_next_one_whole():
    def body(group):
        r, ddp = group.rank(), DDP(network(), process_group=group, bucket_cap_mb=0.0005)
        x, y = data()
        out = ddp(x[r::2])
        first = ddp.module[0].weight

        def fail(_):
            raise ZeroDivisionError

        handle = first.register_hook(fail)
        with pytest.raises(ZeroDivisionError):
            ((out - y[r::2]) ** 2).mean().backward()
        handle.remove()
        # On both ranks the same buckets had started: the job goes on.
        for p in ddp.parameters():
            p.grad = None
        loss_of(ddp, x[r::2], y[r::2]).backward()
        return grads(ddp)

    model = network()
    loss_of(model, *data()).backward()
    for mine, right in zip(local_ranks.run(2, body)[0], grads(model), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


def test_errors_and_what_is_not_there():
    def body(group):
        with pytest.raises(ArgumentError, match="nothing to train"):
            DDP(nn.ReLU(), process_group=group)
        with pytest.raises(ArgumentError, match="on the CPU"):
            DDP(network(), device_ids=[0], process_group=group)
        with pytest.raises(ArgumentError, match="mixed_precision"):
            DDP(network(), process_group=group, mixed_precision=object())
        with pytest.raises(ArgumentError, match="bucket_cap_mb"):
            DDP(network(), process_group=group, bucket_cap_mb=0)
        with pytest.raises(ArgumentError, match="gradient_as_bucket_view"):
            DDP(network(), process_group=group, gradient_as_bucket_view=False)
        ddp = DDP(network(), process_group=group)
        with pytest.raises(ArgumentError, match="uneven"):
            ddp.join()
        x, y = data()
        with pytest.raises(AutogradError, match="create_graph"):
            loss_of(ddp, x, y).backward(create_graph=True)

    local_ranks.run(1, body)


def test_the_wrapped_module_shows_through():
    def body(group):
        model = network()
        ddp = DDP(model, process_group=group)
        assert list(ddp.state_dict()) == [f"module.{k}" for k in model.state_dict()]
        assert ddp.module is model
        with pytest.raises(ArgumentError, match="neither copied nor pickled"):
            copy.deepcopy(ddp)
        values = {k: v * 0 for k, v in ddp.state_dict().items()}
        ddp.load_state_dict(values)
        assert all(not p.detach().numpy().any() for p in model.parameters())

    local_ranks.run(1, body)


def test_gradients_given_by_hand_are_staged_and_counted():
    def body(group):
        ddp = DDP(network(), process_group=group)
        loss_of(ddp, *data()).backward()
        bias = ddp.module[0].bias
        bias.grad = eager.ones(32)
        loss_of(ddp, *data()).backward()
        return bias.grad.numpy().copy(), ddp.stats()

    (grad, stats), _ = local_ranks.run(2, body)
    model = network()
    loss_of(model, *data()).backward()
    np.testing.assert_allclose(grad, 1 + model[0].bias.grad.numpy(), rtol=1e-5)
    assert stats["staging_copies"] == 1 and stats["staging_bytes"] == 128


def test_a_module_can_be_wrapped_again_and_used_alone_afterwards():
    def body(group):
        model = network()
        ddp = DDP(model, process_group=group)
        loss_of(ddp, *data()).backward()
        ddp = DDP(model, process_group=group)
        gc.collect()
        for p in model.parameters():
            p.grad = None
        loss_of(ddp, *data()).backward()
        stats = ddp.stats()
        assert stats["rounds"] == 1 and stats["staging_copies"] == 0
        del ddp
        gc.collect()
        assert all(p._grad_buffer() is None for p in model.parameters())
        loss_of(model, *data()).backward()
        copy.deepcopy(model)

    local_ranks.run(1, body)


def test_plans_average():
    def body(group):
        ddp = DDP(network(), process_group=group)
        return {b.static.plan.op for b in ddp._reducer.buckets}

    assert local_ranks.run(2, body)[0] == {ReduceOp.AVG}
