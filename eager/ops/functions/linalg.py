"""Products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import reduce as r
from eager.ops import shape as s
from eager.ops.functions._common import Number, public
from eager.ops.functions.shape import diagonal
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "addmm", "adjoint", "baddbmm", "bmm", "dot", "einsum", "ger", "matmul", "mm", "mv", "outer",
]  # fmt: skip


@public("matmul")
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product; batch dimensions broadcast, vectors are rows or columns as needed."""
    return input.matmul(other)


def _expect(op: str, ndims: tuple[int, ...], *tensors: Tensor) -> None:
    given = tuple(x.ndim for x in tensors)
    if given != ndims:
        raise helpful(
            ShapeError, op, "wrong numbers of dimensions", f"tensors of {ndims} dimensions",
            ", ".join(f"shape {tuple(x.shape)}" for x in tensors), "matmul, which broadcasts",
        )  # fmt: skip


@composite(ref=np.matmul, onnx="MatMul",
           samples=calls(lambda rng: [(array(rng, (3, 4)), array(rng, (4, 2)))]))  # fmt: skip
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    _expect("mm", (2, 2), input, mat2)
    return input.matmul(mat2)


@composite(ref=np.matmul, onnx="MatMul",
           samples=calls(lambda rng: [(array(rng, (2, 3, 4)), array(rng, (2, 4, 2)))]))  # fmt: skip
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices of one size."""
    _expect("bmm", (3, 3), input, mat2)
    if input.shape[0] != mat2.shape[0]:
        raise helpful(
            ShapeError, "bmm", "the batch sizes differ", f"a batch of {input.shape[0]}",
            str(mat2.shape[0]), "matmul, which broadcasts",
        )  # fmt: skip
    return input.matmul(mat2)


@composite(ref=np.matmul, onnx="MatMul",
           samples=calls(lambda rng: [(array(rng, (3, 4)), array(rng, (4,)))]))  # fmt: skip
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    _expect("mv", (2, 1), input, vec)
    return input.matmul(vec)


@composite(ref=np.dot, onnx="MatMul", samples=calls(lambda rng: [
    (array(rng, (4,)), array(rng, (4,))), (array(rng, (0,)), array(rng, (0,)))]))  # fmt: skip
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The inner product of two vectors."""
    _expect("dot", (1, 1), input, tensor)
    return input.matmul(tensor)


@composite(ref=np.outer, onnx=None,
           samples=calls(lambda rng: [(array(rng, (3,)), array(rng, (4,)))]))  # fmt: skip
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of an element of one vector and an element of the other."""
    _expect("outer", (1, 1), input, vec2)
    result: Tensor = a.mul(input.unsqueeze(1), vec2)
    return result


def _combined(input: Tensor, product: Tensor, beta: Number, alpha: Number) -> Tensor:
    # beta 0 ignores the input, NaN included
    scaled = product if alpha == 1 else a.mul(product, alpha)
    if beta == 0:
        return scaled
    result: Tensor = a.add(input if beta == 1 else a.mul(input, beta), scaled)
    return result


def _add_product_ref(x: Any, y: Any, z: Any, beta: float = 1, alpha: float = 1) -> Any:
    return beta * x + alpha * np.matmul(y, z)


@composite(
    ref=_add_product_ref, onnx="Gemm",
    samples=calls(lambda rng: [
        (array(rng, (2,)), array(rng, (3, 4)), array(rng, (4, 2))),
        (array(rng, (3, 2)), array(rng, (3, 4)), array(rng, (4, 2)), {"beta": 0.5, "alpha": 2.0}),
    ]),
)  # fmt: skip
def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * input + alpha * mat1 @ mat2."""
    return _combined(input, mm(mat1, mat2), beta, alpha)


