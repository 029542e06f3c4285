"""Tensors with automatic differentiation.

The names and their meaning are PyTorch's: `tensor`, ops, `autograd`, `nn`, `optim`.

>>> import eager
>>> x = eager.tensor([1.0, 2.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4.])
"""

# The order matters: the extension, then the hooks of the op registry, then everything that
# defines or uses ops.
# ruff: noqa: E402, F403

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eager import _bootstrap

_bootstrap.find_extension(__path__)

from eager import _C

_bootstrap.check_registry(_C)
_bootstrap.find_blas(_C)

from eager import op as _op


def _make_callable(definition: _op.Op) -> Any:
    made = _C.make_op_function(definition)
    return definition if made is None else made


_op._make_callable = _make_callable
_op._install = _C.install_interpreter
_op._execute = _C.execute

from eager import _tensor, autograd, dtypes, errors, ops
from eager import memory_format as _format
from eager._C import (
    Size,
    Tensor,
    as_tensor,
    device,
    empty,
    empty_cache,
    empty_like,
    from_dlpack,
    from_numpy,
    frombuffer,
    get_num_threads,
    memory_stats,
    reset_peak_memory_stats,
    set_num_threads,
    tensor,
)
from eager._repr import set_printoptions
from eager._tensor import is_floating_point, is_tensor, numel
from eager.autograd import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from eager.dtypes import *
from eager.memory_format import *
from eager.ops.functions import *

_tensor.install()

# Not in __all__: `import *` must not replace the builtins.
bool = dtypes.bool_
float = dtypes.float32
int = dtypes.int32

if TYPE_CHECKING:
    from eager import linalg, nn, optim, serialization, signal, special, utils
    from eager.serialization import load, load_file, save, save_file

__version__ = "0.1.0"

__all__ = [
    "Size",
    "Tensor",
    "as_tensor",
    "autograd",
    "device",
    "empty",
    "empty_cache",
    "empty_like",
    "enable_grad",
    "errors",
    "from_dlpack",
    "from_numpy",
    "frombuffer",
    "get_num_threads",
    "inference_mode",
    "is_floating_point",
    "is_grad_enabled",
    "is_tensor",
    "linalg",
    "load",
    "load_file",
    "memory_stats",
    "nn",
    "no_grad",
    "numel",
    "optim",
    "reset_peak_memory_stats",
    "save",
    "save_file",
    "serialization",
    "set_grad_enabled",
    "set_num_threads",
    "set_printoptions",
    "signal",
    "special",
    "tensor",
    "utils",
]
__all__ += dtypes.__all__
__all__ += _format.__all__
__all__ += ops.functions.__all__

# Imported when they are first used.
_LAZY_MODULES = ("linalg", "nn", "optim", "serialization", "signal", "special", "utils")
_LAZY_NAMES = dict.fromkeys(("load", "load_file", "save", "save_file"), "serialization")


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"eager.{name}")
    if name in _LAZY_NAMES:
        value = getattr(importlib.import_module(f"eager.{_LAZY_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'eager' has no attribute {name!r}")
