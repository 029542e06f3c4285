"""Optimizers and schedules against their formulae in NumPy."""

import copy
import math

import numpy as np
import pytest

import eager
from eager import _state, nn, optim
from eager.errors import ArgumentError
from eager.optim import lr_scheduler as schedules

rng = np.random.default_rng(0)
SHAPES = [(3, 4), (5,), ()]


def sgd(p, g, state, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
    g = (-g if maximize else g) + weight_decay * p
    if momentum:
        first = "buf" not in state
        state["buf"] = g if first else momentum * state["buf"] + (1 - dampening) * g
        g = g + momentum * state["buf"] if nesterov else state["buf"]
    return p - lr * g


def adam(p, g, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False, w=False):
    g = -g if maximize else g
    if w:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g * g
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps)


def adamw(*args, **kwargs):
    return adam(*args, **{"weight_decay": 1e-2, **kwargs}, w=True)


CASES = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, adam, {"lr": 0.1}),
    (optim.Adam, adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    (optim.Adam, adam, {"lr": 0.1, "maximize": True}),
    (optim.AdamW, adamw, {"lr": 0.1}),
    (optim.AdamW, adamw, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.0, 0.9)}),
]


def leaves(dtype=eager.float64):
    return [nn.Parameter(eager.tensor(rng.normal(size=s), dtype=dtype)) for s in SHAPES]


def give_grads(params):
    grads = [rng.normal(size=s) for s in SHAPES]
    for p, g in zip(params, grads, strict=True):
        p.grad = eager.tensor(g, dtype=p.dtype)
    return grads


@pytest.mark.parametrize("kind,formula,options", CASES)
@pytest.mark.parametrize("dtype", [eager.float64, eager.float32])
def test_updates(kind, formula, options, dtype):
    params = leaves(dtype)
    values = [p.detach().numpy().astype(np.float64) for p in params]
    states = [{} for _ in params]
    optimizer = kind(params, **options)
    tolerance = 1e-12 if dtype == eager.float64 else 1e-4
    for _ in range(5):
        grads = give_grads(params)
        assert optimizer.step() is None
        values = [formula(*x, **options) for x in zip(values, grads, states, strict=True)]
        for p, value in zip(params, values, strict=True):
            assert p.is_leaf and p.requires_grad
            np.testing.assert_allclose(p.detach().numpy(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [eager.float16, eager.bfloat16])
@pytest.mark.parametrize(("kind", "formula"), [(optim.SGD, sgd), (optim.AdamW, adamw)])
def test_low_precision(kind, formula, dtype):
    params = leaves(dtype)
    optimizer = kind(params, lr=0.1)
    give_grads(params)
    before = [(p.detach().double().numpy(), p.grad.double().numpy()) for p in params]
    optimizer.step()
    eps = eager.finfo(dtype).eps
    for p, (old, grad) in zip(params, before, strict=True):
        assert p.dtype == dtype
        want = formula(old, grad, {}, lr=0.1)
        np.testing.assert_allclose(p.detach().double().numpy(), want, rtol=4 * eps, atol=0.4 * eps)


def test_parameters_without_gradient_stay():
    params = leaves()
    optimizer = optim.Adam(params)
    give_grads(params)
    params[1].grad = None
    before = params[1].tolist()
    optimizer.step()
    assert params[1].tolist() == before and params[1] not in optimizer.state
    give_grads(params)
    optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 2
    assert optimizer.state[params[1]]["step"].item() == 1


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_updates_are_seen_by_version_checks(kind):
    p = nn.Parameter(eager.ones(2))
    loss = (p * p).sum()
    p.grad = eager.ones(2)
    kind([p], lr=0.1).step()
    with pytest.raises(eager.errors.VersionError):
        loss.backward()


def test_closure():
    p = nn.Parameter(eager.tensor([1.0]))
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with eager.no_grad():
        assert optimizer.step(closure).item() == 1
    assert p.item() == 0


def test_groups():
    a, b = nn.Parameter(eager.ones(1)), nn.Parameter(eager.ones(1))
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 1.0}], lr=0.1)
    a.grad, b.grad = eager.ones(1), eager.ones(1)
    optimizer.step()
    assert a.item() == pytest.approx(0.9) and b.item() == 0
    optimizer.add_param_group({"params": [nn.Parameter(eager.ones(2))]})
    assert optimizer.param_groups[2]["lr"] == 0.1
    optimizer.zero_grad(set_to_none=False)
    assert a.grad.item() == 0
    optimizer.zero_grad()
    assert a.grad is None
    assert "Parameter Group 2" in repr(optimizer) and "lr: 1.0" in repr(optimizer)


