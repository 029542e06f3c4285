"""ZeroRedundancyOptimizer: bit-identical to the optimizer it spreads."""

import local_ranks
import numpy as np
import pytest

import eager
from eager import nn
from eager.distributed.errors import DistributedError
from eager.distributed.optim import ZeroRedundancyOptimizer
from eager.errors import ArgumentError
from eager.optim import SGD, AdamW
from eager.optim.lr_scheduler import StepLR


def network() -> nn.Module:
    return local_ranks.seeded(lambda: nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)
    ))  # fmt: skip


def train(model, optimizer, steps, first=0, schedule=None):
    for step in range(first, first + steps):
        x = eager.tensor(np.random.default_rng(step).standard_normal((8, 6)).astype(np.float32))
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def values(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("cls", "options"), [(AdamW, {"lr": 0.01}), (SGD, {"lr": 0.1, "momentum": 0.9})]
)
def test_parameters_are_bit_identical(size, cls, options, views):
    def body(group):
        model = network()
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), cls, group, parameters_as_bucket_view=views, **options
        )
        schedule = StepLR(optimizer, 2, 0.5)
        train(model, optimizer, 6, schedule=schedule)
        return values(model), len(optimizer.optim.state)

    model = network()
    optimizer = cls(model.parameters(), **options)
    train(model, optimizer, 6, schedule=StepLR(optimizer, 2, 0.5))
    results = local_ranks.run(size, body)
    assert all(equal(mine, values(model)) for mine, _ in results)
    held = [count for _, count in results]
    assert sum(held) == 6 and (size == 1 or max(held) < 6)


def test_shares_are_balanced_and_the_same_on_all_ranks():
    def body(group):
        params = [nn.Parameter(eager.zeros(n)) for n in (5, 1, 4, 3, 3)]
        optimizer = ZeroRedundancyOptimizer(params, SGD, group, lr=1)
        return [optimizer._owner[id(p)] for p in params]

    # 5 | 4, 3 | 3 goes to the first, 1 to the second
    assert local_ranks.run(2, body) == [[0, 1, 1, 1, 0]] * 2


def test_groups_with_options_of_their_own():
    def groups(model):
        a, b = list(model[0].parameters()), list(model[2].parameters())
        return [{"params": a, "lr": 0.1}, {"params": b, "lr": 0.2, "momentum": 0.5}]

    def body(group):
        model = network()
        optimizer = ZeroRedundancyOptimizer(groups(model), SGD, group, lr=1.0)
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 0.3})
        train(model, optimizer, 3, 2)
        return values(model), [g["lr"] for g in optimizer.param_groups]

    model = network()
    optimizer = SGD(groups(model), lr=1.0)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 0.3})
    train(model, optimizer, 3, 2)
    for mine, rates in local_ranks.run(2, body):
        assert equal(mine, values(model)) and rates == [0.1, 0.2, 0.3]


def test_consolidated_state_is_that_of_the_plain_optimizer():
    def body(group):
        model = network()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), AdamW, group, lr=0.01)
        train(model, optimizer, 3)
        with pytest.raises(DistributedError, match="consolidate_state_dict"):
            optimizer.state_dict()
        optimizer.consolidate_state_dict(to=1)
        return optimizer.state_dict() if group.rank() == 1 else None

    whole = local_ranks.run(2, body)[1]
    model = network()
    plain = AdamW(model.parameters(), lr=0.01)
    train(model, plain, 3)
    right = plain.state_dict()
    assert [g["params"] for g in whole["param_groups"]] == [
        g["params"] for g in right["param_groups"]
    ]
    assert list(whole["state"]) == list(right["state"])
    for number, state in right["state"].items():
        for key, value in state.items():
            assert np.array_equal(whole["state"][number][key].numpy(), value.numpy())

    # ... and goes on in a job of another size
    def resume(group):
        model2 = network()
        model2.load_state_dict(model.state_dict())
        optimizer = ZeroRedundancyOptimizer(model2.parameters(), AdamW, group, lr=0.5)
        optimizer.load_state_dict(whole)
        assert optimizer.param_groups[0]["lr"] == 0.01
        train(model2, optimizer, 3, 3)
        return values(model2)

    results = local_ranks.run(3, resume)
    train(model, plain, 3, 3)
    assert all(equal(mine, values(model)) for mine in results)


def test_a_closure_and_more_ranks_than_parameters():
    def body(group):
        p = nn.Parameter(eager.ones(3))
        optimizer = ZeroRedundancyOptimizer([p], SGD, group, lr=0.25)

        def closure():
            optimizer.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        return optimizer.step(closure).item(), p.detach().tolist()

    assert local_ranks.run(3, body) == [(3.0, [0.5, 0.5, 0.5])] * 3


def test_errors():
    def body(group):
        params = list(network().parameters())
        with pytest.raises(ArgumentError, match="optimizer class"):
            ZeroRedundancyOptimizer(params, "SGD", group)
        with pytest.raises(ArgumentError, match="overlap_with_ddp"):
            ZeroRedundancyOptimizer(params, SGD, group, overlap_with_ddp=True)
        optimizer = ZeroRedundancyOptimizer(params, SGD, group, lr=0.1)
        with pytest.raises(ArgumentError, match="no such rank"):
            optimizer.consolidate_state_dict(5)
        with pytest.raises(ArgumentError, match="groups differ"):
            optimizer.load_state_dict({"state": {}, "param_groups": []})

    local_ranks.run(1, body)
