"""One operator being evaluated: its attributes and inputs, as their readers want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.messages import Attribute, Node
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size
from lstm_cli.formats.onnx.tensors import quoted, to_array
from lstm_cli.formats.onnx.values import Anything, Constant

FAR = 1 << 60


@dataclass(frozen=True)
class Call:
    """An operator and the values it is given; None stands for an input left out."""

    node: Node
    inputs: tuple[Anything | None, ...]
    attributes: dict[str, Attribute]
    opset: int
    path: Path

    @property
    def op(self) -> str:
        """Its type."""
        return self.node.op_type

    @property
    def where(self) -> str:
        """What it is called in errors."""
        names = [name for name in (self.node.name, *self.node.outputs) if name]
        return f"node {quoted(names[0])} ({quoted(self.op)})" if names else f"a {quoted(self.op)}"

    def integer(self, name: str, default: int) -> int:
        """An attribute of one number."""
        found = self.attributes.get(name)
        return default if found is None or found.i is None else found.i

    def number(self, name: str, default: float | None = None) -> float | None:
        """An attribute of one number that need not be whole."""
        found = self.attributes.get(name)
        return default if found is None or found.f is None else found.f

    def integers(self, name: str) -> list[int] | None:
        """An attribute of several numbers; None: not given."""
        found = self.attributes.get(name)
        return None if found is None else list(found.ints)

    def numbers(self, name: str) -> list[float]:
        """An attribute of several numbers that need not be whole."""
        found = self.attributes.get(name)
        return [] if found is None else list(found.floats)

    def text(self, name: str, default: str = "") -> str:
        """An attribute of letters."""
        found = self.attributes.get(name)
        return default if found is None or found.s is None else _text(found.s)

    def texts(self, name: str) -> list[str]:
        """An attribute of several texts."""
        found = self.attributes.get(name)
        return [] if found is None else [_text(item) for item in found.strings]

    def tensor(self, name: str) -> Array | None:
        """An attribute that is a tensor."""
        found = self.attributes.get(name)
        return None if found is None or found.t is None else to_array(found.t, self.path)

    def given(self, k: int) -> Anything | None:
        """Input `k`; None: left out."""
        return self.inputs[k] if k < len(self.inputs) else None

    def constant(self, k: int) -> Constant:
        """Input `k`, which must not depend on the graph's inputs.

        Raises
        ------
        ValueError
            It does, or is left out.
        """
        found = self.given(k)
        if not isinstance(found, Constant):
            raise ValueError(f"input {k} is not constant")
        return found

    def whole_numbers(self, k: int) -> list[Any] | None:
        """Input `k` as a list of sizes; None: left out."""
        if self.given(k) is None:
            return None
        array = self.constant(k).array.reshape(-1)
        return [n if isinstance(n, Size) else int(n) for n in array]

    def axis(self, rank: int, default: int | None = None) -> int:
        """The attribute ``axis``, counted from the front.

        Raises
        ------
        ValueError
            There is no such axis.
        """
        axis = self.integer("axis", FAR if default is None else default)
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} of {rank}")
        return axis % rank

    def axes(self, k: int) -> list[int] | None:
        """Axes from the attribute, or from input `k` in newer operators."""
        found = self.integers("axes")
        return self.whole_numbers(k) if found is None else found

    def slices(self, rank: int) -> list[tuple[int, Any, Any, int]]:
        """Axis, start, stop and step of every axis that is cut."""
        if "starts" in self.attributes:
            starts, stops = self.integers("starts"), self.integers("ends")
            axes, steps = self.integers("axes"), None
        else:
            starts, stops = self.whole_numbers(1), self.whole_numbers(2)
            axes, steps = self.whole_numbers(3), self.whole_numbers(4)
        if starts is None or stops is None:
            raise ValueError("a slice without limits")
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        if not all(-rank <= axis < rank for axis in axes):
            raise ValueError(f"axes {axes} of {rank}")
        axes = [axis % rank for axis in axes]
        return list(zip(axes, starts, stops, steps, strict=True))

    def split_points(self, size: int) -> list[int]:
        """Where an axis of `size` is cut, one part for each output.

        Raises
        ------
        ValueError
            The parts are not as long as the axis.
        """
        lengths = self.integers("split") or self.whole_numbers(1)
        count = len(self.node.outputs)
        if lengths is None:
            each = -(-size // max(count, 1))
            lengths = [each] * (count - 1)
            lengths = [*lengths, size - sum(lengths)]
        if len(lengths) != count or sum(lengths) != size or min(lengths, default=0) < 0:
            raise ValueError(f"an axis of {size} is split into {lengths}")
        return [int(n) for n in np.cumsum(lengths[:-1])]


def _text(data: Any) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise ValueError("an attribute is not UTF-8") from None


def known(numbers: Sequence[Any]) -> list[int]:
    """Sizes, none of them open.

    Raises
    ------
    OpenSizeError
        One is.
    """
    if any(isinstance(number, Size) for number in numbers):
        raise OpenSizeError("a size that the file leaves open is needed")
    return [int(number) for number in numbers]
