"""The op definitions, and (with the extension) the public functions and methods made of them.

The modules beside this one define primitives: what has a kernel.  `eager.ops.functions` holds the
PyTorch-shaped calls.
"""

from __future__ import annotations

from eager import op
from eager.ops import (
    arithmetic,
    collectives,
    comparison,
    contract,
    create,
    index,
    random_ops,
    reduce,
    shape,
    sorting,
    trigonometry,
    unary,
    update,
)

__all__ = [
    "arithmetic", "collectives", "comparison", "contract", "create", "index", "random_ops",
    "reduce", "shape", "sorting", "trigonometry", "unary", "update",
]  # fmt: skip

if op._make_callable is not None:  # not while the extension is being generated
    from eager.ops import functions, methods

    __all__ += ["functions", "methods"]
