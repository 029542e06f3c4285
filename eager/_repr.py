"""How tensors are printed: PyTorch's format."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eager._C import Tensor, get_default_dtype

__all__ = ["set_printoptions", "tensor_repr"]


@dataclass
class _Options:
    precision: int = 4
    threshold: int = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: int | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Sets how tensors are printed.  What is not given stays, but `sci_mode` becomes automatic.

    Args:
        precision: digits behind the point.
        threshold: the number of elements above which the middle of each dimension is left out.
        edgeitems: how many elements then remain at either end of a dimension.
        linewidth: characters of a line.
        sci_mode: whether floats are printed with exponents; None: when that reads better.
    """
    if precision is not None:
        _options.precision = precision
    if threshold is not None:
        _options.threshold = threshold
    if edgeitems is not None:
        _options.edgeitems = edgeitems
    if linewidth is not None:
        _options.linewidth = linewidth
    _options.sci_mode = sci_mode


def _scientific(finite: list[float]) -> bool:
    sizes = [abs(v) for v in finite if v != 0]
    if not sizes:
        return False
    if all(v == int(v) for v in finite):
        return max(sizes) >= 1e8
    return max(sizes) / min(sizes) > 1000 or max(sizes) >= 1e8 or min(sizes) < 1e-4


def _float_format(values: list[float]) -> Callable[[float], str]:
    finite = [v for v in values if math.isfinite(v)]
    digits = _options.precision
    scientific = _scientific(finite) if _options.sci_mode is None else _options.sci_mode
    if scientific:
        return lambda v: f"{v:.{digits}e}"
    if all(v == int(v) for v in finite):
        return lambda v: f"{v:.0f}." if math.isfinite(v) else f"{v}"
    return lambda v: f"{v:.{digits}f}"


def _leaves(data: Any, depth: int) -> list[Any]:
    if depth == 0:
        return [data]
    return [leaf for part in data for leaf in _leaves(part, depth - 1)]


class _Summary:
    """The nested lists of a tensor's elements without the middle of long dimensions.

    `cut[d]` tells whether dimension `d` lacks its middle.
    """

    def __init__(self, x: Tensor) -> None:
        n = _options.edgeitems
        summarised = x.numel() > _options.threshold
        self.cut = [summarised and size > 2 * n for size in x.shape]
        self.data = self._read(x, 0)

    def _read(self, x: Tensor, dim: int) -> Any:
        if not any(self.cut[dim:]):
            return x.tolist()
        size, n = x.shape[0], _options.edgeitems
        places = [*range(n), *range(size - n, size)] if self.cut[dim] else range(size)
        return [self._read(x[i], dim + 1) for i in places]


def _layout(data: Any, cut: list[bool], dim: int, write: Callable[[Any], str], indent: int) -> str:
    if dim == len(cut):
        return write(data)
    n = _options.edgeitems
    parts = [_layout(part, cut, dim + 1, write, indent + 1) for part in data]
    if cut[dim]:
        parts.insert(n, "..." if dim + 1 < len(cut) else " ...")
    if dim + 1 < len(cut):
        blank = "\n" * (len(cut) - dim - 1)
        return "[" + f",{blank}{' ' * (indent + 1)}".join(parts) + "]"
    # Elements of the last dimension fill lines.
    width = max((len(p) for p in parts), default=0) + 2
    per_line = max(1, (_options.linewidth - indent) // width)
    lines = [", ".join(parts[i : i + per_line]) for i in range(0, len(parts), per_line)]
    return "[" + f",\n{' ' * (indent + 1)}".join(lines) + "]"


def _elements(x: Tensor, indent: int) -> str:
    summary = _Summary(x)
    leaves = _leaves(summary.data, x.ndim)
    write: Callable[[Any], str] = _float_format(leaves) if x.dtype.is_floating_point else str
    if x.ndim == 0:
        return write(summary.data)
    finite = [v for v in leaves if math.isfinite(v)]
    width = max((len(write(v)) for v in finite), default=0)
    return _layout(summary.data, summary.cut, 0, lambda v: write(v).rjust(width), indent)


def _grad_name(x: Tensor) -> str:
    return f"grad_fn={x.grad_fn!r}" if x.grad_fn is not None else "requires_grad=True"


def tensor_repr(x: Tensor) -> str:
    """The text of ``repr(x)``.

    >>> import eager
    >>> eager.tensor([[1.0, 2.5], [3.0, -4.0]])
    tensor([[ 1.0000,  2.5000],
            [ 3.0000, -4.0000]])
    """
    notes = []
    if x.device.type == "meta":
        notes += ["...", "device='meta'", f"size={tuple(x.shape)}"]
    elif x.numel() == 0:
        notes += ["[]"]
        if x.ndim != 1:
            notes += [f"size={tuple(x.shape)}"]
    else:
        detached = x.detach() if x.requires_grad else x
        notes += [_elements(detached, len("tensor("))]
    if x.dtype.name not in (get_default_dtype().name, "int64", "bool") or (
        x.numel() == 0 and x.dtype is not get_default_dtype()
    ):
        notes += [f"dtype={x.dtype}"]
    if x.requires_grad:
        notes += [_grad_name(x)]
    return f"tensor({', '.join(notes)})"
