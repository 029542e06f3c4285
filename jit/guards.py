"""What a compiled call depends on, checked before every use.

`Arguments`: the structure of the arguments, tensors by shape, dtype, device, requires_grad and
contiguity, everything else by value or identity.  The check is printed as a Python function when
it is built, so that it costs a few attribute reads per argument.

`Surroundings`: global modes, `eager._state.epoch` for modules, and the variables that the
function and the user's functions it calls refer to: closures, globals, and the attributes of
plain objects among them, one level deep.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import eager
from eager import _C, _state, nn, optim

SCALARS = (bool, int, float, complex, str, bytes, type(None))
WATCHED_ITEMS = 64  # longer containers are watched by their length only
_INTERNAL = ("eager", "jit", "numpy", "builtins")


class Failure(NamedTuple):
    """A guard that does not hold."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what} was {self.expected} and is now {self.found}"


# --- arguments --------------------------------------------------------------------------------


def describe(t: Any) -> str:
    """A tensor as guards see it."""
    text = f"{t.dtype.name}{list(t.shape)}"
    text += "" if t.is_contiguous() else ", strides " + str(t.stride())
    text += f" on {t.device}" if str(t.device) != "cpu" else ""
    return text + (" requiring grad" if t.requires_grad else "")


def _same_scalar(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


class Arguments:
    """The guard of one list of arguments.

    Attributes:
        tensors: the tensor arguments of the call it was made for, in order; cleared after the
            trace.
        check: ``check(args, kwargs)`` gives the tensors of another call, or None if it differs.
        unsupported: why such arguments cannot be guarded, or "".
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[Any] = []
        self.unsupported = ""
        self._lines: list[str] = []
        self._names: dict[str, Any] = {"Tensor": eager.Tensor}
        self._walk("args", args, "the positional arguments")
        if kwargs:
            self._walk("kwargs", kwargs, "the keyword arguments")
        else:
            self._lines.append("if kwargs: return None")
        names = ", ".join(f"t{i}" for i in range(len(self.tensors)))
        body = "\n    ".join([*self._lines, f"return [{names}]"])
        scope = dict(self._names)
        exec(compile(f"def check(args, kwargs):\n    {body}\n", "<guards>", "exec"), scope)
        self.check: Callable[[Any, Any], list[Any] | None] = scope["check"]

    def _bind(self, value: Any) -> str:
        name = f"v{len(self._names)}"
        self._names[name] = value
        return name

    def _require(self, condition: str) -> None:
        self._lines.append(f"if not ({condition}): return None")

    def _walk(self, at: str, x: Any, label: str) -> None:
        cls = type(x)
        if isinstance(x, eager.Tensor):
            self._tensor(at, x, cls)
        elif isinstance(x, SCALARS):
            self._scalar(at, x, cls)
        elif isinstance(x, tuple | list):
            self._require(f"type({at}) is {self._bind(cls)} and len({at}) == {len(x)}")
            for i, item in enumerate(x):
                self._walk(f"{at}[{i}]", item, label)
        elif cls is dict:
            if not all(isinstance(k, str | int) for k in x):
                self.unsupported = f"{label} hold a dict whose keys are not strings or integers"
            self._require(f"type({at}) is dict and [*{at}] == {self._bind(list(x))}")
            for key, item in x.items():
                self._walk(f"{at}[{key!r}]", item, label)
        elif isinstance(x, _IDENTIFIED):
            self._require(f"{at} is {self._bind(x)}")
        elif hasattr(x, "__dict__"):
            self._names["snapshot"] = snapshot
            seen = self._bind(snapshot(x))
            self._require(f"{at} is {self._bind(x)} and snapshot({at}) == {seen}")
        else:
            self.unsupported = f"{label} hold an object of type {cls.__name__}"

    def _tensor(self, at: str, x: Any, cls: type) -> None:
        t = f"t{len(self.tensors)}"
        self.tensors.append(x)
        self._lines.append(f"{t} = {at}")
        self._require(
            f"type({t}) is {self._bind(cls)} and {t}.shape == {self._bind(x.shape)}"
            f" and {t}.dtype == {self._bind(x.dtype)} and {t}.device == {self._bind(x.device)}"
            f" and {t}.requires_grad is {x.requires_grad}"
            f" and {t}.is_contiguous() is {x.is_contiguous()}"
        )

    def _scalar(self, at: str, x: Any, cls: type) -> None:
        same = f"type({at}) is {cls.__name__}" if x is not None else f"{at} is None"
        if x is not None:
            exact = isinstance(x, float | complex) and (x == 0 or x != x)
            value = self._bind(repr(x) if exact else x)
            same += f" and repr({at}) == {value}" if exact else f" and {at} == {value}"
        self._require(same)


class Identified:
    """Base of objects that guards compare by identity; what they wrap is watched instead."""


# Objects that a guard may compare by identity: their relevant contents are watched otherwise.
_IDENTIFIED = (
    Identified, nn.Module, optim.Optimizer, type, types.FunctionType, types.BuiltinFunctionType,
    types.MethodType, types.ModuleType, type(eager.float32), type(eager.device("cpu")),
)  # fmt: skip


def differing(old: tuple[Any, Any], new: tuple[Any, Any]) -> Failure | None:
    """The first difference between two calls' (args, kwargs); None if guards see none."""
    return next(_differences(old[0], new[0], "args"), None) or next(
        _differences(old[1], new[1], "kwargs"), None
    )


def signature(x: Any) -> Any:
    """`x` with each tensor replaced by its description: what `differing` compares."""
    if isinstance(x, eager.Tensor):
        return _Described(describe(x))
    if isinstance(x, tuple | list):
        return type(x)(map(signature, x)) if type(x) in (tuple, list) else tuple(map(signature, x))
    return {k: signature(v) for k, v in x.items()} if type(x) is dict else x


class _Described(str):
    """A tensor's description."""

    __slots__ = ()


def _differences(a: Any, b: Any, at: str) -> Iterator[Failure]:
    if type(a) is not type(b):
        yield Failure(at, f"of type {type(a).__name__}", type(b).__name__)
    elif isinstance(a, _Described):
        if a != b:
            yield Failure(at, a, b)
    elif isinstance(a, tuple | list):
        if len(a) != len(b):
            yield Failure(at, f"of length {len(a)}", str(len(b)))
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _differences(x, y, f"{at}[{i}]")
    elif isinstance(a, dict):
        if list(a) != list(b):
            yield Failure(at, f"a dict of {list(a)}", str(list(b)))
        for k in a.keys() & b.keys():
            yield from _differences(a[k], b[k], f"{at}[{k!r}]")
    elif isinstance(a, SCALARS):
        if not _same_scalar(a, b):
            yield Failure(at, repr(a), repr(b))
    elif a is not b:
        yield Failure(at, f"one {type(a).__name__}", "another one")


# --- surroundings -----------------------------------------------------------------------------


def modes() -> tuple[Any, ...]:
    """Global state that compiled code depends on; cheap to compare."""
    return _state.epoch, _C.is_grad_enabled(), eager.get_default_dtype(), eager.get_num_threads()


_MODE_NAMES = (
    "the state of modules and optimizers", "grad mode", "the default dtype",
    "the number of threads",
)  # fmt: skip


def snapshot(x: Any) -> Any:
    """Something that equals the snapshot of another object, or of `x` later, only if a traced
    function could not tell them apart: scalars by value, containers and plain objects by what
    they hold one level deep, the rest by identity."""
    if isinstance(x, SCALARS):
        return _Scalar(x)
    cls = type(x)
    if cls in (list, tuple, set):
        items: Any = x
    elif cls is dict:
        items = x.values()
    elif isinstance(x, (eager.Tensor, *_IDENTIFIED)) or not hasattr(x, "__dict__"):
        return _Object(x)
    else:
        items = vars(x).values()
    if len(items) > WATCHED_ITEMS:
        return _Object(x), len(items)
    return _Object(x), [_Scalar(v) if isinstance(v, SCALARS) else _Object(v) for v in items]


class _Object:
    """An object compared by identity."""

    __slots__ = ("object",)

    def __init__(self, x: Any) -> None:
        self.object = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.object is other.object

    __hash__ = None  # type: ignore[assignment]


class _Scalar:
    """A scalar compared by type and bits (nan equals nan, 0.0 is not -0.0)."""

    __slots__ = ("key",)

    def __init__(self, x: Any) -> None:
        # repr is needed for few values only
        exact = isinstance(x, float | complex) and (x == 0 or x != x)
        self.key = (type(x), repr(x) if exact else x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scalar) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.key[1])


