"""Tensors as values: views and in-place writes of a traced call, made functional.

Each block of memory is a `Root` with a current value; each tensor is a `Ref`: a root and the chain
of view ops that leads from the root to it.  A write to a tensor makes a new value of the root (by
scattering back up the chain); tensors over the same root then get theirs by repeating the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eager.op import Op, registry
from jit.graph import Builder, Shape, Value


class Refusal(Exception):
    """The traced call does something that a graph cannot express; says what."""


class View(NamedTuple):
    """One step of a chain: output number `output` of a view op."""

    op: Op
    attrs: dict[str, Any]
    output: int


Chain = tuple[View, ...]


@dataclass(eq=False, slots=True)
class Root:
    """A block of memory as one tensor sees it.

    Attributes:
        base: that tensor.
        value: its current value.
        source: index of the graph input it is; -1 if the traced call made it.
        version: the storage's version counter after the last logged write.
        generation: number of logged writes.
        refs: a tensor of each layout over this memory.
    """

    base: Any
    value: Value
    source: int
    version: int
    generation: int = 0
    refs: dict[Any, Ref] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Ref:
    """One tensor.

    Attributes:
        tensor: kept alive, so that its identity and its memory are not reused.
        chain: views from the root's base to it.
        value: its value as of the root's `generation`.
        requires: whether it requires grad, as far as the log explains.
        made: whether the traced call made it.
    """

    tensor: Any
    root: Root
    chain: Chain
    value: Value
    generation: int
    requires: bool
    made: bool = False


def _block(t: Any) -> Any:
    """Identifies the storage of a tensor that is alive."""
    if t.numel() == 0:
        return ("empty", id(t))
    return t._storage_id


def _layout(t: Any) -> Any:
    return t.storage_offset(), tuple(t.shape), t.stride(), t.dtype.name


def call_one(builder: Builder, name: str, x: Value, *more: Value, **attrs: Any) -> Value:
    """Appends a call of a registered op; its first output."""
    return builder.call(registry[name], [x, *more], attrs)[0]


# --- putting a new value of a view back into what it is a view of ------------------------------


def _unreshape(b: Builder, parent: Value, new: Value, _view: View) -> Value:
    return call_one(b, "reshape", new, shape=parent.shape)


def _unpermute(b: Builder, _parent: Value, new: Value, view: View) -> Value:
    dims = view.attrs["dims"]
    return call_one(b, "permute", new, dims=tuple(dims.index(d) for d in range(len(dims))))


def _unslice(b: Builder, parent: Value, new: Value, view: View) -> Value:
    attrs = {k: view.attrs[k] for k in ("starts", "sizes", "steps")}
    return _scatter(b, parent, new, attrs)


def _unsplit(b: Builder, parent: Value, new: Value, view: View) -> Value:
    dim, before = view.attrs["dim"], sum(view.attrs["sizes"][: view.output])
    starts = tuple(before if d == dim else 0 for d in range(len(parent.shape)))
    steps = (1,) * len(parent.shape)
    return _scatter(b, parent, new, {"starts": starts, "sizes": new.shape, "steps": steps})


def _scatter(b: Builder, parent: Value, new: Value, attrs: dict[str, Any]) -> Value:
    sizes: Shape = attrs["sizes"]
    if new.shape != sizes:
        new = call_one(b, "reshape", new, shape=sizes)
    return call_one(b, "slice_scatter", parent, new, **attrs)


def _undetach(_b: Builder, _parent: Value, new: Value, _view: View) -> Value:
    return new


_PUT_BACK: dict[str, Callable[[Builder, Value, Value, View], Value]] = {
    "reshape": _unreshape,
    "permute": _unpermute,
    "slice": _unslice,
    "split": _unsplit,
    "detach": _undetach,
}


class Memory:
    """All tensors a traced call has touched."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._refs: dict[int, Ref] = {}
        self._blocks: dict[Any, list[Root]] = {}

    def find(self, t: Any) -> Ref | None:
        """The ref of a tensor, also of one that aliases a known tensor exactly; None if its
        memory is unknown.  Raises `Refusal` if it cannot be told what `t` holds."""
        ref = self._refs.get(id(t))
        if ref is None:
            for root in self._blocks.get(_block(t), ()):
                twin = root.refs.get(_layout(t))
                if twin is not None:
                    ref = self._keep(t, twin.root, twin.chain, twin.value, twin.generation)
                    ref.requires = t.requires_grad
                    break
                if root.source < 0:
                    raise Refusal("a view was made of a traced tensor without calling a view op")
                if root.generation:
                    raise Refusal("a tensor is read whose memory was written through another one")
        if ref is not None and t._version != ref.root.version:
            raise Refusal("a tensor was changed in place without calling an op")
        return ref

    def new(self, t: Any, value: Value, source: int = -1) -> Ref:
        """Registers a tensor with memory of its own."""
        roots = self._blocks.setdefault(_block(t), [])
        if roots and source < 0:
            raise Refusal("an op returned memory of a known tensor without being a view")
        root = Root(t, value, source, t._version)
        roots.append(root)
        ref = self._keep(t, root, (), value, 0)
        ref.made = source < 0
        return ref

    def view(self, t: Any, parent: Ref, steps: Iterable[View], value: Value) -> Ref:
        """Registers a view that `steps` made of `parent`."""
        root = parent.root
        ref = self._keep(t, root, (*parent.chain, *steps), value, root.generation)
        ref.made = True
        return ref

    def made(self, t: Any) -> bool:
        """Whether the traced call made this tensor object."""
        ref = self._refs.get(id(t))
        return ref is not None and ref.made

    def known(self, t: Any) -> Ref:
        """The ref of a registered tensor."""
        return self._refs[id(t)]

    def knows(self, t: Any) -> bool:
        """Whether this very tensor is registered."""
        return id(t) in self._refs

    def _keep(self, t: Any, root: Root, chain: Chain, value: Value, generation: int) -> Ref:
        ref = Ref(t, root, chain, value, generation, t.requires_grad)
        self._refs[id(t)] = ref
        root.refs.setdefault(_layout(t), ref)
        return ref

    def shares(self, t: Any, other: Any) -> bool:
        """Whether two tensors lie in one storage."""
        return bool(_block(t) == _block(other))

    def read(self, ref: Ref) -> Value:
        """The current value; repeats the view chain if the root was written since."""
        if ref.generation != ref.root.generation:
            ref.value = self._walk(ref.root.value, ref.chain)[-1]
            ref.generation = ref.root.generation
        return ref.value

    def _walk(self, value: Value, chain: Chain) -> list[Value]:
        values = [value]
        for view in chain:
            values.append(self._builder.call(view.op, [values[-1]], view.attrs)[view.output])
        return values

    def write(self, ref: Ref, value: Value) -> None:
        """Logs that the tensor of `ref` now holds `value` (of its shape and dtype)."""
        root = ref.root
        if len(self._blocks[_block(root.base)]) > 1:
            raise Refusal("an in-place call writes memory that two tensors from outside share")
        parents = self._walk(root.value, ref.chain[:-1]) if ref.chain else []
        new = value
        for parent, view in zip(reversed(parents), reversed(ref.chain), strict=True):
            if view.op.name not in _PUT_BACK:
                raise Refusal(f"an in-place call writes through a view made by {view.op.name}")
            new = _PUT_BACK[view.op.name](self._builder, parent, new, view)
        root.value = new
        root.generation += 1
        root.version = root.base._version
        ref.value, ref.generation = value, root.generation

    def written(self) -> list[Root]:
        """The roots from outside that were written."""
        roots = (r for block in self._blocks.values() for r in block)
        return [r for r in roots if r.source >= 0 and r.generation]
