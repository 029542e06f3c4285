"""The op registry: one definition per op, and the one hook through which every op call passes.

An `Op` is data.  Everything else in the project is a reader of it: the generated CPU kernels
(`csrc/gen`), dispatch and the tape (`csrc/core`), the tracer, the fusion compiler, and the tests.
A definition says *one* of

=============  ===============================================================================
``body``       a scalar function ``body(k, *xs)`` of the vocabulary `eager.scalar.Vocabulary`;
               with ``indexed=True`` it is given the flat output index first: ``body(k, i, *xs)``
               (int64, and so are its inputs); attributes it names follow (see `Op.evaluate`)
``reduce``     a `Reduction`: ``(map, combine, identity)`` over the reduced dimensions
``view``       ``view(layout, **attrs) -> Layout | None``: where the output's elements lie in the
               input's memory (`eager.layout.Layout`); ``None``: not expressible, copy first
``regions``    ``regions(shapes, **attrs) -> list[(start, step, size, input)]``: the output is
               pieced together from inputs, later regions overwrite earlier ones
``pull``       ``pull(k, coords, load, shapes, **attrs) -> Expr``: the output element at
               ``coords``, from ``load(input, coords)``
``contract``   True for (batched) matrix products ``[..., m, k] @ [..., k, n]``
``exchange``   the name of a collective: every rank of a group takes part in the call, so calls
               are neither dropped nor merged nor reordered, and programs issue them themselves
=============  ===============================================================================

and ops that give none are opaque: only their ``impl`` runs, never fused.  Backends read these
fields and never look at names.
"""

from __future__ import annotations

import enum
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from eager.scalar import Expr, vocabulary

F = TypeVar("F", bound=Callable[..., Any])


class Kind(enum.IntEnum):
    """What fusion may do with an op; ordered from always fusable to never."""

    ELEMENTWISE = 0
    BROADCAST = 1
    VIEW = 2
    REDUCE = 3
    CONTRACT = 4
    OPAQUE = 5


class Promotion(enum.IntEnum):
    """How input dtypes determine the compute and the output dtype (PyTorch's rules)."""

    PROMOTE = 0  # output = promoted inputs
    FLOAT = 1  # as PROMOTE, but integers and bool become the default float dtype
    COMPARE = 2  # inputs promoted together, output bool
    LOGICAL = 3  # each input becomes bool, output bool
    INTEGRAL = 4  # as PROMOTE; a floating input is an error
    NUMERIC = 5  # as PROMOTE; a bool result is an error
    SELECT = 6  # as PROMOTE over inputs 1.. ; input 0 must be bool
    ATTR = 7  # the `dtype` attribute
    FIRST = 8  # input 0's dtype
    FLOATING = 9  # as PROMOTE; a non-floating result is an error
    SUM = 10  # input 0's dtype, but integers and bool become int64
    INDEX = 11  # int64
    BOOL = 12  # bool


class Reduction(NamedTuple):
    """``combine(k, map(k, x0), combine(k, map(k, x1), ...))`` starting at ``identity``.

    ``identity`` is a number or one of "lowest" and "highest", which mean the compute dtype's
    least and greatest value (infinities for floating dtypes).
    """

    map: Callable[..., Expr]
    combine: Callable[..., Expr]
    identity: float | str


class Attr(NamedTuple):
    """One attribute of an op.  ``type`` is int, bool, float, ints or dtype."""

    name: str
    type: str


class Missing:
    """The default of a field that a definition must give, even if as None."""


MISSING: Any = Missing()


