"""Hostile arguments: every public callable gives a result or a documented exception.

A crash of the interpreter shows as a lost test process; faulthandler prints where, and ends a
call that hangs.
"""

import contextlib
import faulthandler
import io
import resource
import signal
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eager
from eager import nn

# What a Python user may expect of wrong arguments.  SystemError is not among them.
DOCUMENTED = (
    eager.errors.EagerError, TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError,
    NotImplementedError, MemoryError, AttributeError, BufferError, RecursionError,
)  # fmt: skip

# Change the state of the process, or files.
STATEFUL = {
    "set_num_threads", "set_default_dtype", "set_printoptions", "set_grad_enabled", "save",
    "save_file", "load", "load_file", "set_rng_state", "default_generator",
}  # fmt: skip

# Make as many pieces as they are asked for, which takes for ever if that is a huge number.
PIECEWISE = {"tensor_split", "hsplit", "vsplit", "dsplit", "vander"}


class _Raises:
    """Every question asked of it is answered by an exception."""

    def __index__(self):
        raise KeyError("index")

    def __len__(self):
        raise KeyError("len")

    def __bool__(self):
        raise KeyError("bool")

    def __iter__(self):
        raise KeyError("iter")


class _EndlessNumber:
    """Says it is a sequence, but its items never end it, and no length is known."""

    def __getitem__(self, i):
        if i < 3:
            return i
        raise IndexError(i)


def _self_referential():
    inner = [1.0]
    inner.append(inner)
    return inner


def _tensors():
    base = eager.tensor(np.arange(12.0, dtype=np.float32).reshape(3, 4) - 5)
    leaf = eager.tensor([0.5, -1.5], requires_grad=True)
    return {
        "base": lambda: base.clone(),
        "scalar": lambda: eager.tensor(2.5),
        "empty": lambda: eager.empty(0),
        "empty2": lambda: eager.empty(0, 3),
        "turned": lambda: base.clone().T,
        "strided": lambda: base.clone()[::2, 1::2],
        "expanded": lambda: eager.ones(1).expand(3, 4),
        "nothing": lambda: eager.empty(0, 2**62, 2**62),
        "deep": lambda: base.reshape((1,) * 70 + (3, 4)),
        "half": lambda: base.half(),
        "brain": lambda: base.bfloat16(),
        "double": lambda: base.double(),
        "integer": lambda: base.long(),
        "byte": lambda: eager.tensor([[250, 3], [0, 7]], dtype=eager.uint8),
        "mask": lambda: base > 0,
        "index": lambda: eager.tensor([1, 0, -1]),
        "outside": lambda: eager.tensor([2**62, -(2**62)]),
        "nan": lambda: eager.tensor([float("nan"), float("inf"), -float("inf"), 0.0]),
        "meta": lambda: eager.empty(3, 4, device="meta"),
        "meta0": lambda: eager.empty((), device="meta"),
        "leaf": lambda: leaf,
        "history": lambda: leaf * 2,
        "readonly": lambda: eager.frombuffer(b"\1" * 16, dtype=eager.float32),
        "parameter": lambda: nn.Parameter(eager.ones(3)),
    }


TENSORS = _tensors()
OTHERS = {
    "none": lambda: None,
    "zero": lambda: 0,
    "one": lambda: 1,
    "two": lambda: 2,
    "minus": lambda: -1,
    "far": lambda: -7,
    "big": lambda: 2**45,
    "limit": lambda: 2**63 - 1,
    "lowest": lambda: -(2**63),
    "beyond": lambda: 2**100,
    "float": lambda: 0.5,
    "nan_number": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "true": lambda: True,
    "complex": lambda: 1j,
    "text": lambda: "abc",
    "cpu": lambda: "cpu",
    "bytes": lambda: b"\0\1",
    "tuple": tuple,
    "shape": lambda: (2, 3),
    "dims": lambda: (0, 1),
    "twice": lambda: (1, 1),
    "bad_shape": lambda: (-1, -1),
    "vast": lambda: (2**40, 2**40),
    "empty_vast": lambda: (0, 2**62, 2**62),
    "floats": lambda: [0.5, 1.5],
    "ragged": lambda: [[1], [2, 3]],
    "mixed": lambda: [1, "a", None],
    "cyclic": _self_referential,
    "dict": dict,
    "set": lambda: {1, 2},
    "range": lambda: range(3),
    "generator": lambda: iter([1, 2]),
    "array": lambda: np.arange(6.0)[::-2],
    "objects": lambda: np.array([object()]),
    "words": lambda: np.array(["x"]),
    "np_scalar": lambda: np.float32(2),
    "np_int": lambda: np.int64(1),
    "dtype": lambda: eager.float64,
    "int_dtype": lambda: eager.int8,
    "bool_dtype": lambda: eager.bool,
    "type": lambda: int,
    "slice": lambda: slice(None, None, 2**62),
    "ellipsis": lambda: ...,
    "callable": lambda: len,
    "raises": _Raises,
    "endless": _EndlessNumber,
    "tensors": lambda: [eager.ones(2), eager.zeros(2)],
    "different": lambda: (eager.ones(2), eager.empty(0, device="meta"), eager.tensor(1)),
}
VALUES = {**TENSORS, **OTHERS}
NAMES = ("dim", "keepdim", "dtype", "device", "out", "requires_grad", "nonsense", "correction")


