"""backward, grad, grad mode, hooks and custom functions."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import eager
from eager.autograd import Function, once_differentiable
from eager.errors import AutogradError, DTypeError, ShapeError, VersionError


def leaf(*values: float) -> eager.Tensor:
    return eager.tensor(list(values), requires_grad=True)


# --- backward and grad ---------------------------------------------------------------------------


def test_gradients_add_up() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0]
    x.grad = None
    assert x.grad is None


def test_backward_with_a_gradient() -> None:
    x = leaf(1.0, 2.0)
    y = x * x
    y.backward(eager.tensor([1.0, 10.0]), retain_graph=True)
    assert x.grad.tolist() == [2.0, 40.0]
    eager.autograd.backward([y, y.sum()], [eager.tensor([1.0, 0.0]), None])
    assert x.grad.tolist() == [2.0 + 2 + 2, 40.0 + 4]


def test_backward_into_inputs() -> None:
    x, w = leaf(1.0), leaf(2.0)
    (x * w).backward(inputs=[w])
    assert x.grad is None and w.grad.tolist() == [1.0]
    (x * w).backward(inputs=x)
    assert x.grad.tolist() == [2.0] and w.grad.tolist() == [1.0]


def test_grad() -> None:
    x, w, unused = leaf(1.0, 2.0), leaf(3.0), leaf(0.0)
    y = (x * w).sum()
    gx, gw = eager.autograd.grad(y, [x, w], retain_graph=True)
    assert gx.tolist() == [3.0, 3.0] and gw.tolist() == [3.0] and x.grad is None
    assert eager.autograd.grad(y, unused, allow_unused=True, retain_graph=True) == (None,)
    (zeros,) = eager.autograd.grad(y, unused, materialize_grads=True, retain_graph=True)
    assert zeros.tolist() == [0.0]
    with pytest.raises(AutogradError, match="allow_unused"):
        eager.autograd.grad(y, unused)


def test_grad_of_intermediate_results() -> None:
    x = leaf(2.0)
    y = x * x
    z = y * y
    assert eager.autograd.grad(z, [y, x])[0].item() == 8.0


def test_higher_orders() -> None:
    x = eager.tensor(2.0, requires_grad=True)
    y = x**4
    values = []
    for _ in range(4):
        (y,) = eager.autograd.grad(y, x, create_graph=True)
        values.append(y.item())
    assert values == pytest.approx([32.0, 48.0, 48.0, 24.0])
    x.sin().backward(create_graph=True)
    assert x.grad.requires_grad


def test_retain_grad() -> None:
    x = leaf(3.0)
    y = x * 2
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.tolist() == [12.0] and y.retains_grad


def test_leaves() -> None:
    x = leaf(1.0)
    assert x.is_leaf and x.grad_fn is None
    y = x * 2
    assert not y.is_leaf and y.requires_grad
    assert y.grad_fn.name() == "MulBackward" and repr(y.grad_fn) == "<MulBackward>"
    node, which = (y + 1).grad_fn.next_functions[0]
    assert node == y.grad_fn and which == 0 and hash(node) == hash(y.grad_fn)
    assert not y.detach().requires_grad
    z = eager.tensor([1.0])
    z.requires_grad = True
    assert z.requires_grad
    z.requires_grad_(False)
    assert not z.requires_grad
    with pytest.raises(AutogradError):
        y.requires_grad = False


def test_in_place_history() -> None:
    x = leaf(2.0, 3.0)
    y = x * 1
    y *= 3
    y.add_(1)
    y[0] = 5.0
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 3.0]


# --- bad gradients -------------------------------------------------------------------------------


def test_integer_tensors_have_no_gradient() -> None:
    with pytest.raises(DTypeError, match="floating"):
        eager.tensor([1]).requires_grad_()
    with pytest.raises(DTypeError):
        eager.tensor([1], requires_grad=True)
    x = leaf(1.7)
    assert not x.long().requires_grad and not (x > 1).requires_grad


def test_backward_twice() -> None:
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(AutogradError, match="retain_graph"):
        y.backward()


def test_changed_after_save() -> None:
    x = leaf(1.0, 2.0)
    y = x * 1
    z = y * y
    y.add_(1)
    with pytest.raises(VersionError, match="mul"):
        z.sum().backward()
    view = leaf(1.0, 2.0) * 1
    z = view.exp()
    z.detach().zero_()
    with pytest.raises(VersionError):
        z.sum().backward()


def test_missing_seeds() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(AutogradError):
        (x * 2).backward()
    with pytest.raises(ShapeError):
        (x * 2).backward(eager.tensor([1.0]))
    with pytest.raises(AutogradError):
        eager.tensor([1.0]).backward()
    with pytest.raises(AutogradError):
        x.sum().detach().backward()
    with pytest.raises(AutogradError, match="requires_grad_"):
        eager.autograd.grad(x.sum(), eager.tensor([1.0]))
    with pytest.raises(ValueError):
        x.sum().backward(inputs=[])
    with pytest.raises(ValueError):
        eager.autograd.backward([x.sum()], [None, None])
    with pytest.raises(TypeError):
        x.sum().backward("text")


def test_leaves_are_not_changed_in_place() -> None:
    x = leaf(1.0)
    with pytest.raises(AutogradError):
        x.add_(1)
    with pytest.raises(AutogradError):
        x += 1
    with pytest.raises(AutogradError):
        x[0] = 3.0
    with eager.no_grad():
        x.add_(1)
        x[0] += 1
    assert x.item() == 3.0 and x.requires_grad


def test_bad_grads() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(ShapeError):
        x.grad = eager.tensor([1.0])
    with pytest.raises(DTypeError):
        x.grad = eager.tensor([1, 2])
    with pytest.raises(TypeError):
        x.grad = 1.0
    with pytest.raises(eager.errors.DeviceError):
        x.grad = eager.empty(2, device="meta")
    with pytest.raises(eager.errors.ArgumentError):
        x.grad = x


# --- grad mode -----------------------------------------------------------------------------------


def test_grad_mode() -> None:
    x = leaf(1.0)
    with eager.no_grad():
        assert not eager.is_grad_enabled() and not (x * 2).requires_grad
        with eager.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert eager.is_grad_enabled()
    with eager.set_grad_enabled(False):
        assert not eager.is_grad_enabled()
    assert eager.is_grad_enabled()
    eager.set_grad_enabled(False)
    assert not eager.is_grad_enabled()
    eager.set_grad_enabled(True)
    with eager.inference_mode():
        assert not (x * 2).requires_grad
    with eager.inference_mode(False):
        assert (x * 2).requires_grad
    with pytest.raises(KeyError), eager.no_grad():
        raise KeyError
    assert eager.is_grad_enabled()


@pytest.mark.parametrize("decorate", [eager.no_grad(), eager.no_grad, eager.inference_mode()])
def test_grad_mode_as_decorator(decorate: Any) -> None:
    @decorate
    def double(x: eager.Tensor) -> eager.Tensor:
        """Doc."""
        return x * 2

    assert double.__name__ == "double" and double.__doc__ == "Doc."
    assert not double(leaf(1.0)).requires_grad
    assert eager.is_grad_enabled()


def test_grad_mode_belongs_to_the_thread() -> None:
    seen = []
    with eager.no_grad():
        thread = threading.Thread(target=lambda: seen.append(eager.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_run_their_own_backward() -> None:
    results: list[float] = []

    def work(k: int) -> None:
        x = leaf(*[float(k)] * 1000)
        for _ in range(20):
            x.grad = None
            (x * x).sum().backward()
        results.append(x.grad[0].item() / k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [2.0] * 4


# --- hooks ---------------------------------------------------------------------------------------


def test_hooks() -> None:
    x = leaf(1.0, 2.0)
    y = x * 3
    seen: list[Any] = []
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: seen.append(g.tolist()))
    y.sum().backward(retain_graph=True)
    assert seen == [[1.0, 1.0], [30.0, 30.0]] and x.grad.tolist() == [30.0, 30.0]
    handle.remove()
    handle.remove()
    with y.register_hook(lambda g: seen.append("inside")):
        pass
    y.sum().backward()
    assert seen[2:] == [[30.0, 30.0]]
    with pytest.raises(AutogradError):
        eager.tensor([1.0]).register_hook(print)


def test_errors_in_hooks_come_out() -> None:
    x = leaf(1.0)

    def broken(g: eager.Tensor) -> None:
        raise KeyError("broken")

    x.register_hook(broken)
    with pytest.raises(KeyError, match="broken"):
        (x * 2).sum().backward()
    y = leaf(1.0)
    y.register_hook(lambda g: "text")
    with pytest.raises(TypeError):
        (y * 2).sum().backward()


def test_hooks_are_freed() -> None:
    class Callback:
        def __call__(self, g: eager.Tensor) -> None:
            pass

    callback = Callback()
    ref = weakref.ref(callback)
    y = leaf(1.0) * 2
    y.register_hook(callback)
    del callback
    gc.collect()
    assert ref() is not None
    del y
    gc.collect()
    assert ref() is None


# --- custom functions ----------------------------------------------------------------------------


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


class Exp(Function):
    @staticmethod
    def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
        (y,) = ctx.saved_tensors
        return g * y


def test_function() -> None:
    x = leaf(1.0, 2.0)
    y = Cube.apply(x)
    assert y.grad_fn.name() == "CubeBackward"
    (2 * y).sum().backward()
    assert x.grad.tolist() == [6.0, 24.0]
    with eager.no_grad():
        assert not Cube.apply(x).requires_grad
    assert not Cube.apply(eager.tensor([1.0])).requires_grad


@pytest.mark.parametrize("function", [Cube, Exp])
def test_function_of_higher_order(function: Any) -> None:
    x = eager.tensor(0.5, requires_grad=True)
    y = function.apply(x)
    (g,) = eager.autograd.grad(y, x, create_graph=True)
    (h,) = eager.autograd.grad(g, x, create_graph=True)
    (t,) = eager.autograd.grad(h, x)
    e = 2.718281828459045**0.5
    expected = [0.75, 3.0, 6.0] if function is Cube else [e, e, e]
    assert [g.item(), h.item(), t.item()] == pytest.approx(expected)


def test_function_with_several_arguments_and_outputs() -> None:
    class Both(Function):
        @staticmethod
        def forward(ctx: Any, a: eager.Tensor, k: float, b: eager.Tensor) -> Any:
            ctx.k = k
            assert ctx.needs_input_grad == (True, False, False)
            return a * k, a + b, a.long()

        @staticmethod
        def backward(ctx: Any, g1: Any, g2: Any, g3: Any) -> Any:
            assert g2.tolist() == [0.0] and g3.tolist() == [0]
            return g1 * ctx.k + g2, None, None

    x = leaf(2.0)
    first, second, third = Both.apply(x, 5.0, eager.tensor([1.0]))
    assert second.requires_grad and not third.requires_grad
    first.sum().backward()
    assert x.grad.tolist() == [5.0]


def test_function_without_materialized_grads() -> None:
    seen = []

    class Two(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> Any:
            ctx.set_materialize_grads(False)
            a, b = x * 2, x * 3
            ctx.mark_non_differentiable(b)
            return a, b

        @staticmethod
        def backward(ctx: Any, ga: Any, gb: Any) -> Any:
            seen.append(gb)
            return ga * 2

    x = leaf(1.0)
    a, b = Two.apply(x)
    assert a.requires_grad and not b.requires_grad
    a.sum().backward()
    assert seen == [None] and x.grad.tolist() == [2.0]


def test_function_in_place() -> None:
    class Double(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            return g * 2

    x = leaf(1.0)
    y = x * 3
    z = Double.apply(y)
    assert z is y
    z.sum().backward()
    assert x.grad.tolist() == [6.0]
    with pytest.raises(AutogradError):
        Double.apply(leaf(1.0))


def test_function_that_returns_its_input() -> None:
    class Same(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
            return x

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            return g * 7

    x = leaf(1.0)
    y = Same.apply(x)
    assert y is not x and y.data_ptr() == x.data_ptr()
    y.sum().backward()
    assert x.grad.tolist() == [7.0]


def test_function_with_setup_context() -> None:
    class Square(Function):
        @staticmethod
        def forward(x: eager.Tensor) -> eager.Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(inputs[0], None)

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            x, nothing = ctx.saved_tensors
            assert nothing is None
            return 2 * x * g

    x = leaf(4.0)
    Square.apply(x).sum().backward()
    assert x.grad.tolist() == [8.0]


def test_function_errors() -> None:
    class Broken(Function):
        result: Any = None

        @staticmethod
        def forward(ctx: Any, x: eager.Tensor, y: Any) -> eager.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> Any:
            return Broken.result

    for result, error in [(None, AutogradError), ((None, None, leaf(1.0)), AutogradError),
                          ((1.0, None), TypeError)]:  # fmt: skip
        Broken.result = result
        with pytest.raises(error):
            Broken.apply(leaf(1.0), 2).sum().backward()
    x = leaf(1.0, 2.0)
    y = Cube.apply(x)
    y.sum().backward()
    with pytest.raises(AutogradError):
        y.sum().backward()
    w = leaf(1.0) * 1
    y = Cube.apply(w)
    w.add_(1)
    with pytest.raises(VersionError, match="Cube"):
        y.sum().backward()


def test_once_differentiable() -> None:
    class Once(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            return 2 * ctx.saved_tensors[0] * g

    x = leaf(3.0)
    assert eager.autograd.grad(Once.apply(x).sum(), x)[0].tolist() == [6.0]
    (g,) = eager.autograd.grad(Once.apply(x).sum(), x, create_graph=True)
    with pytest.raises(AutogradError, match="once"):
        g.sum().backward()


def test_cycles_through_functions_are_collected() -> None:
    class Keeps(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
            y = x * 2
            ctx.output = y  # makes a cycle: y, its node, the context, y
            return y

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            return g

    y = Keeps.apply(leaf(1.0))
    ref = weakref.ref(y)
    del y
    gc.collect()
    assert ref() is None


def test_long_chain_of_functions() -> None:
    class Step(Function):
        @staticmethod
        def forward(ctx: Any, x: eager.Tensor) -> eager.Tensor:
            ctx.save_for_backward(x)
            return x + 1

        @staticmethod
        def backward(ctx: Any, g: eager.Tensor) -> eager.Tensor:
            return g

    x = y = leaf(1.0)
    for _ in range(50_000):
        y = Step.apply(y)
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    y = x
    for _ in range(50_000):
        y = Step.apply(y)
    del y  # without backward: frees the chain


def test_long_chain() -> None:
    x = y = leaf(1.0)
    for _ in range(200_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    for _ in range(200_000):
        x = x * 1
    del x, y
