"""Scalar expressions: the small language op bodies are written in.

A body is called once with `vocabulary` and symbolic arguments and gives an `Expr`.  Backends
(C++ kernels, Numba, CUDA, C) print expressions from a table of templates, one per function name
in `FUNCTIONS`; those a backend has no template for are expanded by `eager.scalar_math`, which
defines exp, tanh and so on by polynomials in the rest of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

# name -> how the result's dtype follows from the arguments': "same" as the first non-bool
# argument, "bool", "select" (as the last two), "cast" (given), "bits" (same size, other class).
FUNCTIONS: dict[str, str] = {
    "add": "same", "sub": "same", "mul": "same", "div": "same", "floordiv": "same",
    "mod": "same", "neg": "same", "abs": "same", "fma": "same", "min": "same", "max": "same",
    "lt": "bool", "le": "bool", "gt": "bool", "ge": "bool", "eq": "bool", "ne": "bool",
    "and_": "same", "or_": "same", "xor": "same", "not_": "same", "shl": "same", "shr": "same",
    "where": "select", "cast": "cast", "bits": "bits",
    "sqrt": "same", "rsqrt": "same", "exp": "same", "expm1": "same", "log": "same",
    "log1p": "same", "sin": "same", "cos": "same", "tanh": "same", "erf": "same", "pow": "same",
    "floor": "same", "ceil": "same", "round": "same", "trunc": "same", "isnan": "bool",
}  # fmt: skip

FLOATS = ("float32", "float64")
_BITS = {"float32": "int32", "int32": "float32", "float64": "int64", "int64": "float64"}


class Expr:
    """A node of a scalar expression.  Immutable; equal expressions are one object.

    Attributes:
        fn: a name in `FUNCTIONS`, or "arg" or "const".
        args: operands.
        dtype: "float32", "float64", "int32", "int64" or "bool".
        value: the argument's name, or the constant's Python value.
    """

    __slots__ = ("args", "dtype", "fn", "value")
    fn: str
    args: tuple[Expr, ...]
    dtype: str
    value: Any
    _table: ClassVar[dict[Any, Expr]] = {}

    def __new__(cls, fn: str, args: tuple[Expr, ...], dtype: str, value: Any = None) -> Expr:
        """The one object with these fields."""
        # repr keeps -0.0, 0.0 and nan apart, and 1 from 1.0 and True
        key = (fn, args, dtype, repr(value))
        found = cls._table.get(key)
        if found is None:
            found = object.__new__(cls)
            found.fn, found.args, found.dtype, found.value = fn, args, dtype, value
            cls._table[key] = found
        return found

    def __repr__(self) -> str:
        if self.fn == "arg":
            return str(self.value)
        if self.fn == "const":
            return f"{self.value}:{self.dtype}"
        return f"{self.fn}({', '.join(map(repr, self.args))})"

    # Tensors and scalars answer to the same operators, so that one vjp line serves both.
    # fmt: off
    def __add__(self, o: Any) -> Expr: return vocabulary.add(self, o)
    def __radd__(self, o: Any) -> Expr: return vocabulary.add(o, self)
    def __sub__(self, o: Any) -> Expr: return vocabulary.sub(self, o)
    def __rsub__(self, o: Any) -> Expr: return vocabulary.sub(o, self)
    def __mul__(self, o: Any) -> Expr: return vocabulary.mul(self, o)
    def __rmul__(self, o: Any) -> Expr: return vocabulary.mul(o, self)
    def __truediv__(self, o: Any) -> Expr: return vocabulary.div(self, o)
    def __rtruediv__(self, o: Any) -> Expr: return vocabulary.div(o, self)
    def __neg__(self) -> Expr: return vocabulary.neg(self)
    def __lt__(self, o: Any) -> Expr: return vocabulary.lt(self, o)
    def __le__(self, o: Any) -> Expr: return vocabulary.le(self, o)
    def __gt__(self, o: Any) -> Expr: return vocabulary.gt(self, o)
    def __ge__(self, o: Any) -> Expr: return vocabulary.ge(self, o)
    def __and__(self, o: Any) -> Expr: return vocabulary.and_(self, o)
    def __or__(self, o: Any) -> Expr: return vocabulary.or_(self, o)
    def __xor__(self, o: Any) -> Expr: return vocabulary.xor(self, o)
    def __invert__(self) -> Expr: return vocabulary.not_(self)
    def __lshift__(self, o: Any) -> Expr: return vocabulary.shl(self, o)
    def __rshift__(self, o: Any) -> Expr: return vocabulary.shr(self, o)
    # fmt: on

    def __bool__(self) -> bool:
        raise TypeError("a scalar expression has no truth value: use k.where(condition, a, b)")


class Vocabulary:
    """The functions of `FUNCTIONS` as methods: ``k.exp(x)``, ``k.where(c, a, b)``.

    Python numbers among the arguments become constants of the other arguments' dtype, so a bare
    1.0 never turns a float32 computation into a double one.
    """

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        if name not in FUNCTIONS:
            raise AttributeError(f"the scalar vocabulary has no function {name}")

        def call(*args: Any) -> Expr:
            return self.call(name, *args)

        self.__dict__[name] = call
        return call

    def call(self, name: str, *args: Any) -> Expr:
        """The expression of function `name`; raises TypeError if the dtypes do not fit."""
        rule = FUNCTIONS[name]
        typed = args[1:] if rule == "select" else args
        like = next((a for a in typed if isinstance(a, Expr)), None)
        if like is None:
            if rule != "select":
                raise TypeError(f"{name}: at least one argument must be an expression")
            raise TypeError("where: give a constant a dtype with k.const(value, like)")
        xs = tuple(a if isinstance(a, Expr) else self.const(a, like) for a in args)
        dtypes = {x.dtype for x in (xs[1:] if rule == "select" else xs)}
        if len(dtypes) > 1:
            raise TypeError(f"{name}: arguments have dtypes {sorted(dtypes)}; cast them")
        if rule == "select" and xs[0].dtype != "bool":
            raise TypeError(f"where: the condition has dtype {xs[0].dtype}, expected bool")
        if rule == "bits":
            return Expr(name, xs, _BITS[like.dtype])
        return Expr(name, xs, "bool" if rule == "bool" else like.dtype)

    def const(self, value: Any, like: Expr | str) -> Expr:
        """A constant of `like`'s dtype."""
        dtype = like.dtype if isinstance(like, Expr) else like
        if dtype in FLOATS:
            value = float(value)
        elif dtype == "bool":
            value = bool(value)
        elif value != int(value):
            raise TypeError(f"the constant {value} is not an integer, but its dtype is {dtype}")
        else:
            value = int(value)
        return Expr("const", (), dtype, value)

    def cast(self, x: Expr, dtype: str) -> Expr:
        """`x` converted to `dtype`; to bool: x != 0."""
        return x if x.dtype == dtype else Expr("cast", (x,), dtype)

    def arg(self, name: str, dtype: str) -> Expr:
        """A free variable."""
        return Expr("arg", (), dtype, name)


vocabulary = Vocabulary()