def test_options_take_effect_when_written():
    p = nn.Parameter(eager.zeros(1))
    optimizer = optim.SGD([p], lr=0.1)
    (group,) = optimizer.param_groups
    kept = group.tensor("lr")
    epoch = _state.epoch
    for write, lr in [
        (lambda: group.update(lr=0.5), 0.5),
        (lambda: group.__setitem__("lr", 0.25), 0.25),
        (lambda: group.setdefault("lr", 9.0), 0.25),
        (lambda: group.__ior__({"lr": 2}), 2),
        (lambda: group.__setitem__("lr", eager.tensor(4.0)), 4),
    ]:
        write()
        with eager.no_grad():
            p.zero_()
        p.grad = eager.ones(1)
        optimizer.step()
        assert p.item() == -lr
    assert group.tensor("lr") is kept and _state.epoch == epoch
    group["momentum"] = 0.5
    assert _state.epoch != epoch
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].item() == 1
    epoch = _state.epoch
    group["nesterov"] = True
    assert _state.epoch != epoch
    assert group.pop("extra", 3) == 3
    group["extra"] = 1
    assert group.pop("extra") == 1 and "extra" not in group


@pytest.mark.parametrize("kind,options", [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}), (optim.Adam, {"lr": 0.1}),
])  # fmt: skip
def test_state_dict(kind, options):
    params = leaves()
    optimizer = kind(params, **options)
    for _ in range(3):
        give_grads(params)
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    assert list(state) == ["state", "param_groups"]
    assert state["param_groups"][0]["params"] == [0, 1, 2]
    assert state["param_groups"][0]["lr"] == 0.1
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = kind(twins, lr=5.0)
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.1
    for _ in range(2):
        grads = give_grads(params)
        for p, g in zip(twins, grads, strict=True):
            p.grad = eager.tensor(g)
        optimizer.step()
        other.step()
    for p, q in zip(params, twins, strict=True):
        assert p.tolist() == q.tolist()


def test_loading_writes_into_the_state_there_is():
    params = leaves()
    optimizer = optim.Adam(params)
    give_grads(params)
    optimizer.step()
    held = optimizer.state[params[0]]["exp_avg"]
    state = copy.deepcopy(optimizer.state_dict())
    give_grads(params)
    optimizer.step()
    optimizer.load_state_dict(state)
    assert optimizer.state[params[0]]["exp_avg"] is held
    assert held.tolist() == state["state"][0]["exp_avg"].tolist()
    assert optimizer.state[params[0]]["step"].item() == 1
    with pytest.raises(ArgumentError, match="groups"):
        optim.Adam(params[:1]).load_state_dict(state)


def test_saved_in_a_file(tmp_path):
    params = leaves()
    optimizer = optim.AdamW(params)
    give_grads(params)
    optimizer.step()
    eager.save(optimizer.state_dict(), tmp_path / "state.safetensors")
    other = optim.AdamW([nn.Parameter(p.detach().clone()) for p in params])
    other.load_state_dict(eager.load(tmp_path / "state.safetensors"))
    assert other.param_groups[0]["betas"] == (0.9, 0.999)
    loaded = list(other.state.values())
    assert loaded[0]["exp_avg"].tolist() == optimizer.state[params[0]]["exp_avg"].tolist()