def _callables():
    for name in sorted(set(eager.__all__) - STATEFUL - PIECEWISE):
        value = getattr(eager, name)
        if callable(value):
            yield name, value
    for name in dir(nn.functional):
        value = getattr(nn.functional, name)
        if not name.startswith("_") and callable(value) and not isinstance(value, type):
            yield f"functional.{name}", value


def _methods():
    hidden = {
        "__class__",
        "__init_subclass__",
        "__subclasshook__",
        "__new__",
        "__del__",
    } | PIECEWISE
    for name in dir(eager.Tensor):
        if name not in hidden and callable(getattr(eager.Tensor, name)):
            yield name


CALLABLES = dict(_callables())
METHODS = sorted(_methods())


class _Stuck(BaseException):
    pass


@contextlib.contextmanager
def _bounded(gigabytes, seconds):
    """Requests for much memory fail at once, and a call that hangs ends the process."""
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def stuck(*_):
        raise _Stuck

    handler = signal.signal(signal.SIGALRM, stuck)
    resource.setrlimit(resource.RLIMIT_AS, (used + gigabytes * 2**30, before[1]))
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def _attempt(label, function, names, keyword=None):
    args = [VALUES[n]() for n in names]
    kwargs = {} if keyword is None else {keyword: args.pop()}
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        result = function(*args, **kwargs)
        if isinstance(result, eager.Tensor) and result.numel() < 100 and not result.is_meta:
            result.detach().tolist()
    except DOCUMENTED:
        pass
    except KeyError as e:
        assert e.args and e.args[0] in ("index", "len", "bool", "iter"), f"{label}{names}: {e!r}"
    except _Stuck:
        pytest.fail(f"{label}{tuple(names)}, keyword {keyword}: takes more than 10 s")
    except BaseException as e:
        pytest.fail(f"{label}{tuple(names)}, keyword {keyword}: {type(e).__name__}: {e}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def _quiet():
    threads, state = eager.get_num_threads(), eager.get_rng_state()
    eager.set_num_threads(1)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    eager.set_num_threads(threads)
    eager.set_rng_state(state)
    eager.set_grad_enabled(True)


values = st.sampled_from(sorted(VALUES))
tensors = st.sampled_from(sorted(TENSORS))
arguments = (
    st.lists(values, max_size=2) | st.tuples(tensors, values) | st.tuples(tensors, values, values)
)
keywords = st.none() | st.sampled_from(NAMES)
fuzz = settings(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@settings(fuzz, max_examples=400)
@given(names=arguments | st.tuples(tensors, tensors, values, values), keyword=keywords)
def test_every_function_survives(names, keyword):
    keyword = keyword if names else None
    with _bounded(gigabytes=4, seconds=120):
        for label, function in CALLABLES.items():
            _attempt(label, function, names, keyword)


@settings(fuzz, max_examples=400)
@given(receiver=tensors, names=arguments, keyword=keywords)
def test_every_method_survives(receiver, names, keyword):
    keyword = keyword if names else None
    with _bounded(gigabytes=4, seconds=120):
        for name in METHODS:
            _attempt(f"Tensor.{name}", getattr(eager.Tensor, name), [receiver, *names], keyword)
