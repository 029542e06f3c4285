"""Modules: registration, traversal, state, hooks, containers."""

import copy
import pickle

import numpy as np
import pytest

import eager
from eager import _state, nn
from eager.errors import ArgumentError, DTypeError, IndexOutOfRange, ShapeError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.register_buffer("count", eager.zeros(2))
        self.register_buffer("scratch", eager.ones(1), persistent=False)
        self.factor = 2.0

    def forward(self, x):
        return self.rest(self.first(x)) * self.factor


# --- registration and traversal -----------------------------------------------------------------


def test_names():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == ["first.weight", "first.bias", "rest.1.weight"]
    assert [n for n, _ in net.named_buffers()] == ["count", "scratch"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in net.named_children()] == ["first", "rest"]
    assert len(list(net.parameters(recurse=False))) == 0
    assert net.get_submodule("rest.1") is net.rest[1]
    assert net.get_parameter("first.bias") is net.first.bias
    assert net.get_buffer("count") is net.count
    for missing in ("none", "rest.7"):
        with pytest.raises(AttributeError):
            net.get_submodule(missing)
    with pytest.raises(AttributeError):
        net.get_parameter("first.none")
    with pytest.raises(AttributeError, match="no attribute 'none'"):
        _ = net.none


def test_shared_parameters_and_modules_are_listed_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert len(list(net.parameters())) == 3
    assert len(list(net.named_parameters(remove_duplicate=False))) == 4
    layer = nn.Linear(1, 1)
    twice = nn.Sequential(layer, layer)
    assert len(list(twice.modules())) == 2
    assert len(twice.state_dict()) == 4


def test_parameter_is_a_leaf_tensor_that_requires_grad():
    data = eager.ones(2)
    param = nn.Parameter(data)
    assert isinstance(param, eager.Tensor) and param.requires_grad and param.is_leaf
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    with eager.no_grad():
        param.add_(1)
    assert data.tolist() == [2, 2]
    assert not isinstance(param + 1, nn.Parameter)
    assert repr(param).startswith("Parameter containing:\n")


def test_assignment_rules():
    net = Net()
    with pytest.raises(DTypeError, match="weight"):
        net.first.weight = eager.ones(4, 3)
    net.first.bias = None
    assert "first.bias" not in net.state_dict()
    net.count = eager.ones(2)
    assert dict(net.named_buffers())["count"].tolist() == [1, 1]
    net.first = nn.Identity()
    assert isinstance(net.first, nn.Identity)
    del net.first
    assert "first" not in dict(net.named_children())
    with pytest.raises(AttributeError):
        del net.first
    with pytest.raises(KeyError):
        net.register_buffer("factor", eager.ones(1))
    with pytest.raises(ArgumentError):
        net.register_parameter("a.b", None)
    with pytest.raises(DTypeError, match="Parameter"):
        nn.Linear(2, 2).register_parameter("w", nn.Parameter(eager.ones(1)) * 2)
    with pytest.raises(DTypeError):
        net.register_buffer("text", "text")
    with pytest.raises(DTypeError):
        net.register_module("text", "text")


def test_assignment_before_init_is_an_error():
    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match="super"):
        Early()