def test_bad_arguments():
    p = nn.Parameter(eager.ones(1))
    with pytest.raises(ArgumentError, match="nothing"):
        optim.SGD([])
    with pytest.raises(ArgumentError, match="lr"):
        optim.SGD([p], lr=-1)
    with pytest.raises(ArgumentError, match="twice"):
        optim.SGD([p, p])
    with pytest.raises(ArgumentError, match="two groups"):
        optim.SGD([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ArgumentError, match="leaves"):
        optim.SGD([p * 2])
    with pytest.raises(ArgumentError, match="tensors"):
        optim.SGD([1.0])
    with pytest.raises(ArgumentError, match="order"):
        optim.SGD({p})
    with pytest.raises(ArgumentError, match="nesterov"):
        optim.SGD([p], nesterov=True)
    with pytest.raises(ArgumentError, match="beta"):
        optim.Adam([p], betas=(0.9, 1.0))
    with pytest.raises(ArgumentError, match="amsgrad"):
        optim.Adam([p], amsgrad=True)
    with pytest.raises(ArgumentError, match="differentiable"):
        optim.AdamW([p], differentiable=True)


def test_training_reduces_the_loss():
    eager.manual_seed(0)
    x, y = eager.randn(64, 3), eager.randn(64, 1)
    model = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# --- schedules ----------------------------------------------------------------------------------

LR = 0.5
SCHEDULES = {
    "LambdaLR": (lambda o: schedules.LambdaLR(o, lambda e: 0.9**e), lambda e: LR * 0.9**e),
    "MultiplicativeLR": (lambda o: schedules.MultiplicativeLR(o, lambda e: 0.8),
                         lambda e: LR * 0.8**e),
    "StepLR": (lambda o: schedules.StepLR(o, 3, 0.5), lambda e: LR * 0.5 ** (e // 3)),
    "MultiStepLR": (lambda o: schedules.MultiStepLR(o, [2, 5, 5], 0.5),
                    lambda e: LR * 0.5 ** ((e >= 2) + 2 * (e >= 5))),
    "ExponentialLR": (lambda o: schedules.ExponentialLR(o, 0.9), lambda e: LR * 0.9**e),
    "ConstantLR": (lambda o: schedules.ConstantLR(o, 0.5, 4), lambda e: LR * (0.5 if e < 4 else 1)),
    "LinearLR": (lambda o: schedules.LinearLR(o, 0.25, 1.0, 4),
                 lambda e: LR * (0.25 + 0.75 * min(e, 4) / 4)),
    "CosineAnnealingLR": (lambda o: schedules.CosineAnnealingLR(o, 4, 0.1),
                          lambda e: 0.1 + (LR - 0.1) * (1 + math.cos(math.pi * e / 4)) / 2),
    "SequentialLR": (
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.5, 1.0, 3), schedules.ExponentialLR(o, 0.5)], [3]
        ),
        lambda e: LR * (0.5 + 0.5 * e / 3) if e < 3 else LR * 0.5 ** (e - 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    make, closed_form = SCHEDULES[name]
    optimizer = optim.SGD([nn.Parameter(eager.zeros(1))], lr=LR)
    schedule = make(optimizer)
    for epoch in range(10):
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(closed_form(epoch))
        assert group.tensor("lr").item() == group["lr"]
        assert schedule.get_last_lr() == [group["lr"]]
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_resume(name):
    make, closed_form = SCHEDULES[name]
    first = optim.SGD([nn.Parameter(eager.zeros(1))], lr=LR)
    schedule = make(first)
    for _ in range(4):
        schedule.step()
    second = optim.SGD([nn.Parameter(eager.zeros(1))], lr=LR)
    resumed = make(second)
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in range(5, 9):
        resumed.step()
        assert second.param_groups[0]["lr"] == pytest.approx(closed_form(epoch))


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle(strategy):
    optimizer = optim.Adam([nn.Parameter(eager.zeros(1))])
    schedule = schedules.OneCycleLR(optimizer, 1.0, 21, pct_start=11 / 21, anneal_strategy=strategy)
    rates, momenta = [], []
    for step in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        if step < 20:
            schedule.step()
    assert rates[0] == pytest.approx(1 / 25) and rates[10] == pytest.approx(1)
    assert rates[20] == pytest.approx(1 / 25e4)
    assert rates[5] == pytest.approx((1 + 1 / 25) / 2)
    assert (momenta[0], momenta[10], momenta[20]) == pytest.approx((0.95, 0.85, 0.95))
    with pytest.raises(ArgumentError, match="over"):
        schedule.step()


def test_reduce_on_plateau():
    optimizer = optim.SGD([nn.Parameter(eager.zeros(1))], lr=1.0)
    schedule = schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1)
    rates = []
    for metric in [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]:
        schedule.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    with pytest.raises(ArgumentError):
        schedule.step()
    rising = schedules.ReduceLROnPlateau(optimizer, "max", 0.5, 0, min_lr=0.2)
    for metric in (eager.tensor(1.0), 2.0, 2.0, 2.0):
        rising.step(metric)
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_schedule_errors():
    optimizer = optim.SGD([nn.Parameter(eager.zeros(1))], lr=1.0)
    with pytest.raises(ArgumentError, match="initial_lr"):
        schedules.StepLR(optimizer, 1, last_epoch=3)
    with pytest.raises(ArgumentError, match="per parameter group"):
        schedules.LambdaLR(optimizer, [lambda e: 1, lambda e: 1])
    with pytest.raises(ArgumentError, match="milestone"):
        schedules.SequentialLR(optimizer, [schedules.ExponentialLR(optimizer, 0.5)], [1])