@dataclass(eq=False)
class Op:
    """One op.  Build it with the factories below, which say what each kind of op must give.

    Attributes:
        name: unique name; ``kernel_<name>`` is the C++ kernel when ``impl`` is "core".
        inputs: names of the tensor inputs; a last name that starts with ``*`` takes any number.
        outputs: number of outputs; 0: as many as ``len(attrs["sizes"])``.
        vjp: ``vjp(g, y, *xs, **attrs) -> tuple`` of one gradient (or None) per input.  A parameter
            whose name starts with ``_`` is passed as a tensor on the meta device: only its shape
            and dtype are kept by the tape.  Ops with several outputs get tuples g and y.
            A keyword-only parameter ``needs`` is given one bool per input: gradients that are not
            needed may be None.  Its default must ask for all of them.
            None: the op has no gradient.
        impl: "core" (a kernel in csrc/core), "generated" (from body or reduce), or a Python
            function on tensors, called with grad mode off: ``impl(*inputs, **attrs)``.
        infer: for ops with a Python impl: ``infer(*inputs, **attrs)`` on meta tensors, giving a
            meta tensor.
        ref: a NumPy function with the public call's arguments that shares no code with the op.
        samples: ``samples(rng) -> list[Sample]`` for the public call.
        onnx: operator name, a function that emits nodes, or None: there is no ONNX counterpart.
        public: the PyTorch-shaped call users see; the op's callable unless it has a wrapper.
        uniform: inputs that hold one element in practice (an optimizer's learning rate): kernels
            are specialised for that, and stay right without it.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    outputs: int
    attrs: tuple[Attr, ...]
    dtype: Promotion
    vjp: Callable[..., tuple[Any, ...]] | None
    impl: str | Callable[..., Any] | None
    ref: Callable[..., Any] | None
    samples: Callable[..., Sequence[Any]] | None
    onnx: str | Callable[..., Any] | None
    body: Callable[..., Any] | None = None
    indexed: bool = False
    uniform: tuple[str, ...] = ()
    reduce: Reduction | None = None
    view: Callable[..., Any] | None = None
    regions: Callable[..., Any] | None = None
    pull: Callable[..., Expr] | None = None
    contract: bool = False
    exchange: str | None = None
    infer: Callable[..., Any] | None = None
    doc: str = ""
    id: int = -1
    public: Callable[..., Any] | None = field(default=None, repr=False)
    methods: tuple[str, ...] = ()

    @property
    def variadic(self) -> bool:
        """Whether the op takes any number of tensors."""
        return bool(self.inputs) and self.inputs[-1].startswith("*")

    @property
    def saved(self) -> tuple[bool, tuple[bool, ...]]:
        """(whether the vjp reads outputs, whether it reads each input) beyond shape and dtype."""
        if self.vjp is None:
            return False, ()
        names = [
            p.name
            for p in inspect.signature(self.vjp).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        ]
        inputs = names[2 : 2 + len(self.inputs)]
        return not names[1].startswith("_"), tuple(not n.startswith("_") for n in inputs)

    @property
    def selective(self) -> bool:
        """Whether the vjp can leave out gradients: it has the parameter ``needs``."""
        return self.vjp is not None and "needs" in inspect.signature(self.vjp).parameters

    def evaluate(
        self,
        args: Sequence[Expr],
        dtype: str,
        attrs: Mapping[str, Any] | None = None,
        index: Expr | None = None,
    ) -> tuple[Expr, ...]:
        """The body on scalar expressions: one Expr per output.

        ``dtype`` is the compute dtype; results that are not bool are converted to it.  ``attrs``
        holds at least the attributes the body names: Exprs or Python numbers (the body sees
        float64 for float attributes, int64 for int and bool ones).  An attribute of type dtype
        is given to the body as the string ``dtype``.  ``index`` is the flat output index (int64).
        """
        if self.body is None:
            raise TypeError(f"{self.name}: only elementwise ops can be used on scalars")
        k = vocabulary
        named: dict[str, Any] = {}
        for attr in self.attrs:
            if attr.name in inspect.signature(self.body).parameters:
                if attr.type == "dtype":
                    named[attr.name] = dtype
                    continue
                value = (attrs or {})[attr.name]
                if not isinstance(value, Expr):
                    value = k.const(value, "float64" if attr.type == "float" else "int64")
                named[attr.name] = value
        lead = (index,) if self.indexed else ()
        result = self.body(k, *lead, *args, **named)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(r if r.dtype == "bool" else k.cast(r, dtype) for r in results)

    def __call__(self, *args: Any, **attrs: Any) -> Any:  # noqa: ARG002
        """Calls the op.  On scalar expressions (while kernels are generated) evaluates its body."""
        if any(isinstance(a, Expr) for a in args):
            if self.body is None:
                raise TypeError(f"{self.name}: only elementwise ops can be used on scalars")
            like = next(a for a in args if isinstance(a, Expr) and a.dtype != "bool")
            k = vocabulary
            return self.body(k, *(a if isinstance(a, Expr) else k.const(a, like) for a in args))
        raise RuntimeError(
            f"{self.name}: the extension eager._C is not loaded; install the package"
        )

    def signature(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `fn` is the public call of this op; it canonicalises and calls the op."""
        self.public = fn
        return fn