def test_buffer_class():
    class WithBuffers(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Buffer(eager.ones(1))
            self.lost = nn.Buffer(eager.ones(1), persistent=False)

    module = WithBuffers()
    assert list(module.state_dict()) == ["kept"]
    assert len(list(module.buffers())) == 2 and not list(module.parameters())


def test_structural_changes_are_noticed():
    net = Net()

    def changes(action):
        before = _state.epoch
        action()
        return _state.epoch != before

    assert changes(lambda: setattr(net, "factor", 3.0))
    assert not changes(lambda: setattr(net, "factor", net.factor))
    assert changes(lambda: setattr(net.first, "weight", nn.Parameter(eager.ones(4, 3))))
    assert changes(lambda: setattr(net, "count", eager.ones(2)))
    assert changes(lambda: net.eval())
    assert not changes(lambda: net.eval())
    assert changes(lambda: net.register_forward_hook(lambda *a: None).remove())
    assert changes(lambda: net.double())
    assert changes(lambda: net.rest.append(nn.ReLU()))
    assert not changes(lambda: net(eager.ones(1, 3, dtype=eager.float64)))


def test_undone_changes_bring_the_old_epoch_back():
    net = Net()
    epoch = _state.epoch
    net.eval()
    net.factor = 3.0
    evaluating = _state.epoch
    net.train()
    assert epoch != _state.epoch != evaluating
    net.factor = 2.0
    assert _state.epoch == epoch
    net.factor = 2
    assert _state.epoch != epoch
    net.factor = 2.0
    twin = copy.deepcopy(net)
    assert not _state.may_return(epoch)
    epoch = _state.epoch
    net.eval()
    twin.eval()
    assert _state.epoch != epoch and _state.may_return(epoch)


def test_train_eval_zero_grad_requires_grad():
    net = Net()
    net.eval()
    assert not net.training and not net.rest[1].training
    net.train()
    assert net.rest[0].training
    net(eager.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all(p.grad.abs().sum().item() == 0 for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not net(eager.ones(1, 3)).requires_grad
    with pytest.raises(ArgumentError):
        net.train("yes")


def test_apply_and_conversion():
    net = Net()
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Net"]
    weight = net.first.weight
    net(eager.ones(1, 3)).sum().backward()
    net.to(eager.float64)
    assert net.first.weight is weight and weight.dtype == eager.float64
    assert weight.grad.dtype == eager.float64
    assert net.count.dtype == eager.float64
    assert net(eager.ones(1, 3, dtype=eager.float64)).dtype == eager.float64
    for convert, dtype in (("half", "float16"), ("bfloat16", "bfloat16"), ("float", "float32")):
        assert getattr(net, convert)().first.weight.dtype == getattr(eager, dtype)
    net.register_buffer("steps", eager.zeros(1, dtype=eager.int64))
    assert net.double().steps.dtype == eager.int64
    with pytest.raises(DTypeError):
        net.to(eager.int64)
    assert net.to("cpu", eager.float32).cpu().first.weight.dtype == eager.float32


# --- state --------------------------------------------------------------------------------------


def test_state_dict_round_trip():
    first, second = Net(), Net()
    state = first.state_dict()
    assert list(state) == ["count", "first.weight", "first.bias", "rest.1.weight"]
    assert not any(t.requires_grad for t in state.values())
    result = second.load_state_dict(state)
    assert result == ([], []) and "matched" in repr(result)
    x = eager.ones(2, 3)
    assert second(x).tolist() == first(x).tolist()
    assert second.first.weight.requires_grad
    with eager.no_grad():
        first.first.weight.zero_()
    assert state["first.weight"].abs().sum().item() == 0
    assert second.first.weight.abs().sum().item() > 0


def test_load_state_dict_errors_change_nothing():
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    missing = {k: v for k, v in state.items() if k != "first.bias"}
    with pytest.raises(ArgumentError, match=r"missing \['first.bias'\]"):
        net.load_state_dict(missing)
    with pytest.raises(ArgumentError, match=r"unexpected \['extra'\]"):
        net.load_state_dict({**state, "extra": eager.ones(1)})
    with pytest.raises(ShapeError, match=r"first\.weight"):
        net.load_state_dict({**state, "first.weight": eager.ones(1, 3)})
    with pytest.raises(ArgumentError, match="not a tensor"):
        net.load_state_dict({**state, "count": [0, 0]})
    for name, value in net.state_dict().items():
        assert value.tolist() == before[name].tolist()
    result = net.load_state_dict({**missing, "extra": eager.ones(1)}, strict=False)
    assert result.missing_keys == ["first.bias"] and result.unexpected_keys == ["extra"]
    assert net.count.tolist() == [1, 1]


def test_load_state_dict_assign():
    net = Net()
    state = {k: eager.ones_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    with eager.no_grad():
        state["first.weight"].fill_(5)
    assert net.first.weight[0, 0].item() == 5
    assert isinstance(net.first.weight, nn.Parameter) and net.first.weight.requires_grad


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    twin = duplicate(net)
    assert twin[1].weight is twin[0].weight
    assert isinstance(twin[0].weight, nn.Parameter) and twin[0].weight.requires_grad
    x = eager.ones(1, 2)
    assert twin(x).tolist() == net(x).tolist()
    with eager.no_grad():
        twin[0].weight.zero_()
    assert net[0].weight.abs().sum().item() > 0


# --- hooks --------------------------------------------------------------------------------------


def test_forward_hooks():
    layer = nn.Linear(2, 2)
    calls = []
    pre = layer.register_forward_pre_hook(lambda m, args: calls.append("pre") or (args[0] * 0,))
    post = layer.register_forward_hook(lambda m, args, y: calls.append("post") or y + 1)
    early = layer.register_forward_pre_hook(lambda m, a: calls.append("early"), prepend=True)
    x = eager.ones(1, 2)
    assert layer(x).tolist() == (layer.bias + 1).unsqueeze(0).tolist()
    assert calls == ["early", "pre", "post"]
    early.remove()
    with pre, post:
        layer(x)
    plain = layer(x)
    assert plain.tolist() == nn.functional.linear(x, layer.weight, layer.bias).tolist()
    assert len(calls) == 5
    layer.register_forward_pre_hook(
        lambda m, args, kwargs: ((), {"input": kwargs["input"] * 0}), with_kwargs=True
    )
    layer.register_forward_hook(lambda m, a, k, y: y + k["input"].sum(), with_kwargs=True)
    assert layer(input=x).tolist() == layer.bias.unsqueeze(0).tolist()


def test_backward_hooks():
    layer = nn.Linear(2, 3, bias=False)
    seen = {}

    def hook(module, grad_input, grad_output):
        seen["in"], seen["out"] = grad_input, grad_output
        return (grad_input[0] * 2,)

    handle = layer.register_full_backward_hook(hook)
    x = eager.ones(1, 2, requires_grad=True)
    layer(x).sum().backward()
    expected = layer.weight.sum(0, keepdim=True).tolist()
    assert seen["in"][0].tolist() == expected
    assert seen["out"][0].tolist() == [[1, 1, 1]]
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.array(expected))
    handle.remove()
    layer.register_full_backward_pre_hook(lambda m, grads: (grads[0] * 3,))
    x.grad = None
    layer(x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 3 * np.array(expected), rtol=1e-6)
    np.testing.assert_allclose(layer.weight.grad.numpy(), np.full((3, 2), 4.0))


def test_backward_hook_without_input_gradient():
    layer = nn.Linear(2, 3)
    seen = []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
    layer(eager.ones(1, 2)).sum().backward()
    assert len(seen) == 1 and seen[0][0] == (None,)
    assert layer.weight.grad is not None


# --- containers ---------------------------------------------------------------------------------


def test_sequential():
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    assert len(net) == 3 and isinstance(net[-1], nn.Linear)
    assert isinstance(net[:2], nn.Sequential) and len(net[:2]) == 2
    net.insert(1, nn.Tanh())
    assert [type(m).__name__ for m in net] == ["Linear", "Tanh", "ReLU", "Linear"]
    del net[1]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(net.pop(), nn.Linear) and len(net) == 2
    net[0] = nn.Identity()
    assert isinstance(net[0], nn.Identity)
    named = nn.Sequential({"a": nn.ReLU(), "b": nn.Tanh()})
    assert isinstance(named.b, nn.Tanh)
    with pytest.raises(IndexOutOfRange):
        net[5]


def test_lists_and_dicts():
    layers = nn.ModuleList([nn.ReLU()])
    layers += [nn.Tanh()]
    layers.extend([nn.Sigmoid()])
    assert [type(m).__name__ for m in layers] == ["ReLU", "Tanh", "Sigmoid"]
    assert len(layers[1:]) == 2
    with pytest.raises(NotImplementedError):
        layers(1)
    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.ReLU()
    assert list(table) == ["a", "b"] and "a" in table and len(table) == 2
    assert isinstance(table.pop("b"), nn.ReLU) and list(table.keys()) == ["a"]
    assert [n for n, _ in table.named_parameters()] == ["a.weight", "a.bias"]
    params = nn.ParameterList([eager.ones(1), nn.Parameter(eager.zeros(2))])
    params.append(eager.ones(3))
    assert [p.numel() for p in params] == [1, 2, 3]
    assert all(isinstance(p, nn.Parameter) for p in params.parameters())
    assert len(params[1:]) == 2
    with pytest.raises(DTypeError):
        params.append(1)


def test_repr():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Dropout(p=0.1, inplace=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.LSTM(8, 4, batch_first=True)) == "LSTM(8, 4, batch_first=True)"
