"""Element types, their aliases under PyTorch's names, and their numeric limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from eager import _C
from eager._C import (
    bfloat16,
    dtype,
    float16,
    float32,
    float64,
    get_default_dtype,
    int8,
    int16,
    int32,
    int64,
    set_default_dtype,
    uint8,
)
from eager.errors import DTypeError, helpful

__all__ = [
    "bfloat16",
    "double",
    "dtype",
    "finfo",
    "float16",
    "float32",
    "float64",
    "get_default_dtype",
    "half",
    "iinfo",
    "int8",
    "int16",
    "int32",
    "int64",
    "long",
    "set_default_dtype",
    "short",
    "uint8",
]

DType: TypeAlias = dtype

bool_ = _C.bool
double = float64
half = float16
long = int64
short = int16

# name: (bits of the significand behind the point, least and greatest exponent of normal numbers)
_FLOATS = {
    "float16": (10, -14, 15),
    "bfloat16": (7, -126, 127),
    "float32": (23, -126, 127),
    "float64": (52, -1022, 1023),
}


@dataclass(frozen=True)
class finfo:
    """Limits of a floating dtype, by default the default one.

    >>> import eager
    >>> eager.finfo(eager.float32).eps
    1.1920928955078125e-07

    Raises:
        DTypeError: `type` is not a floating dtype.
    """

    dtype: str
    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    resolution: float

    def __init__(self, type: DType | None = None) -> None:
        given = get_default_dtype() if type is None else type
        if given.name not in _FLOATS:
            raise helpful(DTypeError, "finfo", "not a floating dtype", "a floating dtype",
                          given.name, "iinfo")  # fmt: skip
        digits, least, greatest = _FLOATS[given.name]
        largest = (2.0 - 2.0**-digits) * 2.0**greatest
        fields = {
            "dtype": given.name, "bits": 8 * given.itemsize, "eps": 2.0**-digits,
            "max": largest, "min": -largest, "smallest_normal": 2.0**least,
            "resolution": 10.0 ** -int(digits * 0.30103),
        }  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return self.smallest_normal


@dataclass(frozen=True)
class iinfo:
    """Limits of an integer dtype.

    >>> import eager
    >>> eager.iinfo(eager.int8).max
    127

    Raises:
        DTypeError: `type` is not an integer dtype.
    """

    dtype: str
    bits: int
    max: int
    min: int

    def __init__(self, type: DType) -> None:
        if type.is_floating_point or type is bool_:
            raise helpful(DTypeError, "iinfo", "not an integer dtype", "an integer dtype",
                          type.name, "finfo")  # fmt: skip
        bits = 8 * type.itemsize
        unsigned = type is uint8
        fields = {
            "dtype": type.name, "bits": bits,
            "max": 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1,
            "min": 0 if unsigned else -(2 ** (bits - 1)),
        }  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)
