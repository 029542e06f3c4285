"""How much each op call costs: tiny operands, so that the framework is what is measured; then a
training step of a small MLP and two large elementwise ops, where the machine should be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.suites import Case

SMALL = {
    "add16": "a + b",
    "mul16": "a * b",
    "exp16": "exp(a)",
    "sum16": "a.sum()",
    "reshape16": "a.reshape(4, 4)",
    "slice16": "a[2:9]",
    "matmul64": "m @ n",
}
LARGE = {"add1m": "big + other", "exp1m": "exp(big)"}
LIBRARIES = ["eager", "torch", "numpy", "jax"]
CHAIN = "(a * b + a).tanh().sum().backward()"
CASES = [
    *SMALL,
    *(f"{name}_grad" for name in SMALL),
    "chain16_backward",
    "mlp_step",
    *LARGE,
]  # fmt: skip

_rng = np.random.default_rng(0)
_ARRAYS = {
    "a": _rng.standard_normal(16).astype(np.float32),
    "b": _rng.standard_normal(16).astype(np.float32),
    "m": _rng.standard_normal((64, 64)).astype(np.float32),
    "n": _rng.standard_normal((64, 64)).astype(np.float32),
    "big": _rng.standard_normal(1_000_000).astype(np.float32),
    "other": _rng.standard_normal(1_000_000).astype(np.float32),
}
_X = _rng.standard_normal((64, 784)).astype(np.float32)
_Y = _rng.integers(0, 10, 64)
LAYERS = (784, 256, 128, 10)


def cases(library: str, module: Any) -> dict[str, Case]:
    """The cases that `library` has."""
    if library == "numpy":
        return {
            name: Case(code, lambda: {**_ARRAYS, "exp": np.exp})
            for name, code in {**SMALL, **LARGE}.items()
        }
    if library == "jax":
        return _jax(module)
    return _torch_like(module)


def _torch_like(lib: Any) -> dict[str, Case]:
    def names(grad: bool) -> dict[str, Any]:
        tensors = {k: lib.from_numpy(v.copy()) for k, v in _ARRAYS.items()}
        if grad:
            for t in tensors.values():
                t.requires_grad_()
        return {**tensors, "exp": lib.exp}

    def mlp() -> dict[str, Any]:
        lib.manual_seed(0)
        nn = lib.nn
        i, h, j, o = LAYERS
        model = nn.Sequential(
            nn.Linear(i, h), nn.ReLU(), nn.Linear(h, j), nn.ReLU(), nn.Linear(j, o)
        )
        loss_fn = nn.CrossEntropyLoss()
        optimizer = lib.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        x, y = lib.from_numpy(_X), lib.from_numpy(_Y)

        def step() -> None:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()

        return {"step": step}

    found = {name: Case(code, lambda: names(False)) for name, code in {**SMALL, **LARGE}.items()}
    found |= {f"{name}_grad": Case(code, lambda: names(True)) for name, code in SMALL.items()}
    found["chain16_backward"] = Case(CHAIN, lambda: names(True))
    found["mlp_step"] = Case("step()", mlp)
    return found


def _jax(jax: Any) -> dict[str, Case]:
    jnp = jax.numpy

    def names() -> dict[str, Any]:
        arrays = {k: jnp.asarray(v) for k, v in _ARRAYS.items()}

        def wait(x: Any) -> Any:
            return x.block_until_ready()

        return {**arrays, "exp": jnp.exp, "wait": wait}

    def chain() -> dict[str, Any]:
        # JAX users differentiate functions; compiled, as they would write it
        f = jax.jit(jax.grad(lambda a, b: jnp.tanh(a * b + a).sum(), argnums=(0, 1)))
        a, b = jnp.asarray(_ARRAYS["a"]), jnp.asarray(_ARRAYS["b"])
        return {"run": lambda: jax.block_until_ready(f(a, b))}

    def mlp() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        params = []
        for i, o in pairwise(LAYERS):
            w = rng.uniform(-1, 1, (i, o)).astype(np.float32) / np.sqrt(i)
            params.append((jnp.asarray(w), jnp.zeros(o, jnp.float32)))
        x, y = jnp.asarray(_X), jnp.asarray(_Y)

        def loss(params: Any) -> Any:
            h = x
            for w, b in params[:-1]:
                h = jax.nn.relu(h @ w + b)
            w, b = params[-1]
            logp = jax.nn.log_softmax(h @ w + b)
            return -jnp.take_along_axis(logp, y[:, None], axis=1).mean()

        @jax.jit
        def update(params: Any, velocity: Any) -> Any:
            value, grads = jax.value_and_grad(loss)(params)
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
            params = jax.tree.map(lambda p, v: p - 0.01 * v, params, velocity)
            return value, params, velocity

        state = {"p": params, "v": jax.tree.map(jnp.zeros_like, params)}

        def step() -> None:
            _, state["p"], state["v"] = jax.block_until_ready(update(state["p"], state["v"]))

        return {"step": step}

    found = {name: Case(f"wait({code})", names) for name, code in {**SMALL, **LARGE}.items()}
    found["chain16_backward"] = Case("run()", chain)
    found["mlp_step"] = Case("step()", mlp)
    return found
