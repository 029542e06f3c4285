"""C++ spelling of the scalar vocabulary (the subset that is also C, but for the prelude's
overloads).  Used for the eager kernels; other C-like targets start from `TEMPLATES`.

What the vocabulary means, for every backend:

- integer ``add``, ``sub``, ``mul``, ``neg`` and ``shl`` wrap around; ``shr`` is arithmetic;
- integer ``div`` truncates; ``floordiv`` and ``mod`` follow Python's signs; all three give 0 when
  the divisor is 0, as NumPy does, and wrap around for the least integer over -1;
- ``min(a, b)`` is ``a if a < b else b``: the second argument if either is NaN;
- ``round`` goes to even at ties; comparisons with NaN are false, ``ne`` true;
- ``and_``, ``or_``, ``xor``, ``not_`` are logical on bool and bitwise on integers;
- ``cast`` to bool is ``!= 0``; from float to integer it truncates.
"""

from __future__ import annotations

import ctypes
import math

from jit.codegen.printer import Backend, Template

TYPES = {
    "float32": "float",
    "float64": "double",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "bool",
}


def _to_float32(value: float) -> float:
    """Rounded to float32; what is too large becomes infinite."""
    return float(ctypes.c_float(value).value)


def constant(value: float, dtype: str) -> str:
    """A literal of exactly this value and type."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype in ("int32", "int64"):
        width = 32 if dtype == "int32" else 64
        if not -(2 ** (width - 1)) <= value < 2 ** (width - 1):
            raise ValueError(f"{value} does not fit {dtype}")
        if value == -(2 ** (width - 1)):  # the literal itself would not fit
            return f"(-INT{width}_C({int(-value - 1)}) - 1)"
        text = f"INT{width}_C({abs(int(value))})"
        return f"(-{text})" if value < 0 else text
    suffix = "f" if dtype == "float32" else ""
    if dtype == "float32":
        value = _to_float32(value)
    if math.isnan(value):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(value):
        return f"{'(-' if value < 0 else '('}__builtin_inf{suffix}())"
    # shortest decimal digits that read back as the same value
    text = repr(value)
    if dtype == "float32":
        digits = (f"{value:.{d}g}" for d in range(1, 10))
        text = next(t for t in digits if _to_float32(float(t)) == value)
    text = text if any(c in text for c in ".e") else text + ".0"
    return f"(-{text[1:]}{suffix})" if text.startswith("-") else text + suffix


def _libm() -> dict[str, Template]:
    """Functions of <math.h> as built-ins, which need no header and are vectorised if possible."""
    names = {"sqrt": "sqrt", "pow": "pow", "abs": "fabs", "floor": "floor", "ceil": "ceil",
             "trunc": "trunc", "round": "rint"}  # fmt: skip
    out: dict[str, Template] = {}
    for fn, c in names.items():
        operands = "{0}, {1}" if fn == "pow" else "{0}"
        out[f"{fn}:float32"] = f"__builtin_{c}f({operands})"
        out[f"{fn}:float64"] = f"__builtin_{c}({operands})"
    for fn in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf"):
        out[f"{fn}:float64"] = f"__builtin_{fn}({{0}})"
    return out


def _integers() -> dict[str, Template]:
    out: dict[str, Template] = {}
    for dtype, t in (("int32", "int32_t"), ("int64", "int64_t")):
        for fn, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
            # unsigned arithmetic wraps; signed overflow is undefined
            out[f"{fn}:{dtype}"] = f"({t})((u{t}){{0}} {sign} (u{t}){{1}})"
        out[f"neg:{dtype}"] = f"({t})(0 - (u{t}){{0}})"
        out[f"abs:{dtype}"] = f"({{0}} < 0 ? ({t})(0 - (u{t}){{0}}) : {{0}})"
        out[f"fma:{dtype}"] = f"({t})((u{t}){{0}} * (u{t}){{1}} + (u{t}){{2}})"
        out[f"div:{dtype}"] = "eager_div({0}, {1})"
        out[f"floordiv:{dtype}"] = "eager_floordiv({0}, {1})"
        out[f"mod:{dtype}"] = "eager_mod({0}, {1})"
        out[f"pow:{dtype}"] = "eager_pow({0}, {1})"
        out[f"shl:{dtype}"] = f"({t})((u{t}){{0}} << {{1}})"
        out[f"shr:{dtype}"] = "{0} >> {1}"
        out[f"not_:{dtype}"] = "~{0}"
        out[f"isnan:{dtype}"] = "((void){0}, false)"
        for fn in ("floor", "ceil", "round", "trunc"):
            out[f"{fn}:{dtype}"] = "{0}"
    return out


TEMPLATES: dict[str, Template] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "fma": "eager_fma({0}, {1}, {2})",
    "min": "({0} < {1} ? {0} : {1})",
    "max": "({0} > {1} ? {0} : {1})",
    "floordiv": "eager_floordiv({0}, {1})",
    "mod": "eager_mod({0}, {1})",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and_": "{0} & {1}",
    "or_": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "not_:bool": "!{0}",
    "where": "({0} ? {1} : {2})",
    "cast": "({type}){0}",
    "cast:float32:bool": "{0} != 0.0f",
    "cast:float64:bool": "{0} != 0.0",
    "cast:int32:bool": "{0} != 0",
    "cast:int64:bool": "{0} != 0",
    "bits": "eager_bits({0})",
    "isnan": "{0} != {0}",
    **_libm(),
    **_integers(),
}

CPP = Backend(TYPES, TEMPLATES, constant, "const {type} {name} = {value};")

# Put once before printed code, inside the namespace it lives in.
PRELUDE = """\
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float eager_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double eager_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else  // a call into libm for each element would cost far more than the second rounding
inline float eager_fma(float a, float b, float c) { return a * b + c; }
inline double eager_fma(double a, double b, double c) { return a * b + c; }
#endif

