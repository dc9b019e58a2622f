"""Stored tensors as arrays, from the model's file or one that lies beside it."""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx import messages as m
from lstm_cli.formats.onnx.messages import Tensor
from lstm_cli.output_files import error_reason

DTYPES = {
    m.FLOAT: "<f4",
    m.UINT8: "<u1",
    m.INT8: "<i1",
    m.UINT16: "<u2",
    m.INT16: "<i2",
    m.INT32: "<i4",
    m.INT64: "<i8",
    m.BOOL: "|b1",
    m.FLOAT16: "<f2",
    m.DOUBLE: "<f8",
    m.UINT32: "<u4",
    m.UINT64: "<u8",
    m.BFLOAT16: "<u2",
}
"""By ``TensorProto.DataType``; bfloat16 as its bits."""

_OTHERS = {
    8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
    24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
_MOST_AXES = 16


def quoted(name: str) -> str:
    """A name from a file as an error or a note shows it."""
    plain = bool(name) and name.isprintable() and " " not in name
    return name[:200] if plain else repr(name)[:200]


def short(value: float) -> float:
    """A float32 as the shortest decimal that means it."""
    return float(str(np.float32(value)))


def type_name(data_type: int) -> str:
    """A ``TensorProto.DataType`` that is not read, in words."""
    name = _OTHERS.get(data_type)
    return f"data type {data_type}" + ("" if name is None else f" ({name})")


def dtype_name(tensor: Tensor) -> str:
    """Of the stored numbers."""
    if tensor.data_type == m.BFLOAT16:
        return "bfloat16"
    return np.dtype(DTYPES.get(tensor.data_type, "V")).name


def to_array(tensor: Tensor, path: Path) -> Array:
    """A tensor's numbers; halves as float32.

    Raises
    ------
    WeightsError
        Of a type that lstm-cli does not read, not as many numbers as the shape says, or stored
        where the model may not lead.
    """
    what = f"the tensor {quoted(tensor.name)}"
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None or tensor.segment is not None:
        raise WeightsError(
            f"{what} is of a type that lstm-cli does not read",
            expected="float16, bfloat16, float32, float64, integers or booleans",
            found="a segment" if tensor.segment is not None else type_name(tensor.data_type),
            where=str(path),
        )
    dims = tensor.dims
    if len(dims) > _MOST_AXES or min(dims, default=0) < 0 or math.prod(filter(None, dims)) >> 48:
        shape = f"{len(dims)} axes, {dims[:_MOST_AXES]}"
        raise WeightsError(f"{what} has an impossible shape", found=shape, where=str(path))
    count = math.prod(dims)
    if tensor.data_location == m.EXTERNAL:
        found = np.frombuffer(_external(tensor, path, count * np.dtype(dtype).itemsize), dtype)
    elif tensor.raw_data is not None:
        found = _raw(tensor.raw_data, dtype)
    else:
        found = _typed(tensor, dtype)
    if found.size != count:
        raise WeightsError(
            f"{what} declares a shape that the file does not hold",
            expected=f"{count:,} numbers for {tensor.dims}",
            found=f"{found.size:,}",
            where=str(path),
        )
    return _widened(found, tensor.data_type).reshape(tensor.dims)


def _raw(data: memoryview | bytes, dtype: str) -> Array:
    width = np.dtype(dtype).itemsize
    return np.frombuffer(data, dtype, count=len(data) // width)


def _typed(tensor: Tensor, dtype: str) -> Array:
    """Numbers from the field of their type; int32_data holds all the small ones."""
    fields = {m.FLOAT: "float_data", m.DOUBLE: "double_data", m.INT64: "int64_data"}
    fields |= {m.UINT64: "uint64_data", m.UINT32: "uint64_data"}
    values = getattr(tensor, fields.get(tensor.data_type, "int32_data"))
    if values is None:
        return np.zeros(0, dtype)
    if tensor.data_type in (m.FLOAT16, m.BFLOAT16):
        bits: Array = np.asarray(values).astype(np.uint16)
        return bits.view(dtype)
    converted: Array = np.asarray(values).astype(dtype, copy=False)
    return converted


def _widened(found: Array, data_type: int) -> Array:
    if data_type == m.FLOAT16:
        return found.astype(np.float32)
    if data_type == m.BFLOAT16:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def _external(tensor: Tensor, path: Path, size: int) -> bytes:
    """`size` bytes of a file that lies in the model's folder or below it.

    Raises
    ------
    WeightsError
        The location leads elsewhere, is no regular file, or does not hold so many bytes.
    """
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    offset, length = _number(given, "offset", 0), _number(given, "length", size)
    file = beside(path, location, tensor.name)
    try:
        available = file.stat().st_size
        if length < size or offset + size > available:
            raise _refused(
                tensor.name,
                f"{size:,} bytes from byte {offset:,}",
                f"{min(length, max(0, available - offset)):,} in {quoted(location)}",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except (OSError, ValueError) as error:
        raise _refused(tensor.name, "a readable file", error_reason(error)) from None


def beside(path: Path, location: str, name: str) -> Path:
    """The file that holds a tensor's external data.

    Raises
    ------
    WeightsError
        It is not in the model's folder, or no regular file.
    """
    expected = "a file in the model's folder or below it"
    pure = PurePosixPath(location)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location
    if not location or outside or PureWindowsPath(location).drive:
        raise _refused(name, expected, repr(location)[:200])
    try:
        folder = path.parent.resolve(strict=True)
        file = folder.joinpath(*pure.parts).resolve(strict=True)
        regular = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:
        found = error_reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise _refused(name, expected, f"{location!r}: {found}"[:300]) from None
    if not file.is_relative_to(folder) or not regular:
        raise _refused(name, expected, f"{location!r}, which leads elsewhere or is no file"[:300])
    return file


def _number(given: Mapping[str, str], key: str, default: int) -> int:
    text = given.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WeightsError("external data is described wrongly", found=f"{key} {text!r}"[:200])
    return int(text)


def _refused(name: str, expected: str, found: str) -> WeightsError:
    return WeightsError(
        f"the data of tensor {quoted(name)}, stored outside the model, cannot be read",
        expected=expected,
        found=found,
    )