class Variable(NamedTuple):
    """A variable outside of a function that its code refers to."""

    label: str
    get: Callable[[], Any]
    value: Any
    seen: Any  # snapshot of the value


def variables(fn: Callable[..., Any]) -> list[Variable]:
    """The closure cells and globals that `fn`, and the user's functions among them, refer to."""
    found: list[Variable] = []
    done: set[Any] = set()

    def visit(f: Any) -> None:
        if isinstance(f, types.MethodType):
            add(f"{f.__qualname__}: self", partial(getattr, f, "__self__"))
            f = f.__func__
        if not isinstance(f, types.FunctionType) or f.__code__ in done:
            return
        if str(f.__module__).split(".")[0] in _INTERNAL:
            return
        done.add(f.__code__)
        cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=False)
        for name, cell in cells:
            add(name, partial(getattr, cell, "cell_contents"))
        for name in _names(f.__code__):
            if name in f.__globals__:
                add(name, partial(f.__globals__.__getitem__, name))

    def add(label: str, get: Callable[[], Any]) -> None:
        try:
            value = get()
        except ValueError:  # an empty cell
            return
        if isinstance(value, types.FunctionType | types.MethodType):
            visit(value)
        elif isinstance(value, Identified):
            visit(getattr(value, "__wrapped__", None))
        elif isinstance(value, nn.Module):
            for m in value.modules():
                visit(type(m).forward)
        if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
            return
        found.append(Variable(label, get, value, snapshot(value)))

    if isinstance(fn, nn.Module):
        add("the module", lambda: fn)
    visit(fn)
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals that `code`, nested functions included, may refer to."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield from _names(c)