template <class To, class From>
inline To eager_copy_bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y, "same size");
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
inline int32_t eager_bits(float x) { return eager_copy_bits<int32_t>(x); }
inline float eager_bits(int32_t x) { return eager_copy_bits<float>(x); }
inline int64_t eager_bits(double x) { return eager_copy_bits<int64_t>(x); }
inline double eager_bits(int64_t x) { return eager_copy_bits<double>(x); }

// Division by 0 gives 0; by -1 it is negation, which wraps around where a division would trap.
inline int64_t eager_negate(int64_t a) { return (int64_t)(0 - (uint64_t)a); }
inline int64_t eager_div(int64_t a, int64_t b) {
  return b == 0 ? 0 : b == -1 ? eager_negate(a) : a / b;
}
inline int64_t eager_mod(int64_t a, int64_t b) {
  if (b == 0 || b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
inline int64_t eager_floordiv(int64_t a, int64_t b) {
  if (b == 0 || b == -1) return eager_div(a, b);
  const int64_t q = a / b;
  return q * b != a && (a < 0) != (b < 0) ? q - 1 : q;
}
// From the truncating remainder r = fmod(a, b): Python's remainder, and the floor quotient that
// agrees with it.
template <class T>
inline T eager_floor_mod(T b, T r) {
  return r != 0 ? ((r < 0) != (b < 0) ? r + b : r) : __builtin_copysign(T(0), b);
}
inline float eager_mod(float a, float b) {
  return eager_floor_mod(b, __builtin_fmodf(a, b));
}
inline double eager_mod(double a, double b) {
  return eager_floor_mod(b, __builtin_fmod(a, b));
}
template <class T>
inline T eager_floor_quotient(T a, T b, T r) {
  if (b == 0) return a / b;
  T q = (a - r) / b;
  if (r != 0 && (r < 0) != (b < 0)) q -= 1;
  if (q == 0) return __builtin_copysign(T(0), a / b);
  const T f = __builtin_floor(q);
  return q - f > T(0.5) ? f + 1 : f;
}
inline float eager_floordiv(float a, float b) {
  return eager_floor_quotient(a, b, __builtin_fmodf(a, b));
}
inline double eager_floordiv(double a, double b) {
  return eager_floor_quotient(a, b, __builtin_fmod(a, b));
}
// By squaring.  A negative exponent gives 0, but for the bases 1 and -1.
inline int64_t eager_pow(int64_t a, int64_t n) {
  if (n < 0) return a == 1 ? 1 : a == -1 ? (n % 2 ? -1 : 1) : 0;
  uint64_t result = 1, base = (uint64_t)a;
  for (; n > 0; n >>= 1, base *= base)
    if (n & 1) result *= base;
  return (int64_t)result;
}
"""
