"""One operator being evaluated: its attributes and inputs, as their readers want them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx import messages as m
from lstm_cli.formats.onnx.messages import Node, Tensor
from lstm_cli.formats.onnx.schemas import title
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size
from lstm_cli.formats.onnx.tensors import DTYPES, quoted, to_array
from lstm_cli.formats.onnx.values import Anything, Constant, RefusedError

ROOM = 1 << 27
"""Bytes that constants and weights may take beyond what a file of no size holds."""
MOST_WORK = 1 << 23
"""Numbers that may be read and made, beyond what the file holds."""
MOST_NODES = 20_000
"""Operators evaluated beyond those in the file: those of functions count each time."""
A_NODE = 1000
"""Numbers that may be read for each operator in the file."""
MOST_OPEN = 4096
"""Entries of a tensor that holds open sizes."""
MOST_LISTED = 1 << 16
"""Numbers that are read one by one: shapes, axes, steps."""


class Effort:
    """What reading a model may still cost; all attempts at one file share it.

    Parameters
    ----------
    stored
        Bytes of the file and of the files beside it.
    nodes
        Operators in the file.
    """

    def __init__(self, stored: int, nodes: int, path: Path) -> None:
        self.stored, self.held, self.path = stored, nodes, path
        self.room, self.work, self.nodes = 0, MOST_WORK, MOST_NODES
        self.begin()

    def begin(self) -> None:
        """Allow what the file holds once more: its memory is free again."""
        self.room = ROOM + 4 * self.stored
        self.work += 4 * self.stored + A_NODE * self.held
        self.nodes += self.held

    def spend(self, *, room: int = 0, work: int = 0, nodes: int = 0, where: str = "") -> None:
        """Count bytes, numbers and operators.

        Raises
        ------
        WeightsError
            There are too many.
        """
        self.room -= room
        self.work -= work
        self.nodes -= nodes
        if min(self.room, self.work, self.nodes) < 0:
            raise WeightsError(
                "the model computes more than any network that lstm-cli can represent",
                found=f"too many {self._short()}" + (f", up to {where}" if where else ""),
                where=str(self.path),
            )

    def _short(self) -> str:
        if self.nodes < 0:
            return "operators, those of functions counted each time"
        return "numbers" if self.work < 0 else "bytes of constants and weights"

    def stored_array(self, tensor: Tensor) -> Array:
        """A stored tensor, its bytes counted unless they are those of the file itself."""
        view = tensor.raw_data is not None and tensor.data_type not in (m.FLOAT16, m.BFLOAT16)
        if tensor.data_location == m.EXTERNAL or not view:
            count = math.prod(max(n, 0) for n in tensor.dims)
            size = max(4, np.dtype(DTYPES.get(tensor.data_type, "V")).itemsize)
            self.spend(room=count * size, work=count, where=f"the tensor {quoted(tensor.name)}")
        return to_array(tensor, self.path)


@dataclass(frozen=True)
class Call:
    """An operator and the values it is given; None stands for an input left out.

    Its attributes are read by `schemas.read_attributes`, defaults among them.
    """

    node: Node
    inputs: tuple[Anything | None, ...]
    attributes: Mapping[str, Any]
    opset: int
    effort: Effort

    @property
    def path(self) -> Path:
        """The model's file."""
        return self.effort.path

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
        RefusedError
            It is another number, which runtimes understand in different ways.
        """
        value = self.attributes.get(name, 0)
        if value not in (0, 1):
            raise RefusedError(f"its {name} is {value}, not 0 or 1")
        return bool(value)

    def tensor(self, name: str) -> Array | None:
        """An attribute that is a tensor."""
        found = self.attributes.get(name)
        return None if found is None else self.effort.stored_array(found)

    def given(self, k: int) -> Anything | None:
        """Input `k`; None: left out."""
        return self.inputs[k] if k < len(self.inputs) else None

    def constant(self, k: int) -> Constant:
        """Input `k`, which must not depend on the graph's inputs.

        Raises
        ------
        RefusedError
            It does, or is left out.
        """
        found = self.given(k)
        if not isinstance(found, Constant):
            raise RefusedError(f"input {k} is not constant")
        return found

    def integers(self, k: int) -> Array:
        """Input `k`, which must hold integers or sizes.

        Raises
        ------
        RefusedError
            It depends on the graph's inputs, is left out, or holds something else.
        """
        array: Array = self.constant(k).array
        if array.dtype.kind not in "iuO" and array.size:
            raise RefusedError(f"input {k} holds {array.dtype} in the place of integers")
        return array

    def whole_numbers(self, k: int) -> list[Any] | None:
        """Input `k` as a list of sizes; None: left out."""
        if self.given(k) is None:
            return None
        array = self.integers(k).reshape(-1)
        if array.size > MOST_LISTED:
            raise RefusedError(f"input {k} holds {array.size:,} numbers")
        return [n if isinstance(n, Size) else int(n) for n in array]

    @property
    def is_open(self) -> bool:
        """Whether a constant among the inputs holds sizes that the file leaves open."""
        constants = [value for value in self.inputs if isinstance(value, Constant)]
        return any(constant.array.dtype == object for constant in constants)

    def bounded(self, *shapes: Sequence[int]) -> tuple[int, ...]:
        """The shape that these broadcast to, of a tensor about to be calculated.

        Raises
        ------
        RefusedError
            It is out of proportion to what the file holds.
        """
        shape = np.broadcast_shapes(*(tuple(map(int, shape)) for shape in shapes))
        count, effort = math.prod(shape), self.effort
        most = MOST_OPEN if self.is_open else min(effort.room // 8, effort.work)
        if count > most:
            raise RefusedError(f"a tensor of shape {tuple(shape)} is calculated")
        return shape

    def axis(self, rank: int) -> int:
        """The attribute ``axis``, counted from the front.

        Raises
        ------
        RefusedError
            There is no such axis.
        """
        axis: int = self.attributes["axis"]
        if not -rank <= axis < rank:
            raise RefusedError(f"axis {axis} of {rank}")
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
            raise RefusedError("a slice without limits")
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        if not all(-rank <= axis < rank for axis in axes):
            raise RefusedError(f"axes {axes} of {rank}")
        axes = [axis % rank for axis in axes]
        return list(zip(axes, starts, stops, steps, strict=True))

    def split_lengths(self) -> list[int] | None:
        """Lengths of the parts of an axis; None: all alike."""
        found: list[int] | None = self.attributes.get("split") or self.whole_numbers(1)
        if found is not None and "num_outputs" in self.attributes:
            raise RefusedError("it has both num_outputs and lengths of its parts")
        return found

    def split_points(self, size: int) -> list[int]:
        """Where an axis of `size` is cut, one part for each output.

        Raises
        ------
        RefusedError
            The parts are not as long as the axis.
        """
        lengths = self.split_lengths()
        count = len(self.node.outputs)
        if lengths is None:
            parts = self.attributes.get("num_outputs")
            each = -(-size // max(count, 1))
            if parts not in (None, count) or (parts is None and each * count != size):
                raise RefusedError(f"an axis of {size} is split into {parts or count} parts")
            lengths = [each] * (count - 1)
            lengths = [*lengths, size - sum(lengths)]
        if len(lengths) != count or sum(lengths) != size or min(lengths, default=0) < 0:
            raise RefusedError(f"an axis of {size} is split into {lengths}")
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