@dataclass(eq=False)
class Composite:
    """A public function written with other ops: no kernel, no gradient of its own, but tested
    like one.  The tracer sees through it."""

    name: str
    public: Callable[..., Any]
    ref: Callable[..., Any] | None
    samples: Callable[..., Sequence[Any]] | None
    onnx: str | Callable[..., Any] | None
    differentiable: bool = True


class Sample(NamedTuple):
    """Arguments for one call: NumPy arrays stand for tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


registry: dict[str, Op] = {}
composites: dict[str, Composite] = {}

# Set by eager/__init__.py once the extension is loaded: makes the C++ callable of an op.
_make_callable: Callable[[Op], Any] | None = None


def _attrs(spec: str) -> tuple[Attr, ...]:
    """``"dims: ints, keepdim: bool"`` -> Attrs."""
    pairs = (part.split(":") for part in spec.split(",") if part.strip())
    return tuple(Attr(n.strip(), t.strip()) for n, t in pairs)


def register(op: Op, **required: Any) -> Any:
    """Adds `op` to the registry.  Returns the callable that runs it."""
    missing = [k for k, v in required.items() if v is MISSING]
    if missing:
        raise TypeError(
            f"op {op.name}: the definition does not give {', '.join(missing)}; "
            "say None explicitly if there is none"
        )
    if op.name in registry:
        raise ValueError(f"op {op.name} is defined twice")
    op.id = len(registry)
    registry[op.name] = op
    if _make_callable is None:
        return op
    op.public = _make_callable(op)
    return op.public


def elementwise(
    name: str,
    body: Callable[..., Any],
    *,
    vjp: Any = MISSING,
    dtype: Any = MISSING,
    ref: Any = MISSING,
    samples: Any = MISSING,
    onnx: Any = MISSING,
    attrs: str = "",
    indexed: bool = False,
    uniform: str = "",
    outputs: int = 1,
    doc: str = "",
) -> Any:
    """An op that computes each output element from the input elements at the same place, after
    broadcasting.  Inputs are the body's positional parameters that are not attributes."""
    schema = _attrs(attrs)
    names = [p for p in inspect.signature(body).parameters if p not in {a.name for a in schema}]
    op = Op(
        name, Kind.ELEMENTWISE, tuple(names[2 if indexed else 1 :]), outputs, schema, dtype, vjp,
        "generated", ref, samples, onnx, body=body, indexed=indexed, uniform=tuple(uniform.split()),
        doc=doc,
    )  # fmt: skip
    return register(op, vjp=vjp, dtype=dtype, ref=ref, samples=samples, onnx=onnx)


def reduction(
    name: str,
    *,
    reduce: Reduction,
    vjp: Any = MISSING,
    dtype: Any = MISSING,
    ref: Any = MISSING,
    samples: Any = MISSING,
    onnx: Any = MISSING,
    doc: str = "",
) -> Any:
    """An op ``name(x, dims, keepdim)`` that folds ``dims`` (sorted, non-negative)."""
    op = Op(
        name, Kind.REDUCE, ("x",), 1, _attrs("dims: ints, keepdim: bool"), dtype, vjp,
        "generated", ref, samples, onnx, reduce=reduce, doc=doc,
    )  # fmt: skip
    return register(op, vjp=vjp, dtype=dtype, ref=ref, samples=samples, onnx=onnx)


