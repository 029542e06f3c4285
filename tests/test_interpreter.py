"""The hook every op call passes: what an interpreter sees, and what runs beneath it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import eager
from eager import op
from eager.op import Interpreter, push, registry


class Log(Interpreter):
    """Executes everything, and writes down what it saw."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[tuple[Any, ...]] = []

    def process(self, op: Any, inputs: Any, attrs: Any, target: Any) -> Any:
        assert isinstance(inputs, tuple) and isinstance(attrs, dict)
        self.calls.append(op.name + ("_" if target is not None else ""))
        self.last = (op, inputs, attrs, target)
        return super().process(op, inputs, attrs, target)

    def read(self, tensor: Any, value: Any) -> None:
        self.events.append(("read", tensor, value))

    def create(self, tensor: Any, data: Any) -> None:
        self.events.append(("create", tensor, data))

    def grad(self, tensor: Any, value: Any, written: bool) -> None:
        self.events.append(("grad", tensor, value, written))


def test_calls_are_seen() -> None:
    x, y = eager.tensor([1.0, 2.0]), eager.tensor([3.0, 4.0])
    log = Log()
    with push(log):
        z = x + y
        assert log.last[0] is registry["add"]
        assert log.last[1][0] is x and log.last[1][1] is y and log.last[2] == {}
        w = z[1:]
        assert log.last[2] == {"starts": (1,), "sizes": (1,), "steps": (1,), "drop": ()}
        w.to(eager.float64)
        assert log.last[2] == {"dtype": eager.float64}
        x += 1
        assert log.last[3] is x
        w.sum()
        assert log.last[2] == {"dims": (0,), "keepdim": False}
    assert log.calls == ["add", "slice", "cast", "add_", "sum"]
    assert z.tolist() == [4.0, 6.0] and x.tolist() == [2.0, 3.0]
    x + y
    assert len(log.calls) == 5


def test_numbers_are_weak_tensors() -> None:
    log = Log()
    with push(log):
        eager.tensor([1.0]) * 2.5
    number = log.last[1][1]
    assert number._is_weak and number.item() == 2.5 and number.shape == ()


def test_results_can_be_replaced() -> None:
    class Doubles(Interpreter):
        def process(self, op: Any, inputs: Any, attrs: Any, target: Any) -> Any:
            return op_execute(registry["add"], (inputs[0], inputs[0]), {})

    op_execute = op.execute
    x = eager.tensor([3.0])
    with push(Doubles()):
        assert x.exp().item() == 6.0


def test_interpreters_nest_and_do_not_see_themselves() -> None:
    class Curious(Log):
        def process(self, op: Any, inputs: Any, attrs: Any, target: Any) -> Any:
            inputs[0] + 1  # not seen
            with push(inner):
                inputs[0] * 2  # seen by inner
            return super().process(op, inputs, attrs, target)

    outer, inner = Curious(), Log()
    x = eager.tensor([1.0])
    with push(outer):
        x.exp()
        with push(inner):
            x.sin()
        x.cos()
    assert outer.calls == ["exp", "cos"] and inner.calls == ["mul", "sin", "mul"]


def test_events() -> None:
    log = Log()
    x = eager.tensor([2.0], requires_grad=True)
    a = np.ones(3, np.float32)
    with push(log):
        made = eager.tensor([1, 2])
        shared = eager.from_numpy(a)
        item = x.item()
        assert bool(x > 1)
        array = x.detach().numpy()
        x.grad = None
        (x * 3).sum().backward()
        g = x.grad
    kinds = [e[0] for e in log.events]
    assert kinds == ["create", "create", "read", "read", "read", "grad", "grad", "grad"]
    assert log.events[0] == ("create", made, [1, 2])
    assert log.events[1][1] is shared and log.events[1][2] is a
    assert log.events[2][1] is x and log.events[2][2] == item == 2.0
    assert log.events[3][2] is True
    assert log.events[4][2] is array
    assert log.events[5][2:] == (None, True)
    assert log.events[6][1] is x and log.events[6][2] is g and log.events[6][3] is True
    assert log.events[7][3] is False
    assert "mul" in log.calls  # the gradient's ops as well


def test_backward_is_seen_as_ops() -> None:
    x = eager.tensor([1.0, 2.0], requires_grad=True)
    y = (x.tanh() * x).sum()
    log = Log()
    with push(log):
        y.backward()
    assert {"mul", "expand"} <= set(log.calls)
    t = np.tanh([1.0, 2.0])
    np.testing.assert_allclose(x.grad.numpy(), t + np.array([1.0, 2.0]) * (1 - t * t), rtol=1e-6)


def test_gradients_are_recorded_through_an_interpreter() -> None:
    x = eager.tensor([1.0, 2.0], requires_grad=True)
    with push(Log()):
        y = (x * x).sum()
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_errors_come_out() -> None:
    class Broken(Interpreter):
        def process(self, op: Any, inputs: Any, attrs: Any, target: Any) -> Any:
            raise KeyError(op.name)

        def read(self, tensor: Any, value: Any) -> None:
            raise ValueError("read")

    x = eager.tensor([1.0])
    with push(Broken()):
        with pytest.raises(KeyError, match="exp"):
            x.exp()
        with pytest.raises(ValueError, match="read"):
            x.item()
    assert x.exp().item() > 2

    class Wrong(Interpreter):
        def process(self, op: Any, inputs: Any, attrs: Any, target: Any) -> Any:
            return "text"

    with push(Wrong()), pytest.raises(TypeError):
        x.exp()


def test_an_interpreter_belongs_to_its_thread() -> None:
    log = Log()
    x = eager.tensor([1.0])
    with push(log):
        thread = threading.Thread(target=lambda: x.exp())
        thread.start()
        thread.join()
    assert log.calls == []


def test_updates_are_seen_one_by_one() -> None:
    update = registry["sgd_update"]
    count = len(update.inputs) - 3

    def arguments() -> tuple[list[Any], list[Any]]:
        sets = []
        for k in range(2):
            tensors = [eager.tensor([1.0 + k, 2.0]) for _ in range(3)]
            sets.append((*tensors, *[eager.tensor(0.5)] * count))
        return sets, [s[: 3 if update.outputs == 3 else update.outputs] for s in sets]

    inputs, targets = arguments()
    targets = [(s[0], s[2])[: update.outputs] for s in inputs]
    eager._C.multi_update(update.id, inputs, targets)
    expected = [[t.tolist() for t in ts] for ts in targets]
    inputs, _ = arguments()
    targets = [(s[0], s[2])[: update.outputs] for s in inputs]
    log = Log()
    with push(log):
        eager._C.multi_update(update.id, inputs, targets)
    assert log.calls == ["sgd_update_", "sgd_update_"] and isinstance(log.last[3], tuple)
    assert [[t.tolist() for t in ts] for ts in targets] == expected
