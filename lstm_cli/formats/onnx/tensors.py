"""Stored tensors as arrays, from the model file or from external data in its folder."""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx import proto
from lstm_cli.formats.onnx.proto import OnnxTensor
from lstm_cli.output_files import error_reason

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


def quote_name(name: str) -> str:
    """Format a name from a file for an error or a note."""
    plain = bool(name) and name.isprintable() and " " not in name
    return name[:200] if plain else repr(name)[:200]


def shortest_decimal(value: float) -> float:
    """Round a float32 to the shortest decimal that denotes the same float32."""
    return float(str(np.float32(value)))


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
