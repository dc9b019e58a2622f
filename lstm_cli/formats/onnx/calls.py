"""One operator being evaluated: its attributes and inputs, as their readers want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.messages import Node
from lstm_cli.formats.onnx.schemas import title
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size
from lstm_cli.formats.onnx.tensors import to_array
from lstm_cli.formats.onnx.values import Anything, Constant


@dataclass(frozen=True)
class Call:
    """An operator and the values it is given; None stands for an input left out.

    Its attributes are read by `schemas.read_attributes`, defaults among them.
    """

    node: Node
    inputs: tuple[Anything | None, ...]
    attributes: Mapping[str, Any]
    opset: int
    path: Path

    @property
    def op(self) -> str:
        """Its type."""
        return self.node.op_type

    @property
    def where(self) -> str:
        """What it is called in errors."""
        return title(self.node)

    def flag(self, name: str) -> bool:
        """An attribute that is 0 or 1; False where it is left out.

        Raises
        ------
        ValueError
            It is another number, which runtimes understand in different ways.
        """
        value = self.attributes.get(name, 0)
        if value not in (0, 1):
            raise ValueError(f"its {name} is {value}, not 0 or 1")
        return bool(value)

    def tensor(self, name: str) -> Array | None:
        """An attribute that is a tensor."""
        found = self.attributes.get(name)
        return None if found is None else to_array(found, self.path)

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

    def integers(self, k: int) -> Array:
        """Input `k`, which must hold integers or sizes.

        Raises
        ------
        ValueError
            It depends on the graph's inputs, is left out, or holds something else.
        """
        array: Array = self.constant(k).array
        if array.dtype.kind not in "iuO" and array.size:
            raise ValueError(f"input {k} holds {array.dtype} in the place of integers")
        return array

    def whole_numbers(self, k: int) -> list[Any] | None:
        """Input `k` as a list of sizes; None: left out."""
        if self.given(k) is None:
            return None
        array = self.integers(k).reshape(-1)
        return [n if isinstance(n, Size) else int(n) for n in array]

    def axis(self, rank: int) -> int:
        """The attribute ``axis``, counted from the front.

        Raises
        ------
        ValueError
            There is no such axis.
        """
        axis: int = self.attributes["axis"]
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} of {rank}")
        return axis % rank

    def axes(self, k: int) -> list[int] | None:
        """Axes from the attribute, or from input `k` in newer operators; None: left out or none.

        ONNX Runtime, too, takes a list of no axes for one that is left out.
        """
        return self.attributes.get("axes") or self.whole_numbers(k) or None

    def slices(self, rank: int) -> list[tuple[int, Any, Any, int]]:
        """Axis, start, stop and step of every axis that is cut."""
        if "starts" in self.attributes:
            starts, stops = self.attributes["starts"], self.attributes["ends"]
            axes, steps = self.attributes.get("axes"), None
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

    def split_lengths(self) -> list[int] | None:
        """Lengths of the parts of an axis; None: all alike."""
        found: list[int] | None = self.attributes.get("split") or self.whole_numbers(1)
        if found is not None and "num_outputs" in self.attributes:
            raise ValueError("it has both num_outputs and lengths of its parts")
        return found

    def split_points(self, size: int) -> list[int]:
        """Where an axis of `size` is cut, one part for each output.

        Raises
        ------
        ValueError
            The parts are not as long as the axis.
        """
        lengths = self.split_lengths()
        count = len(self.node.outputs)
        if lengths is None:
            parts = self.attributes.get("num_outputs")
            each = -(-size // max(count, 1))
            if parts not in (None, count) or (parts is None and each * count != size):
                raise ValueError(f"an axis of {size} is split into {parts or count} parts")
            lengths = [each] * (count - 1)
            lengths = [*lengths, size - sum(lengths)]
        if len(lengths) != count or sum(lengths) != size or min(lengths, default=0) < 0:
            raise ValueError(f"an axis of {size} is split into {lengths}")
        return [int(n) for n in np.cumsum(lengths[:-1])]


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
