"""The tracer: one ordinary eager call, watched through the interpreter hook.

Every op really runs, so the traced call is a valid call; each is also appended to a graph.
Tensors that existed before become graph inputs; in-place calls are turned into new values
(`jit.aliasing`), and what they did to tensors from outside becomes `Effect`s.  What cannot be
expressed does not disturb the call: the trace is marked as refused, with a reason that names the
op and the user's file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import eager
import eager.op
from eager.op import Interpreter, Kind, Op
from eager.ops.collectives import SELF
from jit import verify
from jit.aliasing import Chain, Memory, Ref, Refusal, Root, View, call_one
from jit.graph import Builder, Effect, Graph, Node, Value, infer
from jit.passes.autodiff import FLOATING, constant_value, plain_attrs
from jit.places import frames, place, user_location
from jit.pytree import Spec, flatten

CONSTANT_LIMIT = 64  # elements of a tensor made from Python data that becomes a constant
_UNKNOWN = object()
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_DETACH = eager.op.registry["detach"]
_VJPS = {getattr(op.vjp, "__code__", None) for op in eager.op.registry.values()}


Inputs = tuple[Any, ...]


def _call_site() -> tuple[str, bool]:
    """The user's ``file:line`` ("" if there is none), and whether a gradient rule lies between it
    and here."""
    *inner, last = frames()
    return place(last), any(f.f_code in _VJPS for f in inner)


@dataclass(frozen=True, eq=False)
class Source:
    """Where a graph input's tensor comes from at each call.

    Exactly one of: ``argument``, the index of a tensor argument; ``tensor``, one captured by
    reference; ``leaf``, the source of a tensor whose ``.grad`` it is.
    """

    argument: int = -1
    tensor: Any = None
    leaf: Source | None = None


@dataclass(frozen=True)
class Result:
    """How one leaf of the returned structure is made: a Python object as it is; or a graph
    output (``output``) or an input tensor (``source``), followed by view calls."""

    value: Any = None
    output: int = -1
    source: int = -1
    views: Chain = ()


@dataclass(frozen=True)
class ValueGuard:
    """Python read a computed value: graph output `output` must again be `value`."""

    output: int
    value: bool | int
    where: str


@dataclass
class GradState:
    """What the trace knows of a leaf's ``.grad``.

    Attributes:
        leaf: the tensor.
        initial: its ``.grad`` before the trace; `_UNKNOWN` if it was written before it was seen.
        current: its ``.grad`` now.
        observed: whether `initial` was read, so that later calls must find the same.
        assigned: whether ``.grad`` was set by the trace.
    """

    leaf: Any
    initial: Any
    current: Any
    observed: bool = False
    assigned: bool = False


@dataclass
class Trace:
    """What a tracer hands on.

    Attributes:
        graph: the program; inputs as `sources`; outputs: first those returned, then effects'.
        sources: where each graph input comes from.
        effects: what the call did to tensors from outside; for "grad" the target indexes
            `leaves`.
        leaves: tensors whose ``.grad`` the call sets or depends on.
        had_grad: for each leaf whether its ``.grad`` was a tensor before; None: not relevant.
        results: how the returned leaves are made.
        views: gradients that are views of inputs, by the number effects give them.
        spec: structure of what is returned.
        guards: values that Python read.
        differentiable: graph outputs that need gradients outside.
        requires: for each input whether it required grad.
        packed: for each input whether it was contiguous.
    """

    graph: Graph
    sources: list[Source]
    effects: list[Effect]
    leaves: list[Source]
    had_grad: list[bool | None]
    results: list[Result]
    views: list[Result]
    spec: Spec
    guards: list[ValueGuard]
    differentiable: list[int]
    requires: list[bool]
    packed: list[bool]


class Tracer(Interpreter):
    """Logs the calls of one run.

    Attributes:
        refused: why the run cannot be compiled; "" while it can.
    """

    def __init__(self, arguments: list[Any]) -> None:
        self.refused = ""
        self.builder = Builder()
        self.memory = Memory(self.builder)
        self.sources: list[Source] = []
        self.requires: list[bool] = []
        self.packed: list[bool] = []
        self._arguments = {id(t): i for i, t in enumerate(arguments)}
        self._grads: dict[int, GradState] = {}
        self._owners: dict[int, Any] = {}  # id of an initial .grad -> its leaf
        self._reads: list[tuple[Value, bool | int, str]] = []
        self._no_attach = ""  # why results could not be given a gradient
        self._backward = False
        self._foreign_tape = False
        self._vjp_seen = False
        self._fixed: set[Value] = set()  # values that depend on no input
        self._epoch = eager._C.next_epoch()
        for t in arguments:
            self._attempt(None, lambda: self._look_up(t))

    # --- the hook -----------------------------------------------------------------------------

    def process(self, op: Op, inputs: Inputs, attrs: dict[str, Any], target: Any | None) -> Any:
        """Runs and logs one call."""
        if self.refused:
            return eager.op.execute(op, inputs, attrs, target)
        self.builder.where, in_vjp = _call_site()
        self._vjp_seen = self._vjp_seen or in_vjp
        targets = () if target is None else target if isinstance(target, tuple) else (target,)

        def before() -> list[Value]:
            for t in targets:
                self._look_up(t)
            return [self._operand(x) for x in inputs]

        operands = self._attempt(op, before)
        result = eager.op.execute(op, inputs, attrs, target)
        if operands is not None:
            plain = plain_attrs(op, attrs)
            if targets:
                self._attempt(op, lambda: self._log_update(op, targets, operands, plain))
            else:
                self._attempt(op, lambda: self._log_call(op, inputs, operands, plain, result))
        return result

    def read(self, tensor: Any, value: Any) -> None:
        """What depends on no input may be read; else truth values and integers are guarded."""
        if self.refused:
            return
        v = self._attempt(None, lambda: self._operand(tensor))
        if v is None or v.is_constant or v in self._fixed:
            return
        if isinstance(value, bool | int):
            self._reads.append((v, value, user_location()))
        else:
            self.refuse(
                f"the data of a computed {v.type} tensor is read by Python",
                "return the tensor and read it outside of the compiled function",
            )

    def create(self, tensor: Any, data: Any) -> None:
        """Small tensors of Python numbers are constants; copies of tensors and uninitialised
        tensors are known; anything else may be new data at every call."""
        if not self.refused and not tensor._is_weak:
            self._attempt(None, lambda: self._log_creation(tensor, data))

    def _log_creation(self, tensor: Any, data: Any) -> None:
        type_ = tensor.shape, tensor.dtype.name
        if data is None:
            attrs = {"value": 0.0, "shape": tuple(tensor.shape), "dtype": tensor.dtype.name}
            value = self.builder.node(eager.op.registry["full"], [], attrs, [type_])[0]
            self._fixed.add(value)
        elif isinstance(data, eager.Tensor):
            value = self._operand(data)
            if value.dtype != tensor.dtype.name:
                value = call_one(self.builder, "cast", value, dtype=tensor.dtype.name)
        elif isinstance(data, bool | int | float | list | tuple) and (
            tensor.numel() <= CONSTANT_LIMIT and _only_numbers(data)
        ):
            value = constant_value(tensor)
        else:
            raise Refusal(
                f"a tensor of {tensor.numel()} elements is made from data; "
                "make it outside and pass it as an argument"
            )
        self.memory.new(tensor, value)

    def grad(self, tensor: Any, value: Any, written: bool) -> None:
        """Keeps account of what the ``.grad`` of tensors from outside was and is."""
        if self.refused or self.memory.made(tensor):
            return
        state = self._grads.get(id(tensor))
        if state is None:
            # Not seen before as an operand: what it was is unknown once it has been written.
            state = GradState(tensor, _UNKNOWN if written else value, value)
            self._grads[id(tensor)] = state
            if not written and value is not None:
                self._owners[id(value)] = tensor
        if not written:
            state.observed = state.observed or not state.assigned
            return
        # Backward adds to what it finds; the user's assignments depend on nothing.
        unread = state.assigned or value is None or state.initial is _UNKNOWN
        state.observed = state.observed or not unread
        state.current, state.assigned = value, True

    def refuse(self, reason: str, hint: str = "", where: str | None = None) -> None:
        """Gives up compiling this run, which goes on eagerly."""
        if not self.refused:
            place = user_location() if where is None else where
            self.refused = f"{place}: {reason}" + (f"; {hint}" if hint else "")

    # --- logging ------------------------------------------------------------------------------

    def _attempt(self, op: Op | None, step: Callable[[], Any]) -> Any:
        """Runs a step of the log.  A `Refusal`, or any other failure, which must not disturb the
        call, marks the trace and gives None."""
        try:
            return step()
        except Exception as error:
            if not isinstance(error, Refusal) and verify.enabled():
                raise
            self.refuse(f"{op.name}: {error}" if op else str(error))
            return None

    def _operand(self, x: Any) -> Value:
        if not isinstance(x, eager.Tensor) or x._is_weak:
            return constant_value(x)
        return self.memory.read(self._look_up(x))

    def _origin(self, t: Any) -> Source:
        argument = self._arguments.get(id(t), -1)
        return Source(argument=argument) if argument >= 0 else Source(tensor=t)

    def _look_up(self, t: Any) -> Ref:
        """The ref of a tensor; one that is new to the trace becomes a graph input."""
        ref = self.memory.find(t)
        if ref is not None:
            if ref.requires != t.requires_grad:
                self._no_attach = self._no_attach or "a custom autograd.Function"
                ref.requires = t.requires_grad
            return ref
        if t.device.type != "cpu":
            raise Refusal(f"a tensor on the device {t.device.type!r} is used")
        if t._storage_epoch >= self._epoch:
            # Not from outside, so reading it again at every call would be wrong.
            raise Refusal("a tensor is used that the call made without calling an op")
        source = self._origin(t)
        owner = self._owners.get(id(t))
        if owner is not None and source.tensor is not None:
            self._grads[id(owner)].observed = True
            source = Source(leaf=self._origin(owner))
        self.sources.append(source)
        self.requires.append(t.requires_grad)
        self.packed.append(t.is_contiguous())
        ref = self.memory.new(t, self.builder.input(t.shape, t.dtype.name), len(self.sources) - 1)
        if t.requires_grad and not t.is_leaf:
            self._foreign_tape = True
        elif t.requires_grad and id(t) not in self._grads:
            initial = t.grad
            self._grads[id(t)] = GradState(t, initial, initial)
            if initial is not None:
                self._owners[id(initial)] = t
        return ref

    def _log_call(
        self, op: Op, inputs: Inputs, operands: list[Value], attrs: dict[str, Any], result: Any
    ) -> None:
        tensors = result if isinstance(result, tuple) else (result,)
        if all(self.memory.knows(t) for t in tensors):  # the op had nothing to do
            return
        types = [(tuple(t.shape), t.dtype.name) for t in tensors]
        if op.kind == Kind.OPAQUE:
            _expect_static(op, operands, attrs, types)
        values = self.builder.node(op, operands, attrs, types)
        if all(v.is_constant or v in self._fixed for v in operands):
            self._fixed.update(values)
        recorded = op.vjp is not None and any(
            isinstance(x, eager.Tensor) and x.requires_grad for x in inputs
        )
        for i, (t, v) in enumerate(zip(tensors, values, strict=True)):
            views = [View(op, attrs, i)]
            if recorded and not t.requires_grad and v.dtype in FLOATING and op is not _DETACH:
                # Grad mode was off: a constant for whoever differentiates the graph.
                v = self.builder.node(_DETACH, [v], {}, [(v.shape, v.dtype)])[0]
                views.append(View(_DETACH, {}, 0))
            if op.kind == Kind.VIEW and inputs and self.memory.shares(t, inputs[0]):
                self.memory.view(t, self._look_up(inputs[0]), views, v)
            else:
                self.memory.new(t, v)

    def _log_update(
        self, op: Op, targets: Inputs, operands: list[Value], attrs: dict[str, Any]
    ) -> None:
        values = self.builder.call(op, operands, attrs)
        for t, v in zip(targets, values, strict=True):
            ref = self.memory.known(t)
            if v.dtype != t.dtype.name:
                v = call_one(self.builder, "cast", v, dtype=t.dtype.name)
            if v.shape != tuple(t.shape):
                v = call_one(self.builder, "expand", v, shape=tuple(t.shape))
            if t.requires_grad and not eager.is_grad_enabled():
                self._no_attach = self._no_attach or "an in-place call while grad mode is off"
            self.memory.write(ref, v)
            ref.requires = t.requires_grad

    # --- the end ------------------------------------------------------------------------------

    def finish(self, returned: Any) -> Trace | None:
        """The trace of a run that returned `returned`; None if it was refused."""
        return self._attempt(None, lambda: self._finish(returned)) if not self.refused else None

    def _finish(self, returned: Any) -> Trace:
        outputs: list[Value] = []
        index: dict[Root, int] = {}

        def output_of(root: Root) -> int:
            if root not in index:
                index[root] = len(outputs)
                outputs.append(root.value)
            return index[root]

        leaves, spec = flatten(returned)
        differentiable: set[int] = set()
        results = []
        for x in leaves:
            if not isinstance(x, eager.Tensor):
                if not isinstance(x, _PLAIN):
                    raise Refusal(f"an object of type {type(x).__name__} is returned")
                results.append(Result(value=x))
                continue
            ref = self._look_up(x)
            if self.memory.made(x) and x.is_leaf and x.requires_grad:
                raise Refusal("a new leaf that requires grad is returned")
            if self.memory.made(x) and x.retains_grad:
                raise Refusal("a tensor whose .grad is retained is returned")
            if ref.root.source >= 0:
                results.append(Result(source=ref.root.source, views=ref.chain))
                continue
            out = output_of(ref.root)
            attached = x.requires_grad and not _released(x)
            if attached:
                differentiable.add(out)
            views = ref.chain
            if ref.root.base.requires_grad and not attached and not _detached(views):
                views = (*views, View(_DETACH, {}, 0))
            results.append(Result(output=out, views=views))
        if self._foreign_tape and self._vjp_seen:
            raise Refusal("backward runs through operations made outside of the function")
        if differentiable and self._no_attach:
            raise Refusal(f"the result needs a gradient but was made by {self._no_attach}")
        gradients: list[Result] = []
        effects = self._effects(outputs, gradients)
        guards = []
        if self._reads and any(_meets_others(node) for node in self.builder.graph.nodes):
            # A guard that fails has the call run again, and other ranks would not.
            raise Refusal("Python reads a computed value in a call that holds collectives")
        for v, value, where in self._reads:
            guards.append(ValueGuard(len(outputs), value, where))
            outputs.append(v)
        touched = [s for s in self._grads.values() if s.assigned or s.observed]
        graph = self.builder.build(outputs)
        if verify.enabled():
            verify.verify(graph)
        return Trace(
            graph, self.sources, effects, [self._origin(s.leaf) for s in touched],
            [s.initial is not None if s.observed else None for s in touched],
            results, gradients, spec, guards, sorted(differentiable), self.requires, self.packed,
        )  # fmt: skip

    def _effects(self, outputs: list[Value], views: list[Result]) -> list[Effect]:
        """What happened to tensors from outside; appends the values needed to `outputs`, and
        gradients that are views of inputs to `views`."""
        effects = []
        for root in self.memory.written():
            before, after = self.requires[root.source], root.base.requires_grad
            if before != after or (after and not root.base.is_leaf):
                raise Refusal("a tensor from outside is changed in place by a recorded operation")
            effects.append(Effect("write", root.source, len(outputs)))
            outputs.append(root.value)
        touched = [s for s in self._grads.values() if s.assigned or s.observed]
        for i, state in enumerate(touched):
            if not state.assigned or state.current is state.initial:
                continue
            if state.current is None:
                effects.append(Effect("grad", i, -1))
                continue
            ref = self._look_up(state.current)
            if ref.root.source >= 0 and not ref.made:
                raise Refusal("a tensor from outside becomes a .grad")
            if ref.root.source >= 0:
                effects.append(Effect("view", i, len(views)))
                views.append(Result(source=ref.root.source, views=ref.chain))
                continue
            effects.append(Effect("grad", i, len(outputs)))
            outputs.append(self.memory.read(ref))
        return effects


def _meets_others(node: Node) -> bool:
    return node.op.exchange is not None and node.attrs["group"] != SELF


def _expect_static(op: Op, operands: list[Value], attrs: dict[str, Any], types: Any) -> None:
    """Raises `Refusal` if the shape of the result cannot be told without data."""
    try:
        inferred = infer(op, operands, attrs)
    except eager.errors.EagerError:
        inferred = []
    if inferred != types:
        raise Refusal("the shape of the result depends on data")


def _released(t: Any) -> bool:
    """Whether backward from `t` would fail, as one has already freed some of what it needs."""
    pending, seen = [t.grad_fn], {None}
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        if node.released:
            return True
        seen.add(node)
        pending += [n for n, _ in node.next_functions]
    return False


def _detached(views: Chain) -> bool:
    return any(v.op is _DETACH for v in views)


def _only_numbers(data: Any) -> bool:
    """Whether nested lists hold Python numbers only."""
    if isinstance(data, list | tuple):
        return all(map(_only_numbers, data))
    return isinstance(data, bool | int | float)
