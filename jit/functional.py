"""Gradients as functions of functions; they compile like any other function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import eager
from jit.pytree import flatten, unflatten


def value_and_grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns ``(value, gradients)`` of the scalar tensor `fn` returns.

    Args:
        fn: returns a scalar tensor, or with `has_aux` a pair of one and anything else.
        argnums: positional arguments (tensors, or nested tuples, lists and dicts of tensors) to
            differentiate with respect to.
        has_aux: the value is then a pair too.

    Returns:
        A function of the same arguments.  Gradients have the structure of the argument, in a
        tuple if `argnums` is one; where `fn` does not depend on a tensor they are zeros.  The
        arguments' own ``.grad`` is left alone.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fn)
    def with_gradient(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        leaves: list[Any] = []
        specs = []
        for n in numbers:
            tensors, spec = flatten(args[n])
            with eager.no_grad():
                fresh = [t.detach() for t in tensors]
            fresh = [t.requires_grad_() for t in fresh]
            specs.append((spec, len(leaves), len(leaves) + len(fresh)))
            leaves += fresh
            given[n] = unflatten(spec, fresh)
        with eager.enable_grad():
            out = fn(*given, **kwargs)
        value = out[0] if has_aux else out
        found = eager.autograd.grad(value, leaves, allow_unused=True)
        grads = [
            eager.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)
        ]
        trees = tuple(unflatten(spec, grads[i:j]) for spec, i, j in specs)
        value = (value.detach(), out[1]) if has_aux else value.detach()
        return value, trees[0] if isinstance(argnums, int) else trees

    return with_gradient


def grad(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """As `value_and_grad`, without the value; with `has_aux`: ``(gradients, aux)``."""
    both = value_and_grad(fn, argnums, has_aux=has_aux)

    @functools.wraps(fn)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient
