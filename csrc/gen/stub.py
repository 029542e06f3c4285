"""Writes the part of eager/_C.pyi that lists the methods which eager.ops adds to Tensor.

python csrc/gen/stub.py            writes the part
python csrc/gen/stub.py --check    fails if it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import eager

STUB = Path(__file__).resolve().parents[2] / "eager" / "_C.pyi"
BEGIN = "    # methods that eager.ops adds, written by csrc/gen/stub.py\n"
END = "    # end of the written part\n"
WIDTH = 100

# What annotations may be made of; anything else becomes Any.  Inside the class, float, int and
# bool are methods.
NAMES = {
    "Any": "Any", "Dims": "_Dims", "None": "None", "Number": "_float", "Sequence": "Sequence",
    "Tensor": "Tensor", "bool": "_bool", "dtype": "_dtype", "float": "_float", "int": "_int",
    "list": "list", "str": "str", "tuple": "tuple",
}  # fmt: skip


def annotation(given: Any, otherwise: str) -> str:
    """An annotation as the stub spells it."""
    if given is inspect.Parameter.empty:
        return otherwise
    text = given if isinstance(given, str) else getattr(given, "__name__", "Any")
    text = text.replace("_C.", "")
    if any(name not in NAMES for name in re.findall(r"[\w.]+", text)):
        return "Any"
    return re.sub(r"[\w.]+", lambda m: NAMES[m[0]], text)


def op_parameters(inputs: int) -> list[str]:
    """Those of a method that is an op itself."""
    return ["self", "other: _Operand"] if inputs == 2 else ["self"] * (inputs == 1)


def parameters(name: str, method: Any) -> list[str]:
    """The parameters of one method."""
    if isinstance(method, eager._C.OpFunction):
        return op_parameters(len(method.op.inputs)) or ["self", "*args: Any"]
    given = list(inspect.signature(method).parameters.values())[1:]
    if [p.kind for p in given] == [inspect.Parameter.VAR_POSITIONAL] and name.endswith("_"):
        definition = eager.op.registry.get(name[:-1])
        if definition is not None and not definition.attrs:
            return op_parameters(len(definition.inputs)) or ["self", "*args: Any"]
    parts = ["self"]
    for p in given:
        if p.kind is p.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = "" if p.default is p.empty else " = ..."
        parts.append(f"{stars}{p.name}: {annotation(p.annotation, 'Any')}{default}")
    return parts


def method_stub(name: str, method: Any) -> str:
    """The lines of one method."""
    is_op = isinstance(method, eager._C.OpFunction)
    given = inspect.Signature.empty if is_op else inspect.signature(method).return_annotation
    result = f" -> {annotation(given, 'Tensor')}: ..."
    parts = parameters(name, method)
    line = f"    def {name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        return line + "\n"
    inner = f"        {', '.join(parts)}"
    if len(inner) <= WIDTH:
        return f"    def {name}(\n{inner}\n    ){result}\n"
    return "".join([f"    def {name}(\n", *(f"        {p},\n" for p in parts), f"    ){result}\n"])


def written_part() -> str:
    """The methods in alphabetical order."""
    by_hand = STUB.read_text().partition(BEGIN)[0]
    return "".join(
        method_stub(name, method)
        for name, method in sorted(vars(eager.Tensor).items())
        if (inspect.isfunction(method) or isinstance(method, eager._C.OpFunction))
        and not name.startswith("__")
        and f"def {name}(" not in by_hand
    )


def main() -> int:
    """Writes or checks."""
    head, _, rest = STUB.read_text().partition(BEGIN)
    before, _, tail = rest.partition(END)
    after = written_part()
    if "--check" not in sys.argv:
        STUB.write_text(head + BEGIN + after + END + tail)
    elif before != after:
        print(f"{STUB} is out of date: run python csrc/gen/stub.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
