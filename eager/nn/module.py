"""`Module`: a tree of parameters, buffers and submodules with a `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import eager
from eager import Tensor, _state
from eager.errors import ArgumentError, DTypeError, helpful
from eager.nn.hooks import Hook, Hooks, RemovableHandle
from eager.nn.loading import IncompatibleKeys, load
from eager.nn.parameter import Buffer, Parameter

M = TypeVar("M", bound="Module")
T = TypeVar("T")
_ABSENT: Any = object()


class Module:
    """Base class of everything with parameters.

    Subclasses call ``super().__init__()``, assign parameters, buffers and submodules to
    attributes, and define ``forward``; calling the module calls ``forward`` between its hooks.

    Every structural change (assigning or deleting a parameter, buffer, submodule or any other
    attribute, `train`, `to`, adding or removing a hook) counts in `eager._state.epoch`, which is
    how a compiled function notices that what it compiled no longer holds.

    Example:
        >>> class Scale(eager.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = eager.nn.Parameter(eager.tensor([2.0]))
        ...     def forward(self, x):
        ...         return x * self.factor
        >>> [name for name, _ in Scale().named_parameters()]
        ['factor']
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _transient: set[str]
    _hooks: Hooks | None

    def __init__(self) -> None:
        self.__dict__.update(
            training=True, _parameters={}, _buffers={}, _modules={}, _transient=set(), _hooks=None
        )
        _state.bump()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _state.bump()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__}: the class defines no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` between the module's hooks."""
        if self._hooks is None:
            return self.forward(*args, **kwargs)
        return self._hooks.call(self, args, kwargs)

    # --- attributes -----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Only reached when the usual lookup has failed.
        for table in ("_parameters", "_buffers", "_modules"):
            entries = self.__dict__.get(table)
            if entries is not None and name in entries:
                return entries[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if "_parameters" not in own:
            if isinstance(value, (Parameter, Module, Buffer)):
                raise AttributeError(
                    f"{type(self).__name__}: call super().__init__() before assigning to {name!r}"
                )
            object.__setattr__(self, name, value)
        elif isinstance(value, Parameter):
            self._forget(name, self._parameters)
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._forget(name, self._modules)
            self.register_module(name, value)
        elif isinstance(value, Buffer):
            self._forget(name, self._buffers)
            self.register_buffer(name, value, persistent=value.persistent)
        elif name in self._parameters:
            self.register_parameter(name, value)
        elif name in self._modules:
            self.register_module(name, value)
        elif name in self._buffers:
            self.register_buffer(name, value, persistent=name not in self._transient)
        else:
            old = own.get(name, _ABSENT)
            object.__setattr__(self, name, value)
            if isinstance(old, _state.SCALARS) and isinstance(value, _state.SCALARS):
                _state.change(id(self), name, old, value)
            elif old is not value:
                _state.bump()

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            object.__delattr__(self, name)
        _state.bump()

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *self._parameters, *self._buffers, *self._modules}
        return sorted(name for name in names if name.isidentifier())

    def _forget(self, name: str, kept: Mapping[str, Any] | None = None) -> bool:
        """Removes `name` from wherever it is registered except in `kept`, where it has a place
        in the order."""
        self._transient.discard(name)
        tables: tuple[dict[str, Any], ...] = (
            self._parameters, self._buffers, self._modules, self.__dict__
        )  # fmt: skip
        found = [t.pop(name, _ABSENT) is not _ABSENT for t in tables if t is not kept]
        return any(found)

    def _check_name(self, what: str, name: str, table: Mapping[str, Any]) -> None:
        if not isinstance(name, str) or "." in name or not name:
            raise helpful(
                ArgumentError, f"register_{what}", "the name cannot be used",
                expected="a non-empty string without dots", given=repr(name),
            )  # fmt: skip
        if name not in table and hasattr(self, name):
            raise KeyError(f"attribute {name!r} already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Makes `param` a parameter called `name`; None reserves the name."""
        self._check_name("parameter", name, self._parameters)
        if param is not None and not isinstance(param, Parameter):
            raise helpful(
                DTypeError, "register_parameter", f"cannot assign to parameter {name!r}",
                expected="nn.Parameter or None", given=type(param).__name__,
                hint=f"write `module.{name}.copy_(value)` under no_grad to change its values",
            )  # fmt: skip
        self._parameters[name] = param
        _state.bump()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Makes `tensor` a buffer called `name`, saved in the state dict if `persistent`."""
        self._check_name("buffer", name, self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise helpful(
                DTypeError, "register_buffer", f"cannot assign to buffer {name!r}",
                expected="a Tensor or None", given=type(tensor).__name__,
            )  # fmt: skip
        self._buffers[name] = tensor
        (self._transient.discard if persistent else self._transient.add)(name)
        _state.bump()

    def register_module(self, name: str, module: Module | None) -> None:
        """Makes `module` a child called `name`; None reserves the name."""
        self._check_name("module", name, self._modules)
        if module is not None and not isinstance(module, Module):
            raise helpful(
                DTypeError, "register_module", f"cannot assign to submodule {name!r}",
                expected="nn.Module or None", given=type(module).__name__,
            )  # fmt: skip
        self._modules[name] = module
        _state.bump()

    add_module = register_module

    # --- walking the tree -----------------------------------------------------------------------

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, depth first, with dotted names."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one, each once."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below this one, each once."""
        return (module for _, module in self.named_children())

    def _named(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        owners: Any = [(prefix, self)]
        if recurse:
            owners = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        seen = set()
        for path, module in owners:
            for name, tensor in getattr(module, table).items():
                if tensor is None or id(tensor) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters of this module and, with `recurse`, of those below it."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters of this module and, with `recurse`, of those below it, each once."""
        return (tensor for _, tensor in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers of this module and, with `recurse`, of those below it."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers of this module and, with `recurse`, of those below it, each once."""
        return (tensor for _, tensor in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module with the dotted name `target`; "" is this one.  AttributeError if absent."""
        module: Any = self
        for name in target.split(".") if target else ():
            children = module._modules
            if children.get(name) is None:
                raise AttributeError(f"{type(module).__name__} has no submodule {name!r}")
            module = children[name]
        return module  # type: ignore[no-any-return]

    def get_parameter(self, target: str) -> Parameter:
        """The parameter with the dotted name `target`.  AttributeError if absent."""
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        param = owner._parameters.get(name)
        if param is None:
            raise AttributeError(f"{type(owner).__name__} has no parameter {name!r}")
        return param

    def get_buffer(self, target: str) -> Tensor:
        """The buffer with the dotted name `target`.  AttributeError if absent."""
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        buffer = owner._buffers.get(name)
        if buffer is None:
            raise AttributeError(f"{type(owner).__name__} has no buffer {name!r}")
        return buffer

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Calls `fn` on every module, children first."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- modes ----------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Sets `training` on this module and all below it."""
        if not isinstance(mode, bool):
            raise helpful(
                ArgumentError, "train", "the mode must be a truth value",
                expected="True or False", given=repr(mode),
            )  # fmt: skip
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Sets `requires_grad` of every parameter."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        _state.bump()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops every parameter's gradient, or fills it with zeros."""
        for param in self.parameters():
            if param.grad is not None:
                if set_to_none:
                    param.grad = None
                else:
                    param.grad = param.grad.detach()
                    param.grad.zero_()

    # --- conversion -----------------------------------------------------------------------------

    def _apply(self: M, fn: Callable[[Tensor], Tensor]) -> M:
        """Replaces the data of every parameter, gradient and buffer, each once."""
        done: dict[int, Tensor] = {}
        for module in self.modules():
            for param in module._parameters.values():
                if param is None or id(param) in done:
                    continue
                done[id(param)] = param
                grad = param.grad
                param.grad = None
                with eager.no_grad():
                    param.data = fn(param.data)
                    if grad is not None:
                        param.grad = fn(grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    with eager.no_grad():
                        module._buffers[name] = done.setdefault(id(buffer), fn(buffer))
        _state.bump()
        return self

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """Moves to a device and casts floating parameters and buffers, in place.

        ``to(device)``, ``to(dtype)``, ``to(device, dtype)``, ``to(tensor)`` or keywords; `dtype`
        must be floating.
        """
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        kwargs.pop("non_blocking", None)
        if kwargs:
            raise TypeError(f"to() got an unexpected keyword argument {next(iter(kwargs))!r}")
        for arg in args:
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, eager.dtype):
                dtype = arg
            elif arg is not None and not isinstance(arg, bool):
                device = arg
        if dtype is not None and not dtype.is_floating_point:
            raise helpful(
                DTypeError, "Module.to", "only floating dtypes can be trained",
                expected="float16, bfloat16, float32 or float64", given=str(dtype),
            )  # fmt: skip

        def convert(tensor: Tensor) -> Tensor:
            if device is not None:
                tensor = tensor.to(device)
            if dtype is not None and tensor.dtype.is_floating_point:
                tensor = tensor.to(dtype)
            return tensor

        return self._apply(convert)

    def float(self: M) -> M:
        """Casts floating parameters and buffers to float32."""
        return self.to(eager.float32)

    def double(self: M) -> M:
        """Casts floating parameters and buffers to float64."""
        return self.to(eager.float64)

    def half(self: M) -> M:
        """Casts floating parameters and buffers to float16."""
        return self.to(eager.float16)

    def bfloat16(self: M) -> M:
        """Casts floating parameters and buffers to bfloat16."""
        return self.to(eager.bfloat16)

    def cpu(self: M) -> M:
        """Moves to the CPU."""
        return self.to("cpu")

    # --- state ----------------------------------------------------------------------------------

    def state_dict(
        self,
        *,
        destination: dict[str, Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name.

        The tensors share memory with the module's; they are detached unless `keep_vars`.
        """
        result = {} if destination is None else destination
        for table, left_out in ((self._parameters, ()), (self._buffers, self._transient)):
            for name, tensor in table.items():
                if tensor is not None and name not in left_out:
                    result[prefix + name] = tensor if keep_vars else tensor.detach()
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(
                    destination=result, prefix=f"{prefix}{name}.", keep_vars=keep_vars
                )
        return result

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copies values into parameters and buffers (`assign`: takes over the tensors themselves).

        Returns ``(missing_keys, unexpected_keys)``.  Raises ArgumentError naming all of them when
        `strict`, and ShapeError for every entry of another shape; nothing is changed then.
        """
        return load(self, state_dict, strict, assign)

    # --- hooks ----------------------------------------------------------------------------------

    def _hook_table(self) -> Hooks:
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args)`` runs before forward; what it returns replaces the arguments.

        `with_kwargs`: ``hook(module, args, kwargs)``, which returns None or (args, kwargs).
        """
        hooks = self._hook_table()
        return hooks.add(hooks.forward_pre, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args, output)`` runs after forward; what it returns replaces the output.

        `with_kwargs`: ``hook(module, args, kwargs, output)``.
        """
        hooks = self._hook_table()
        return hooks.add(hooks.forward, (hook, with_kwargs), prepend)

    def register_full_backward_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """``hook(module, grad_output)`` runs before the module's backward; what it returns
        replaces grad_output."""
        hooks = self._hook_table()
        return hooks.add(hooks.backward_pre, hook, prepend)

    def register_full_backward_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """``hook(module, grad_input, grad_output)`` runs when the gradients of the module's
        positional inputs are known; what it returns replaces grad_input."""
        hooks = self._hook_table()
        return hooks.add(hooks.backward, hook, prepend)

    # --- text -----------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of the module's repr."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = []
        for name, module in self._modules.items():
            text = repr(module).replace("\n", "\n  ")
            children.append(f"({name}): {text}")
        head = type(self).__name__
        if len(lines) <= 1 and not children:
            return f"{head}({extra})"
        return f"{head}(\n  " + "\n  ".join([*lines, *children]) + "\n)"
