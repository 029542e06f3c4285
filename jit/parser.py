"""Reads the printed form of graphs (its grammar stands in `jit.graph`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import eager.op
from eager.op import Op
from jit.graph import LONG, Graph, Node, Number, Shape, Value, numpy_dtype, scalar

_TOKEN = re.compile(
    r"(?:\s|\#[^\n]*)*(?:(%\d+)|([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|inf|nan)(?!\w))"
    r"|([A-Za-z_]\w*)|(.))"
)


class _Parser:
    def __init__(self, text: str, ops: Mapping[str, Op]) -> None:
        self.text, self.ops = text, ops
        self.tokens: list[tuple[str, int]] = []
        end = 0
        for m in _TOKEN.finditer(text):
            self.tokens.append((m.group(m.lastindex or 0), m.end()))
            end = m.end()
        if text[end:].split("#")[0].strip():
            raise self.error("unexpected text", end)
        self.tokens.append(("", len(text)))
        self.at = 0
        self.values: dict[str, Value] = {}

    def error(self, problem: str, end: int | None = None) -> ValueError:
        end = self.tokens[self.at][1] if end is None else end
        line = self.text.count("\n", 0, end) + 1
        return ValueError(f"graph text, line {line}: {problem}")

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if (expected is not None and token != expected) or not token:
            raise self.error(f"expected {expected or 'more'!r}, found {token or 'the end'!r}")
        self.at += 1
        return token

    def list(self, item: Callable[[], Any], *ends: str) -> list[Any]:
        """Items separated by commas up to (not including) one of `ends`."""
        items: list[Any] = []
        while self.peek() not in ends:
            if items:
                self.take(",")
            items.append(item())
        return items

    def number(self) -> Number:
        token = self.take()
        if token in ("true", "false"):
            return token == "true"
        try:
            return int(token)
        except ValueError:
            pass
        try:
            return float(token)
        except ValueError:
            raise self.error(f"expected a number, found {token!r}") from None

    def integer(self) -> int:
        value = self.number()
        if type(value) is not int:
            raise self.error(f"expected an integer, found {value!r}")
        return value

    def dtype(self) -> str:
        token = self.take()
        if token not in LONG:
            raise self.error(f"unknown dtype {token!r}; expected one of {', '.join(LONG)}")
        return LONG[token]

    def type(self) -> tuple[Shape, str]:
        dtype = self.dtype()
        self.take("[")
        shape = tuple(self.list(self.integer, "]"))
        self.take("]")
        return shape, dtype

    def declared(self) -> tuple[str, tuple[Shape, str]]:
        name = self.take()
        if not name.startswith("%") or name in self.values:
            raise self.error(f"expected a new name, found {name!r}")
        self.take(":")
        return name, self.type()

    def define(self, name: str, kind: tuple[Shape, str]) -> Value:
        value = self.values[name] = Value(int(name[1:]), *kind)
        return value

    def operand(self) -> Value:
        token = self.peek()
        if token.startswith("%"):
            if token not in self.values:
                raise self.error(f"{token} is used before its definition")
            return self.values[self.take()]
        if token in LONG:
            shape, dtype = self.type()
            self.take("(")
            numbers = self.list(self.number, ")")
            self.take(")")
            if len(numbers) != math.prod(shape):
                raise self.error(f"{len(numbers)} numbers for a constant of shape {shape}")
            return Value(-1, shape, dtype, np.array(numbers, numpy_dtype(dtype)).reshape(shape))
        value = scalar(self.number())
        if self.peek() == ":":
            self.take()
            value.dtype = self.dtype()
        return value

    def attr(self) -> tuple[str, Any]:
        name = self.take()
        self.take("=")
        if self.peek() in LONG:
            return name, self.dtype()
        if self.peek() == "[":
            self.take()
            values = tuple(self.list(self.integer, "]"))
            self.take("]")
            return name, values
        return name, self.number()

    def statement(self) -> Node:
        declared = [self.declared()]
        while self.peek() == ",":
            self.take()
            declared.append(self.declared())
        self.take("=")
        name = self.take()
        if name not in self.ops:
            raise self.error(f"no op is named {name!r}")
        self.take("(")
        inputs = self.list(self.operand, ";", ")")
        attrs: dict[str, Any] = {}
        if self.peek() == ";":
            self.take()
            attrs = dict(self.list(self.attr, ")"))
        self.take(")")
        return Node(self.ops[name], inputs, attrs, [self.define(*d) for d in declared])

    def graph(self) -> Graph:
        self.take("graph")
        self.take("(")
        inputs = [self.define(*d) for d in self.list(self.declared, ")")]
        self.take(")")
        self.take("{")
        nodes: list[Node] = []
        while self.peek() != "return":
            nodes.append(self.statement())
        self.take("return")
        outputs = self.list(self.operand, "}")
        self.take("}")
        if self.peek():
            raise self.error(f"expected the end, found {self.peek()!r}")
        return Graph(inputs, nodes, outputs)


def parse(text: str, ops: Mapping[str, Op] | None = None) -> Graph:
    """Reads the printed form.  `ops`: by default the registry.

    Raises ValueError, naming the line, when the text is not a graph.
    """
    return _Parser(text, eager.op.registry if ops is None else ops).graph()
