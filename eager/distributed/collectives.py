"""The collectives: functions over the tensors of all ranks of a group.

Names and arguments are those of `torch.distributed`.  All ranks of a group make the same calls in
the same order.  Roots and peers (`src`, `dst`) are ranks of the job; `group_src` and `group_dst`
are ranks of the group.  A call on a group that this rank is not in warns and does nothing.

With ``async_op=True`` a call returns a `Work` at once; the tensors must stay untouched until its
`wait` has returned.  Results are bit-identical on all ranks and from run to run.

Collectives are not differentiable: what they write must not be part of a recorded graph.

All raise:
    PeerLost: a rank died, hangs or was cut off.  The group is then broken.
    Mismatch: ranks made different calls.
    AutogradError: a tensor that would be written requires grad while grad mode is on.
    ArgumentError, ShapeError, DTypeError: the arguments make no sense.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import eager
from eager import Tensor
from eager.distributed import process_group as _groups
from eager.distributed.backends.base import CallWork, ReduceOp, Work
from eager.distributed.process_group import GroupMember, ProcessGroup
from eager.errors import ArgumentError, AutogradError, DTypeError, ShapeError, helpful
from eager.op import interpreting

__all__ = [
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
]

Group = ProcessGroup | None


# --- what the functions share --------------------------------------------------------------------


def _recorded(
    name: str, pg: ProcessGroup, async_op: bool, input: Tensor, output: Tensor, **attrs: int
) -> Work | None:  # fmt: skip
    """Shows a call to the interpreter of this thread, as an op (`eager.ops.collectives`).

    It has ended when this returns."""
    graph = importlib.import_module("eager.distributed.graph")
    size = pg.size()
    shape = {"all_gather": (size * len(input), *input.shape[1:]) if input.dim() else (size,),
             "reduce_scatter": (len(input) // size, *input.shape[1:]) if input.dim() else (),
             }.get(name, tuple(input.shape))  # fmt: skip
    with eager.no_grad():
        if tuple(output.shape) == shape and input.dim():
            graph.record(name, input, output, group=pg.id, **attrs)
        else:  # stacked instead of concatenated
            flat = graph.record(name, input.reshape(-1), None, group=pg.id, **attrs)
            output.copy_(flat.reshape(output.shape))
    return CallWork(lambda: None, lambda: True, [output]) if async_op else None


def _resolve(group: Group, op: str) -> ProcessGroup | None:
    """The group; None, with a warning, if this rank is not in it."""
    found = _groups.resolve(group, op)
    if found is GroupMember.NON_GROUP_MEMBER:
        warnings.warn(f"{op}: this rank is not in the group; nothing is done", stacklevel=3)
        return None
    return found


def _tensor(op: str, value: Any, role: str = "tensor") -> Tensor:
    """`value`, if it is a tensor, or an array on a GPU for the backend that takes those."""
    if isinstance(value, Tensor) or hasattr(value, "__cuda_array_interface__"):
        return value  # type: ignore[no-any-return]
    raise helpful(DTypeError, op, f"{role} is not a tensor", "an eager.Tensor",
                  type(value).__name__)  # fmt: skip


def _written(op: str, value: Any, role: str = "tensor") -> Tensor:
    """`value`, if a collective may write it."""
    tensor = _tensor(op, value, role)
    if isinstance(tensor, Tensor) and tensor.requires_grad and eager.is_grad_enabled():
        raise helpful(
            AutogradError, op, f"{role} requires grad, and collectives are not differentiable",
            "a tensor that does not require grad, or grad mode off", "requires_grad=True",
            "tensor.detach(), or with eager.no_grad(): ...",
        )  # fmt: skip
    return tensor


def _count(x: Any) -> int:
    return int(x.numel() if isinstance(x, Tensor) else x.size)


def _list(op: str, value: object, role: str, size: int) -> list[Tensor]:
    if not isinstance(value, list | tuple) or len(value) != size:
        given = f"{len(value)}" if isinstance(value, list | tuple) else type(value).__name__
        raise helpful(ArgumentError, op, f"{role} must have one tensor for each rank",
                      f"a list of {size} tensors", given)  # fmt: skip
    return [_tensor(op, t, f"{role}[{i}]") for i, t in enumerate(value)]


def _same(op: str, tensors: Sequence[Tensor], like: Tensor, role: str) -> None:
    """Raises unless all have the shape and dtype of `like`."""
    for i, t in enumerate(tensors):
        if t.shape != like.shape or t.dtype != like.dtype:
            raise helpful(
                ShapeError if t.shape != like.shape else DTypeError, op,
                f"{role}[{i}] does not fit the tensor", f"{like.dtype} {tuple(like.shape)}",
                f"{t.dtype} {tuple(t.shape)}",
            )  # fmt: skip


def _ratio(op: str, large: Tensor, small: Tensor, size: int, roles: tuple[str, str]) -> None:
    """Raises unless `large` has the dtype of `small` and `size` times its elements."""
    if large.dtype != small.dtype:
        raise helpful(DTypeError, op, f"{roles[0]} and {roles[1]} have different dtypes",
                      str(small.dtype), str(large.dtype))  # fmt: skip
    if _count(large) != size * _count(small):
        raise helpful(
            ShapeError, op, f"{roles[0]} must have {size} times the elements of {roles[1]}",
            f"{size * _count(small)} elements", f"shape {tuple(large.shape)}",
        )  # fmt: skip


def _operation(op: str, given: object) -> ReduceOp:
    if isinstance(given, ReduceOp) and given <= ReduceOp.PRODUCT:
        return given
    raise helpful(
        ArgumentError, op, "there is no such reduction", "ReduceOp.SUM, AVG, PRODUCT, MIN or MAX",
        given.name if isinstance(given, ReduceOp) else repr(given),
        "for bool, MAX is or, and MIN is and; bits: reduce an int tensor per bit",
    )  # fmt: skip


def _member(op: str, pg: ProcessGroup, rank: int | None, group_rank: int | None,
            role: str, default: int | None = None) -> int:  # fmt: skip
    """The rank within the group of a root or peer given in either numbering."""
    if rank is not None and group_rank is not None:
        raise helpful(ArgumentError, op, f"{role} was given twice", f"{role} or group_{role}",
                      f"{role}={rank}, group_{role}={group_rank}")  # fmt: skip
    if group_rank is None:
        if rank is None:
            rank = default
        if rank is None:
            raise helpful(ArgumentError, op, f"{role} is missing", f"{role} or group_{role}",
                          "neither")  # fmt: skip
        return pg.group_rank(rank, op)
    if not 0 <= group_rank < pg.size():
        raise helpful(ArgumentError, op, f"group_{role} is not a rank of the group",
                      f"0 to {pg.size() - 1}", str(group_rank))  # fmt: skip
    return group_rank


def _then(work: Work | None, async_op: bool, finish: Callable[[], None], value: Any) -> Work | None:
    """Calls `finish` after the work: now, or when somebody waits for it."""
    if not async_op:
        finish()
        return None
    assert work is not None
    inner = work

    def end() -> None:
        inner.wait()
        finish()

    return CallWork(end, inner.is_completed, value)


def _named(work: Work | None, value: Any) -> Work | None:
    """`work`, with what its `result` gives."""
    if work is not None:
        work.result_value = value
    return work


# --- reductions ----------------------------------------------------------------------------------


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Combines `tensor` over all ranks; each ends with the same result in it."""
    pg = _groups.world_group if group is None else group
    if pg is None or pg is GroupMember.NON_GROUP_MEMBER:
        pg = _resolve(group, "all_reduce")
        if pg is None:
            return None
    if not isinstance(tensor, Tensor):
        _tensor("all_reduce", tensor)
    if interpreting():
        _written("all_reduce", tensor)
        return _recorded("all_reduce", pg, async_op, tensor, tensor,
                         reduction=_operation("all_reduce", op), plan=-1)  # fmt: skip
    return pg.backend.all_reduce(tensor, op, async_op)


