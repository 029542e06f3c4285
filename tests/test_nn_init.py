"""Initial values, and tools on parameters."""

import numpy as np
import pytest

import eager
from eager import nn
from eager.errors import ArgumentError, ShapeError


def test_init_bounds_and_moments():
    g = eager.Generator().manual_seed(0)
    w = eager.empty(200, 300)
    assert nn.init.uniform_(w, -2, 3, generator=g) is w
    assert -2 <= w.min().item() < -1.9 and 2.9 < w.max().item() < 3
    nn.init.normal_(w, 1.0, 2.0, generator=g)
    assert abs(w.mean().item() - 1) < 0.05 and abs(w.std().item() - 2) < 0.05
    nn.init.xavier_uniform_(w, generator=g)
    assert 0.9 < w.abs().max().item() / np.sqrt(6 / 500) <= 1
    nn.init.xavier_normal_(w, generator=g)
    assert abs(w.std().item() / np.sqrt(2 / 500) - 1) < 0.05
    nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=g)
    assert 0.9 < w.abs().max().item() / np.sqrt(6 / 300) <= 1
    nn.init.kaiming_normal_(w, mode="fan_out", generator=g)
    assert abs(w.std().item() / np.sqrt(2 / 200) - 1) < 0.05
    nn.init.trunc_normal_(w, 0.5, 1.0, -0.5, 1.0, generator=g)
    assert w.min().item() >= -0.5 and w.max().item() <= 1
    a, b = -1.0, 0.5  # the bounds in deviations
    density = [np.exp(-z * z / 2) / np.sqrt(2 * np.pi) for z in (a, b)]
    mass = 0.6914624612740131 - 0.15865525393145707
    assert abs(w.mean().item() - (0.5 + (density[0] - density[1]) / mass)) < 0.01
    assert nn.init.constant_(w, 3)[0, 0].item() == 3
    assert nn.init.ones_(w).sum().item() == w.numel()
    assert nn.init.zeros_(w).sum().item() == 0
    assert nn.init.eye_(w).sum().item() == 200


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 2, 3)])
def test_orthogonal(shape):
    w = nn.init.orthogonal_(eager.empty(*shape), gain=2.0).numpy().reshape(shape[0], -1)
    product = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


def test_init_generator_and_errors():
    draws = [
        nn.init.normal_(eager.empty(4), generator=eager.Generator().manual_seed(3)).tolist()
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    param = nn.Parameter(eager.empty(2, 2))
    nn.init.zeros_(param)
    assert param.requires_grad and param.is_leaf
    assert nn.init.calculate_gain("leaky_relu", 1.0) == 1.0
    with pytest.raises(ArgumentError):
        nn.init.calculate_gain("unknown")
    with pytest.raises(ShapeError):
        nn.init.xavier_uniform_(eager.empty(3))
    with pytest.raises(ArgumentError):
        nn.init.kaiming_uniform_(eager.empty(3, 3), mode="fan")
    with pytest.raises(ArgumentError):
        nn.init.trunc_normal_(eager.empty(3), a=1, b=0)
    with pytest.raises(ShapeError):
        nn.init.orthogonal_(eager.empty(3))


# --- nn.utils -----------------------------------------------------------------------------------


def test_clip_gradients():
    params = [
        nn.Parameter(eager.zeros(2)),
        nn.Parameter(eager.zeros(3)),
        nn.Parameter(eager.ones(1)),
    ]
    grads = [np.array([3.0, 0.0]), np.array([0.0, 4.0, 0.0])]

    def reset():
        for p, g in zip(params, grads, strict=False):
            p.grad = eager.tensor(g, dtype=eager.float32)

    reset()
    assert nn.utils.clip_grad_norm_(params, 1.0).item() == pytest.approx(5)
    assert params[0].grad.tolist() == pytest.approx([0.6, 0])
    reset()
    assert nn.utils.clip_grad_norm_(params, 10.0, float("inf")).item() == 4
    assert params[1].grad.tolist() == [0, 4, 0]
    assert nn.utils.clip_grad_norm_(params, 10.0, 1.0).item() == pytest.approx(7)
    nn.utils.clip_grad_value_(params, 2.0)
    assert params[0].grad.tolist() == [2, 0] and params[1].grad.tolist() == [0, 2, 0]
    params[0].grad = eager.tensor([float("nan"), 0])
    with pytest.raises(ArgumentError):
        nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0


def test_parameter_vectors():
    params = [nn.Parameter(eager.zeros(2, 2)), nn.Parameter(eager.zeros(3))]
    vector = nn.utils.parameters_to_vector(params)
    assert vector.shape == (7,)
    nn.utils.vector_to_parameters(eager.arange(7.0), params)
    assert params[0].tolist() == [[0, 1], [2, 3]] and params[1].tolist() == [4, 5, 6]
    with pytest.raises(ShapeError):
        nn.utils.vector_to_parameters(eager.ones(6), params)
