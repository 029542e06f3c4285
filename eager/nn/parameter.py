"""Tensors that a `Module` registers when they are assigned to it as attributes."""

from __future__ import annotations

import eager
from eager import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: assigned to a module's attribute it joins `parameters()`.

    Shares the memory of `data`.  Shape and dtype are those of `data`; `requires_grad=True` needs
    a floating dtype.
    """

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Parameter:
        """Without `data`, an empty tensor."""
        if data is None:
            data = eager.empty(0)
        return Tensor._make_subclass(cls, data, requires_grad)

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        pass

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class Buffer(Tensor):
    """A tensor that belongs to a module but is not trained: running statistics, masks.

    Shares the memory of `data`.  `persistent` buffers are part of the module's `state_dict`.
    """

    persistent: bool

    def __new__(cls, data: Tensor | None = None, *, persistent: bool = True) -> Buffer:
        """Without `data`, an empty tensor."""
        if data is None:
            data = eager.empty(0)
        buffer = Tensor._make_subclass(cls, data, data.requires_grad)
        buffer.persistent = persistent
        return buffer

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True) -> None:
        pass

    def __repr__(self) -> str:
        return f"Buffer containing:\n{super().__repr__()}"