def structural(
    name: str,
    inputs: str,
    *,
    kind: Kind,
    attrs: str = "",
    vjp: Any = MISSING,
    dtype: Any = MISSING,
    ref: Any = MISSING,
    samples: Any = MISSING,
    onnx: Any = MISSING,
    impl: str | Callable[..., Any] = "core",
    outputs: int = 1,
    doc: str = "",
    **lowering: Any,
) -> Any:
    """Any other op: views, indexing, contractions.  ``lowering``: view, regions, pull, contract,
    exchange or infer, as `Op` documents; none of them means the op is opaque to the compiler."""
    op = Op(
        name, kind, tuple(inputs.split()), outputs, _attrs(attrs), dtype, vjp, impl, ref, samples,
        onnx, doc=doc, **lowering,
    )  # fmt: skip
    if callable(impl) and op.infer is None:
        raise TypeError(f"op {name}: a Python impl needs infer")
    return register(op, vjp=vjp, dtype=dtype, ref=ref, samples=samples, onnx=onnx)


def composite(
    *,
    ref: Any = MISSING,
    samples: Any = MISSING,
    onnx: Any = MISSING,
    name: str | None = None,
    differentiable: bool = True,
) -> Callable[[F], F]:
    """Decorator that registers a public function written with other ops."""
    required = {"ref": ref, "samples": samples, "onnx": onnx}
    missing = [k for k, v in required.items() if v is MISSING]

    def wrap(fn: F) -> F:
        key = name or fn.__name__
        if missing:
            raise TypeError(f"composite {key}: the definition does not give {', '.join(missing)}")
        composites[key] = Composite(key, fn, ref, samples, onnx, differentiable)
        return fn

    return wrap


# --- the hook ---------------------------------------------------------------------------------


class Interpreter:
    """What stands at the one place every op call passes.  None is installed by default: dispatch
    executes the op and records the tape.  Subclass and `push` to see or replace calls."""

    def process(
        self, op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any], target: Any | None
    ) -> Any:
        """Handles one call; must return what the op returns (a Tensor, or a tuple of them).

        ``target`` is the tensor an in-place call writes to (it is then also the result), else
        None.  `execute` runs the call as if no interpreter were installed.
        """
        return execute(op, inputs, attrs, target)

    def read(self, tensor: Any, value: Any) -> None:
        """Called when Python reads a tensor's data (``item``, ``bool``, ``numpy``)."""

    def create(self, tensor: Any, data: Any) -> None:
        """Called when a tensor is made from Python data (``tensor``, ``from_numpy``)."""

    def grad(self, tensor: Any, value: Any, written: bool) -> None:
        """Called when ``tensor.grad`` is read, or written by the user or by backward."""


class _Installed(threading.local):
    """The interpreters of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Interpreter] = []


_installed = _Installed()
# Set with the extension: install the top of the stack in dispatch; run one op beneath it.
_install: Callable[[Interpreter | None], None] | None = None
_execute: Callable[..., Any] | None = None


@contextmanager
def push(interpreter: Interpreter) -> Iterator[None]:
    """Makes `interpreter` see every op call of this thread while the context is open."""
    assert _install is not None
    stack = _installed.stack
    stack.append(interpreter)
    _install(interpreter)
    try:
        yield
    finally:
        stack.pop()
        _install(stack[-1] if stack else None)


@contextmanager
def hidden() -> Iterator[None]:
    """Calls of this thread inside the context are seen by no interpreter."""
    assert _install is not None
    stack, _installed.stack = _installed.stack, []
    _install(None)
    try:
        yield
    finally:
        _installed.stack = stack
        _install(stack[-1] if stack else None)


def interpreting() -> bool:
    """Whether an interpreter is installed in this thread."""
    return bool(_installed.stack)


def call(op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any], target: Any | None = None) -> Any:
    """One op call with a target, as in-place methods make it: seen by interpreters."""
    stack = _installed.stack
    return (stack[-1].process if stack else execute)(op, inputs, attrs, target)


def execute(
    op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any], target: Any | None = None
) -> Any:
    """Runs one op and records the tape, beneath every interpreter.

    What the op itself calls (the impl of a Python op) is not seen by interpreters."""
    assert _execute is not None
    return _execute(op.id, inputs, attrs, target)
