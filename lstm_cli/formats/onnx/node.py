"""One node of the graph, ready to evaluate, and the stored tensors that it reads.

`GraphNode` has input values and typed attributes. `to_array` reads a tensor from the model file or
from external data in its folder. `WorkBudget` limits what both may cost.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.onnx import proto
from lstm_cli.formats.onnx.proto import OnnxNode, OnnxTensor, quote_name
from lstm_cli.formats.onnx.schemas import node_title
from lstm_cli.formats.onnx.sizes import FreeAxes, OpenSize, OpenSizeError
from lstm_cli.formats.onnx.symbolic import ConstantTensor, GraphValue, UnsupportedError, count_axes
from lstm_cli.output_files import error_reason

BYTE_BUDGET = 1 << 27
"""Largest number of bytes of computed constants and weights, plus four times the file size."""
NUMBER_BUDGET = 1 << 23
"""Largest number of numbers read and computed, plus the allowance for the file."""
NODE_BUDGET = 20_000
"""Largest number of evaluated operators, plus those in the file.

The operators of a function count at every call.
"""
NUMBERS_PER_NODE = 1000
"""Numbers allowed for each operator in the file."""
MAX_OPEN_ENTRIES = 4096
"""Largest number of entries of a tensor with open sizes."""
MAX_LISTED = 1 << 16
"""Largest number of entries of a list of shapes, axes or steps. Python reads each entry."""


class WorkBudget:
    """Bytes, numbers and operators that reading a file may still cost, over all attempts.

    Parameters
    ----------
    stored_bytes
        Bytes of the file and of its external data.
    file_nodes
        Operators in the file.
    """

    def __init__(self, stored_bytes: int, file_nodes: int, path: Path) -> None:
        self.stored_bytes, self.file_nodes, self.path = stored_bytes, file_nodes, path
        self.byte_budget, self.number_budget, self.node_budget = 0, NUMBER_BUDGET, NODE_BUDGET
        self.refill()

    def refill(self) -> None:
        """Add the allowance for the file once more, for another attempt in the same memory."""
        self.byte_budget = BYTE_BUDGET + 4 * self.stored_bytes
        self.number_budget += 4 * self.stored_bytes + NUMBERS_PER_NODE * self.file_nodes
        self.node_budget += self.file_nodes

    def spend(
        self, *, byte_count: int = 0, numbers: int = 0, nodes: int = 0, where: str = ""
    ) -> None:
        """Subtract bytes, numbers and operators from the budget.

        Raises
        ------
        WeightsError
            The budget is exhausted.
        """
        self.byte_budget -= byte_count
        self.number_budget -= numbers
        self.node_budget -= nodes
        if min(self.byte_budget, self.number_budget, self.node_budget) < 0:
            raise WeightsError(
                "the model computes more than any network that lstm-cli can represent",
                found=f"too many {self._exhausted()}" + (f", up to {where}" if where else ""),
                where=str(self.path),
            )

    def _exhausted(self) -> str:
        if self.node_budget < 0:
            return "operators, with function bodies counted at every call"
        return "numbers" if self.number_budget < 0 else "bytes of constants and weights"

    def stored_array(self, tensor: OnnxTensor) -> Array:
        """Values of a stored tensor; a view into the file costs nothing, other arrays count."""
        halves = (proto.FLOAT16, proto.BFLOAT16)
        is_view = tensor.raw_data is not None and tensor.data_type not in halves
        if tensor.data_location == proto.EXTERNAL or not is_view:
            count = math.prod(max(n, 0) for n in tensor.dims)
            size = max(4, np.dtype(DTYPES.get(tensor.data_type, "V")).itemsize)
            where = f"the tensor {quote_name(tensor.name)}"
            self.spend(byte_count=count * size, numbers=count, where=where)
        return to_array(tensor, self.path)


@dataclass
class GraphContext:
    """Facts on a graph that its rules read and add to.

    Attributes
    ----------
    free_axes
        Free axes of the graph's input.
    budget
        Work that the file may still cost.
    inputs
        Names of the graph's inputs, including inputs with a default in the file.
    notes
        Notes for the user, each once.
    """

    free_axes: FreeAxes
    budget: WorkBudget
    inputs: frozenset[str]
    notes: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphNode:
    """A node with its input values (None: omitted) and its attributes.

    `schemas.read_attributes` reads the attributes and fills in defaults.
    """

    message: OnnxNode
    inputs: tuple[GraphValue | None, ...]
    attributes: Mapping[str, Any]
    opset: int
    budget: WorkBudget

    @property
    def path(self) -> Path:
        """Path of the model file."""
        return self.budget.path

    @property
    def op(self) -> str:
        """Operator of the node, such as ``LSTM``."""
        return self.message.op_type

    @property
    def where(self) -> str:
        """Name and operator of the node, for errors."""
        return node_title(self.message)

    def flag(self, name: str) -> bool:
        """Boolean attribute; False if it is omitted.

        Raises
        ------
        UnsupportedError
            The value is not 0 or 1; runtimes disagree on other values.
        """
        value = self.attributes.get(name, 0)
        if value not in (0, 1):
            raise UnsupportedError(f"its {name} is {value}, not 0 or 1")
        return bool(value)

    def tensor(self, name: str) -> Array | None:
        """Tensor attribute; None if it is omitted."""
        tensor = self.attributes.get(name)
        return None if tensor is None else self.budget.stored_array(tensor)

    def input(self, k: int) -> GraphValue | None:
        """Input `k`; None if it is omitted."""
        return self.inputs[k] if k < len(self.inputs) else None

    def constant(self, k: int) -> ConstantTensor:
        """Input `k`, which must be a constant.

        Raises
        ------
        UnsupportedError
            The input depends on the graph's inputs, or is omitted.
        """
        value = self.input(k)
        if not isinstance(value, ConstantTensor):
            raise UnsupportedError(f"input {k} is not constant")
        return value

    def integers(self, k: int) -> Array:
        """Input `k`, which must be a constant of integers or sizes.

        Raises
        ------
        UnsupportedError
            The input is not constant, is omitted, or holds other values.
        """
        array: Array = self.constant(k).array
        if array.dtype.kind not in "iuO" and array.size:
            raise UnsupportedError(f"input {k} holds {array.dtype} instead of integers")
        return array

    def whole_numbers(self, k: int) -> list[Any] | None:
        """Input `k` as a list of sizes; None if it is omitted."""
        if self.input(k) is None:
            return None
        array = self.integers(k).reshape(-1)
        if array.size > MAX_LISTED:
            raise UnsupportedError(f"input {k} holds {array.size:,} numbers")
        return [n if isinstance(n, OpenSize) else int(n) for n in array]

    @property
    def has_open_sizes(self) -> bool:
        """True if a constant input holds open sizes."""
        constants = [value for value in self.inputs if isinstance(value, ConstantTensor)]
        return any(constant.array.dtype == object for constant in constants)

    def bounded_shape(self, *shapes: Sequence[int]) -> tuple[int, ...]:
        """Broadcast shape of a constant about to be computed, checked against the budget.

        Raises
        ------
        UnsupportedError
            The constant is too large for the budget.
        """
        shape = np.broadcast_shapes(*(tuple(map(int, shape)) for shape in shapes))
        limit = min(self.budget.byte_budget // 8, self.budget.number_budget)
        if math.prod(shape) > (MAX_OPEN_ENTRIES if self.has_open_sizes else limit):
            raise UnsupportedError(f"it computes a constant of shape {tuple(shape)}")
        return shape

    def axis(self, rank: int) -> int:
        """Attribute ``axis``, counted from the first axis.

        Raises
        ------
        UnsupportedError
            The tensor has no such axis.
        """
        axis: int = self.attributes["axis"]
        if not -rank <= axis < rank:
            raise UnsupportedError(f"it has axis {axis}, of a tensor of {count_axes(rank)}")
        return axis % rank

    def axes(self, k: int) -> list[int] | None:
        """Attribute ``axes``, or input `k` in newer opsets; None if omitted or empty.

        ONNX Runtime also treats an empty list of axes as omitted.
        """
        return self.attributes.get("axes") or self.whole_numbers(k) or None

    def slices(self, rank: int) -> list[tuple[int, Any, Any, int]]:
        """(axis, start, stop, step) of every axis that Slice cuts."""
        if "starts" in self.attributes:
            starts, stops = self.attributes["starts"], self.attributes["ends"]
            axes, steps = self.attributes.get("axes"), None
        else:
            starts, stops = self.whole_numbers(1), self.whole_numbers(2)
            axes, steps = self.whole_numbers(3), self.whole_numbers(4)
        if starts is None or stops is None:
            raise UnsupportedError("it has no limits of the slice")
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        if not all(-rank <= axis < rank for axis in axes):
            raise UnsupportedError(f"it has axes {axes}, of a tensor of {count_axes(rank)}")
        axes = [axis % rank for axis in axes]
        return list(zip(axes, starts, stops, steps, strict=True))

    def split_lengths(self) -> list[int] | None:
        """Lengths of the parts that Split makes; None if all parts are equal."""
        lengths: list[int] | None = self.attributes.get("split") or self.whole_numbers(1)
        if lengths is not None and "num_outputs" in self.attributes:
            raise UnsupportedError("it has both num_outputs and lengths of its parts")
        return lengths

    def split_points(self, size: int) -> list[int]:
        """Positions at which Split cuts an axis of `size`, with one part for each output.

        Raises
        ------
        UnsupportedError
            The lengths of the parts do not add up to `size`.
        """
        lengths = self.split_lengths()
        count = len(self.message.outputs)
        if lengths is None:
            parts = self.attributes.get("num_outputs")
            each = -(-size // max(count, 1))
            if parts not in (None, count) or (parts is None and each * count != size):
                label = counted(parts or count, "part")
                raise UnsupportedError(f"it splits an axis of size {size} into {label}")
            lengths = [each] * (count - 1)
            lengths = [*lengths, size - sum(lengths)]
        if len(lengths) != count or sum(lengths) != size or min(lengths, default=0) < 0:
            raise UnsupportedError(f"it splits an axis of size {size} into {lengths}")
        return [int(n) for n in np.cumsum(lengths[:-1])]


def known_sizes(numbers: Sequence[Any]) -> list[int]:
    """Sizes as a list of int.

    Raises
    ------
    OpenSizeError
        A size is open.
    """
    if any(isinstance(number, OpenSize) for number in numbers):
        raise OpenSizeError("it needs the number of an open size")
    return [int(number) for number in numbers]


DTYPES = {
    proto.FLOAT: "<f4",
    proto.UINT8: "<u1",
    proto.INT8: "<i1",
    proto.UINT16: "<u2",
    proto.INT16: "<i2",
    proto.INT32: "<i4",
    proto.INT64: "<i8",
    proto.BOOL: "|b1",
    proto.FLOAT16: "<f2",
    proto.DOUBLE: "<f8",
    proto.UINT32: "<u4",
    proto.UINT64: "<u8",
    proto.BFLOAT16: "<u2",
}
"""NumPy dtype of each ``TensorProto.DataType``; bfloat16 is read as its bits."""

FLOAT_TYPES = (proto.FLOAT, proto.DOUBLE, proto.FLOAT16, proto.BFLOAT16)
"""``TensorProto.DataType`` of real numbers."""

_UNREAD_TYPES = {
    8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
    24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
_MAX_AXES = 16


def type_name(data_type: int) -> str:
    """Describe a ``TensorProto.DataType`` that lstm-cli does not read."""
    name = _UNREAD_TYPES.get(data_type)
    return f"data type {data_type}" + ("" if name is None else f" ({name})")


def dtype_name(tensor: OnnxTensor) -> str:
    """Name of the stored data type, such as ``float32`` or ``bfloat16``."""
    if tensor.data_type == proto.BFLOAT16:
        return "bfloat16"
    return np.dtype(DTYPES.get(tensor.data_type, "V")).name


def to_array(tensor: OnnxTensor, path: Path) -> Array:
    """Values of a stored tensor; float16 and bfloat16 become float32.

    Raises
    ------
    WeightsError
        lstm-cli does not read the data type, the count of values does not fit the shape, or the
        external data cannot be read.
    """
    label = f"the tensor {quote_name(tensor.name)}"
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None or tensor.segment is not None:
        raise WeightsError(
            f"{label} has a data type that lstm-cli does not read",
            expected="float16, bfloat16, float32, float64, integers or booleans",
            found="a segment" if tensor.segment is not None else type_name(tensor.data_type),
            where=str(path),
        )
    dims = tensor.dims
    if len(dims) > _MAX_AXES or min(dims, default=0) < 0 or math.prod(filter(None, dims)) >> 48:
        shape = f"{len(dims)} axes, {dims[:_MAX_AXES]}"
        raise WeightsError(f"{label} has an impossible shape", found=shape, where=str(path))
    count = math.prod(dims)
    if tensor.data_location == proto.EXTERNAL:
        size = count * np.dtype(dtype).itemsize
        numbers = np.frombuffer(_external_bytes(tensor, path, size), dtype)
    elif tensor.raw_data is not None:
        numbers = _raw_numbers(tensor.raw_data, dtype)
    else:
        numbers = _typed_numbers(tensor, dtype)
    if numbers.size != count:
        raise WeightsError(
            f"{label} has a shape that does not fit its values",
            expected=f"{count:,} values for {tensor.dims}",
            found=f"{numbers.size:,}",
            where=str(path),
        )
    return _widen(numbers, tensor.data_type).reshape(tensor.dims)


def _raw_numbers(data: memoryview | bytes, dtype: str) -> Array:
    width = np.dtype(dtype).itemsize
    return np.frombuffer(data, dtype, count=len(data) // width)


def _typed_numbers(tensor: OnnxTensor, dtype: str) -> Array:
    """Values from the field of their type; int32_data holds every type of up to 32 bits."""
    fields = {proto.FLOAT: "float_data", proto.DOUBLE: "double_data", proto.INT64: "int64_data"}
    fields |= {proto.UINT64: "uint64_data", proto.UINT32: "uint64_data"}
    values = getattr(tensor, fields.get(tensor.data_type, "int32_data"))
    if values is None:
        return np.zeros(0, dtype)
    if tensor.data_type in (proto.FLOAT16, proto.BFLOAT16):
        bits: Array = np.asarray(values).astype(np.uint16)
        return bits.view(dtype)
    converted: Array = np.asarray(values).astype(dtype, copy=False)
    return converted


def _widen(numbers: Array, data_type: int) -> Array:
    if data_type == proto.FLOAT16:
        return numbers.astype(np.float32)
    if data_type == proto.BFLOAT16:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _external_bytes(tensor: OnnxTensor, path: Path, size: int) -> bytes:
    """Read `size` bytes of external data.

    Raises
    ------
    WeightsError
        The location is outside the model's folder, not a regular file, or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    offset, length = _entry_number(entries, "offset", 0), _entry_number(entries, "length", size)
    file = external_file(path, location, tensor.name)
    try:
        available = file.stat().st_size
        if length < size or offset + size > available:
            raise _external_error(
                tensor.name,
                f"{size:,} bytes from byte {offset:,}",
                f"{min(length, max(0, available - offset)):,} in {quote_name(location)}",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except (OSError, ValueError) as error:
        raise _external_error(tensor.name, "a readable file", error_reason(error)) from None


def external_file(path: Path, location: str, name: str) -> Path:
    """Resolve the file that holds a tensor's external data.

    Raises
    ------
    WeightsError
        The file is not in the model's folder or below it, or is not a regular file.
    """
    expected = "a file in the model's folder or below it"
    pure = PurePosixPath(location)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location
    if not location or outside or PureWindowsPath(location).drive:
        raise _external_error(name, expected, repr(location)[:200])
    try:
        folder = path.parent.resolve(strict=True)
        file = folder.joinpath(*pure.parts).resolve(strict=True)
        regular = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:
        cause = error_reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise _external_error(name, expected, f"{location!r}: {cause}"[:300]) from None
    if not file.is_relative_to(folder) or not regular:
        found = f"{location!r}, which is outside the folder or not a regular file"
        raise _external_error(name, expected, found[:300])
    return file


def _entry_number(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WeightsError(
            "external data has an invalid offset or length", found=f"{key} {text!r}"[:200]
        )
    return int(text)


def _external_error(name: str, expected: str, actual: str) -> WeightsError:
    return WeightsError(
        f"the data of tensor {quote_name(name)}, stored outside the model, cannot be read",
        expected=expected,
        found=actual,
    )