class Surroundings:
    """The guard of everything but arguments, as it is now."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._modes = modes()
        self._variables = variables(fn)

    def holds(self) -> bool:
        """Whether nothing has changed."""
        if modes() != self._modes:
            return False
        for v in self._variables:
            try:
                now = v.get()
            except (KeyError, ValueError):
                return False
            if now is v.value and type(now) in _UNCHANGING:
                continue
            if snapshot(now) != v.seen:
                return False
        return True

    def failure(self) -> Failure | None:
        """The first guard that does not hold."""
        for name, old, new in zip(_MODE_NAMES, self._modes, modes(), strict=True):
            if old != new:
                if name is _MODE_NAMES[0]:
                    return Failure(name, "the traced one", "another")
                return Failure(name, str(old), str(new))
        for v in self._variables:
            try:
                now = v.get()
            except (KeyError, ValueError):
                return Failure(f"the variable {v.label}", "set", "unset")
            if snapshot(now) != v.seen:
                return Failure(f"the variable {v.label}", _brief(v.seen), _brief(snapshot(now)))
        return None

    def current(self) -> bool:
        """Whether it may hold again: modules have not changed since."""
        return _state.may_return(self._modes[0])

    def objects(self) -> Iterator[Any]:
        """The values of the variables."""
        return (v.value for v in self._variables)


# Types whose instances are fully described by their identity.
_UNCHANGING = {*SCALARS, types.FunctionType, eager.Tensor, nn.Parameter}


def _brief(seen: Any) -> str:
    return repr(seen) if isinstance(seen, _Scalar) else "an object with other contents"


def reaches(x: Any, tensors: set[int]) -> bool:
    """Whether `x` is, or holds one level deep, a tensor whose storage is among `tensors`."""
    if isinstance(x, eager.Tensor):
        return x._storage_id in tensors
    if isinstance(x, nn.Module):
        return any(p._storage_id in tensors for p in (*x.parameters(), *x.buffers()))
    if type(x) in (list, tuple):
        return any(isinstance(v, eager.Tensor) and v._storage_id in tensors for v in x)
    values = x.values() if type(x) is dict else getattr(x, "__dict__", {}).values()
    return any(isinstance(v, eager.Tensor) and v._storage_id in tensors for v in values)