@composite(
    ref=_add_product_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 2)), array(rng, (2, 3, 4)), array(rng, (2, 4, 2))),
        (array(rng, (2, 3, 2)), array(rng, (2, 3, 4)), array(rng, (2, 4, 2)), {"beta": 0.5}),
    ]),
)  # fmt: skip
def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * input + alpha * batch1 @ batch2."""
    return _combined(input, bmm(batch1, batch2), beta, alpha)


def _einsum_error(problem: str, given: str) -> eager.errors.EagerError:
    return helpful(
        ArgumentError, "einsum", problem, 'letters for every dimension, such as "ij,jk->ik"', given
    )


def _diagonals(x: Tensor, labels: str) -> tuple[Tensor, str]:
    """Repeated labels of one operand become one: its diagonal."""
    for label in labels:
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = diagonal(x, 0, first, second)
            rest = [n for d, n in enumerate(labels) if d not in (first, second)]
            labels = "".join(rest) + label
    return x, labels


def _aligned(x: Tensor, labels: str, order: str) -> Tensor:
    """`x` with its dimensions in `order`; size 1 where it has none."""
    x = x.permute([labels.index(n) for n in order if n in labels])
    sizes = iter(x.shape)
    return x.reshape([next(sizes) if n in labels else 1 for n in order])


def _pair(x: Tensor, lx: str, y: Tensor, ly: str, keep: set[str]) -> tuple[Tensor, str]:
    """The product of two operands, summed over labels that nothing else needs, as one matmul."""
    batch = [n for n in lx if n in ly and n in keep]
    summed = [n for n in lx if n in ly and n not in keep]
    left = [n for n in lx if n not in ly]
    right = [n for n in ly if n not in lx]
    size = {**dict(zip(lx, x.shape, strict=True)), **dict(zip(ly, y.shape, strict=True))}

    def count(labels: list[str]) -> int:
        n = 1
        for label in labels:
            n *= size[label]
        return n

    lead = [size[n] for n in batch]
    px = x.permute([lx.index(n) for n in [*batch, *left, *summed]])
    py = y.permute([ly.index(n) for n in [*batch, *summed, *right]])
    product = px.reshape([*lead, count(left), count(summed)]).matmul(
        py.reshape([*lead, count(summed), count(right)])
    )
    labels = [*batch, *left, *right]
    return product.reshape([size[n] for n in labels]), "".join(labels)


@composite(
    ref=lambda equation, *xs: np.einsum(equation, *xs), onnx="Einsum",
    samples=calls(lambda rng: [
        ("ij,jk->ik", array(rng, (3, 4)), array(rng, (4, 2))),
        ("bij,bkj->bik", array(rng, (2, 3, 4)), array(rng, (2, 5, 4))),
        ("ij->ji", array(rng, (3, 4))),
        ("ij->", array(rng, (3, 4))),
        ("ii->i", array(rng, (3, 3))),
        ("i,j,ij", array(rng, (3,)), array(rng, (4,)), array(rng, (3, 4))),
        ("ij,jk,kl->il", array(rng, (2, 3)), array(rng, (3, 4)), array(rng, (4, 2))),
    ]),
)  # fmt: skip
def einsum(equation: str, *operands: Any) -> Tensor:
    """Sums of products over labelled dimensions.  Ellipses are not supported.

    Operands are multiplied from left to right, two at a time.
    """
    tensors: Sequence[Tensor] = operands
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        tensors = operands[0]
    terms, arrow, output = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if "." in equation:
        raise _einsum_error("ellipses are not supported", equation)
    if len(inputs) != len(tensors):
        raise _einsum_error(f"{len(inputs)} terms for {len(tensors)} tensors", equation)
    for labels, x in zip(inputs, tensors, strict=True):
        if len(labels) != x.ndim or (not labels.isalpha() * bool(labels) and x.ndim):
            raise _einsum_error(f"a term does not fit shape {tuple(x.shape)}", labels)
    letters = "".join(inputs)
    if not arrow:
        output = "".join(sorted(n for n in set(letters) if letters.count(n) == 1))
    if len(set(output)) != len(output) or not set(output) <= set(letters):
        raise _einsum_error("the result's labels must be distinct labels of the terms", equation)
    pending = [_diagonals(x, labels) for x, labels in zip(tensors, inputs, strict=True)]
    sizes: dict[str, int] = {}
    for x, labels in pending:
        for label, n in zip(labels, x.shape, strict=True):
            if sizes.setdefault(label, n) != n:
                raise _einsum_error(f"label {label} has sizes {sizes[label]} and {n}", equation)
    x, labels = pending[0]
    for i, (y, other) in enumerate(pending[1:], start=2):
        keep = set(output).union(*(later for _, later in pending[i:]))
        x, labels = _pair(x, labels, y, other, keep)
    dims = tuple(d for d, n in enumerate(labels) if n not in output)
    if dims:
        x = r.sum(x, dims, False)
        labels = "".join(n for n in labels if n in output)
    return _aligned(x, labels, output)


def ger(input: Tensor, vec2: Tensor) -> Tensor:
    """outer."""
    return outer(input, vec2)


@composite(
    ref=lambda x: np.swapaxes(x, -1, -2), onnx="Transpose",
    samples=calls(lambda rng: [(array(rng, (3, 4)),), (array(rng, (2, 3, 4)),)]),
)  # fmt: skip
def adjoint(input: Tensor) -> Tensor:
    """The last two dimensions swapped."""
    n = input.ndim
    if n < 2:
        raise helpful(
            ShapeError, "adjoint", "the tensor is not a matrix", "2 or more dimensions",
            f"shape {tuple(input.shape)}",
        )  # fmt: skip
    result: Tensor = s.permute(input, (*range(n - 2), n - 1, n - 2))
    return result