def reduce(
    tensor: Tensor, dst: int | None = None, op: ReduceOp = ReduceOp.SUM, group: Group = None,
    async_op: bool = False, group_dst: int | None = None,
) -> Work | None:  # fmt: skip
    """Combines `tensor` over all ranks into that of `dst`; the others' stay as they are."""
    pg = _resolve(group, "reduce")
    if pg is None:
        return None
    root = _member("reduce", pg, dst, group_dst, "dst")
    _written("reduce", tensor)
    work = pg.backend.reduce(tensor, root, _operation("reduce", op), async_op)
    return _named(work, [tensor])


def all_reduce_coalesced(
    tensors: Sequence[Tensor], op: ReduceOp = ReduceOp.SUM, group: Group = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """all_reduce of several tensors of one dtype as one message."""
    pg = _resolve(group, "all_reduce_coalesced")
    if pg is None:
        return None
    name = "all_reduce_coalesced"
    _operation(name, op)
    given = [_written(name, t, f"tensors[{i}]") for i, t in enumerate(tensors)]
    if not given:
        raise helpful(ArgumentError, name, "there is nothing to reduce", "at least one tensor",
                      "an empty list")  # fmt: skip
    if len({t.dtype for t in given}) > 1:
        raise helpful(DTypeError, name, "the tensors have different dtypes", "one dtype",
                      ", ".join(sorted({str(t.dtype) for t in given})))  # fmt: skip
    with eager.no_grad():
        packed = eager.cat([t.detach().reshape(-1) for t in given])
    work = pg.backend.all_reduce(packed, op, async_op)
    return _then(work, async_op, lambda: _unpack(packed, given), given)


def _unpack(packed: Tensor, into: Sequence[Tensor]) -> None:
    """Copies consecutive parts of the flat `packed` into the tensors."""
    with eager.no_grad():
        at = 0
        for t in into:
            t.copy_(packed[at : at + t.numel()].reshape(t.shape))
            at += t.numel()


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    with eager.no_grad():
        packed: Tensor = eager.cat([t.detach().reshape(-1) for t in tensors])
        return packed


def reduce_scatter(
    output: Tensor, input_list: Sequence[Tensor], op: ReduceOp = ReduceOp.SUM, group: Group = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """Combines the lists over all ranks; rank r's `output` becomes entry r."""
    pg = _resolve(group, "reduce_scatter")
    if pg is None:
        return None
    _written("reduce_scatter", output, "output")
    inputs = _list("reduce_scatter", input_list, "input_list", pg.size())
    _same("reduce_scatter", inputs, output, "input_list")
    op = _operation("reduce_scatter", op)
    return _named(pg.backend.reduce_scatter(output, _pack(inputs), op, async_op), [output])


def reduce_scatter_tensor(
    output: Tensor, input: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """As reduce_scatter, with one `input` of size x output elements: stacked or concatenated."""
    pg = _resolve(group, "reduce_scatter_tensor")
    if pg is None:
        return None
    name = "reduce_scatter_tensor"
    _ratio(name, _tensor(name, input, "input"), _written(name, output, "output"), pg.size(),
           ("input", "output"))  # fmt: skip
    if interpreting():
        return _recorded("reduce_scatter", pg, async_op, input, output, size=pg.size(),
                         reduction=_operation(name, op))  # fmt: skip
    work = pg.backend.reduce_scatter(output, input, _operation(name, op), async_op)
    return _named(work, [output])


# --- moving data ---------------------------------------------------------------------------------


def broadcast(
    tensor: Tensor, src: int | None = None, group: Group = None, async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:  # fmt: skip
    """`tensor` becomes that of `src` on all ranks."""
    pg = _resolve(group, "broadcast")
    if pg is None:
        return None
    root = _member("broadcast", pg, src, group_src, "src")
    if pg.rank() == root:
        _tensor("broadcast", tensor)
    else:
        _written("broadcast", tensor)
    if interpreting():
        return _recorded("broadcast", pg, async_op, tensor, tensor, root=root)
    return _named(pg.backend.broadcast(tensor, root, async_op), [tensor])


def all_gather(
    tensor_list: Sequence[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """tensor_list[r] becomes rank r's `tensor`."""
    pg = _resolve(group, "all_gather")
    if pg is None:
        return None
    _tensor("all_gather", tensor)
    outputs = _list("all_gather", tensor_list, "tensor_list", pg.size())
    for i, t in enumerate(outputs):
        _written("all_gather", t, f"tensor_list[{i}]")
    _same("all_gather", outputs, tensor, "tensor_list")
    packed = eager.empty(pg.size() * tensor.numel(), dtype=tensor.dtype)
    work = pg.backend.all_gather(packed, tensor, async_op)
    return _then(work, async_op, lambda: _unpack(packed, outputs), outputs)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """`output_tensor`, stacked or concatenated, becomes all ranks' `input_tensor`."""
    pg = _resolve(group, "all_gather_into_tensor")
    if pg is None:
        return None
    name = "all_gather_into_tensor"
    _ratio(name, _written(name, output_tensor, "output_tensor"),
           _tensor(name, input_tensor, "input_tensor"), pg.size(),
           ("output_tensor", "input_tensor"))  # fmt: skip
    if interpreting():
        return _recorded("all_gather", pg, async_op, input_tensor, output_tensor, size=pg.size())
    return _named(pg.backend.all_gather(output_tensor, input_tensor, async_op), [output_tensor])


def gather(
    tensor: Tensor, gather_list: Sequence[Tensor] | None = None, dst: int | None = None,
    group: Group = None, async_op: bool = False, group_dst: int | None = None,
) -> Work | None:  # fmt: skip
    """gather_list[r] of `dst` (by default rank 0) becomes rank r's `tensor`."""
    pg = _resolve(group, "gather")
    if pg is None:
        return None
    root = _member("gather", pg, dst, group_dst, "dst", 0)
    _tensor("gather", tensor)
    if pg.rank() != root:
        _absent("gather", gather_list, "gather_list", "dst")
        return _named(pg.backend.gather(None, tensor, root, async_op), [])
    outputs = _list("gather", gather_list, "gather_list", pg.size())
    for i, t in enumerate(outputs):
        _written("gather", t, f"gather_list[{i}]")
    _same("gather", outputs, tensor, "gather_list")
    packed = eager.empty(pg.size() * tensor.numel(), dtype=tensor.dtype)
    work = pg.backend.gather(packed, tensor, root, async_op)
    return _then(work, async_op, lambda: _unpack(packed, outputs), outputs)


def scatter(
    tensor: Tensor, scatter_list: Sequence[Tensor] | None = None, src: int | None = None,
    group: Group = None, async_op: bool = False, group_src: int | None = None,
) -> Work | None:  # fmt: skip
    """Rank r's `tensor` becomes scatter_list[r] of `src` (by default rank 0)."""
    pg = _resolve(group, "scatter")
    if pg is None:
        return None
    root = _member("scatter", pg, src, group_src, "src", 0)
    _written("scatter", tensor)
    packed = None
    if pg.rank() == root:
        inputs = _list("scatter", scatter_list, "scatter_list", pg.size())
        _same("scatter", inputs, tensor, "scatter_list")
        packed = _pack(inputs)
    else:
        _absent("scatter", scatter_list, "scatter_list", "src")
    return _named(pg.backend.scatter(tensor, packed, root, async_op), [tensor])


def _absent(op: str, given: Sequence[Tensor] | None, role: str, root: str) -> None:
    if given:
        raise helpful(ArgumentError, op, f"only the rank {root} gives {role}", "None elsewhere",
                      f"{len(given)} tensors")  # fmt: skip


def all_to_all(
    output_tensor_list: Sequence[Tensor], input_tensor_list: Sequence[Tensor],
    group: Group = None, async_op: bool = False,
) -> Work | None:  # fmt: skip
    """Entry r of the input goes to rank r; entry r of the output comes from it.

    Shapes may differ between entries."""
    pg = _resolve(group, "all_to_all")
    if pg is None:
        return None
    name, size = "all_to_all", pg.size()
    outputs = _list(name, output_tensor_list, "output_tensor_list", size)
    inputs = _list(name, input_tensor_list, "input_tensor_list", size)
    for i, t in enumerate(outputs):
        _written(name, t, f"output_tensor_list[{i}]")
    if len({t.dtype for t in (*outputs, *inputs)}) > 1:
        raise helpful(DTypeError, name, "the tensors have different dtypes", "one dtype",
                      ", ".join(sorted({str(t.dtype) for t in (*outputs, *inputs)})))  # fmt: skip
    received = [t.numel() for t in outputs]
    packed = eager.empty(sum(received), dtype=outputs[0].dtype)
    sent = [t.numel() for t in inputs]
    work = pg.backend.all_to_all(packed, _pack(inputs), received, sent, async_op)
    return _then(work, async_op, lambda: _unpack(packed, outputs), outputs)


def all_to_all_single(
    output: Tensor, input: Tensor, output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None, group: Group = None, async_op: bool = False,
) -> Work | None:  # fmt: skip
    """Part r of `input` along dimension 0 goes to rank r; part r of `output` comes from it.

    Without split sizes the parts are equal."""
    pg = _resolve(group, "all_to_all_single")
    if pg is None:
        return None
    name = "all_to_all_single"
    _written(name, output, "output")
    _tensor(name, input, "input")
    if output.dtype != input.dtype:
        raise helpful(DTypeError, name, "output and input have different dtypes",
                      str(input.dtype), str(output.dtype))  # fmt: skip
    received = _splits(name, output, output_split_sizes, pg.size(), "output")
    sent = _splits(name, input, input_split_sizes, pg.size(), "input")
    return _named(pg.backend.all_to_all(output, input, received, sent, async_op), [output])


def _splits(
    op: str, tensor: Tensor, sizes: Sequence[int] | None, ranks: int, role: str
) -> list[int]:
    """The number of elements of each rank's part."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if sizes:
        if len(sizes) != ranks or sum(sizes) != rows or min(sizes) < 0:
            raise helpful(ArgumentError, op, f"{role}_split_sizes do not fit {role}",
                          f"{ranks} sizes that add up to {rows}", str(list(sizes)))  # fmt: skip
    elif rows % ranks:
        raise helpful(ShapeError, op, f"{role} cannot be cut into {ranks} equal parts",
                      f"a multiple of {ranks} rows", f"{rows} rows",
                      f"{role}_split_sizes=")  # fmt: skip
    else:
        sizes = [rows // ranks] * ranks
    row = tensor.numel() // rows if rows else 0
    return [n * row for n in sizes]


def barrier(
    group: Group = None, async_op: bool = False, device_ids: Sequence[int] | None = None
) -> Work | None:
    """Returns when all ranks of the group have called it.  `device_ids` is not used."""
    del device_ids
    pg = _resolve(group, "barrier")
    return None if pg is None else pg.backend.barrier(async_op)
