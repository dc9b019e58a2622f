"""Stand-ins for the globals that a pickled state dict may name: tensors, storages, containers.

Names are looked up in a table here, and nothing is ever imported. No stand-in copies its arguments,
so that a small pickle cannot make large values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_AXES = 16

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "uint8", "_Untyped": "uint8",
}  # fmt: skip
"""Dtype of each storage class, by its name without ``Storage``."""
_DTYPES = {
    *_STORAGES.values(), "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "uint32", "uint64", "complex32", "bits8",
}  # fmt: skip


class MalformedPickleError(ValueError):
    """Bytes that are not a pickle of torch.save."""


@dataclass(frozen=True)
class StorageType:
    """Storage class."""

    dtype: str


@dataclass(frozen=True)
class Dtype:
    """Dtype named without a storage."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Storage: `count` values of one dtype in the archive member ``data/<key>``."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """Strided view of a storage; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class IgnoredValue:
    """Value that no weight depends on, such as a device."""


@dataclass(frozen=True)
class AllowedCall:
    """Global that a pickle may call, with the stand-in that gets the arguments."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class UnknownGlobal:
    """Any other global that a pickle names; the file is refused."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class RefusedObject:
    """Value that a pickle would build with an unknown global; it is never built.

    Attributes
    ----------
    source
        Class or function that the pickle names.
    entries
        Entries set by key, as in a dict of a user-defined class.
    is_module
        Whether the state is that of an nn.Module.
    """

    source: UnknownGlobal
    entries: dict[Any, Any] = field(default_factory=dict)
    is_module: bool = False


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *rest: Any
) -> Any:
    # rest is requires_grad, hooks, metadata, in _rebuild_tensor_v2 only.
    if len(rest) > 2 and rest[2]:
        raise MalformedPickleError("a tensor is stored conjugated or negated")
    if not isinstance(storage, Storage):
        raise MalformedPickleError("a tensor has no storage")
    return _view(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: object, offset: object, shape: object, strides: object, *rest: Any
) -> Any:
    # The dtype is an argument of its own, unlike in older versions.
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise MalformedPickleError("a tensor has no storage or no dtype")
    return _view(storage, dtype.name, offset, shape, strides)


def _view(storage: Storage, dtype: str, offset: object, shape: object, strides: object) -> Any:
    sizes, steps = _integers(shape), _integers(strides)
    (start,) = _integers((offset,))
    if len(sizes) != len(steps):
        raise MalformedPickleError("a tensor has more sizes than strides, or fewer")
    return TensorView(storage, dtype, start, sizes, steps)


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        raise MalformedPickleError("the shape of a tensor is not a short tuple")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in values):
        raise MalformedPickleError("a size, stride or offset of a tensor is not a natural number")
    return values


def _rebuild_parameter(data: object, *_: Any) -> Any:
    if not isinstance(data, TensorView | RefusedObject):
        raise MalformedPickleError("a parameter holds no tensor")
    return data


def _set(values: object = ()) -> Any:
    # The list stays a list, because hashing its members could take forever.
    if not isinstance(values, list | tuple):
        raise MalformedPickleError("a set is not made from a list")
    return values


def _inert(*_: Any) -> Any:
    return IgnoredValue()


def _empty_mapping() -> dict[Any, Any]:
    return {}


_CALLS = {
    ("collections", "OrderedDict"): AllowedCall(_empty_mapping),
    ("_codecs", "encode"): AllowedCall(_inert),  # bytes in old protocols
    ("torch", "Size"): AllowedCall(_integers),
    ("torch", "device"): AllowedCall(_inert),
    ("torch._utils", "_rebuild_tensor"): AllowedCall(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): AllowedCall(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): AllowedCall(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): AllowedCall(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): AllowedCall(_rebuild_parameter),
    **{
        (module, name): AllowedCall(_set)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
    },
}


def find_global(module: str, name: str) -> AllowedCall | StorageType | Dtype | UnknownGlobal:
    """Stand-in for a global that a pickle names."""
    if (module, name) in _CALLS:
        return _CALLS[module, name]
    if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
        dtype = _STORAGES.get(name.removesuffix("Storage"))
        if dtype is not None:
            return StorageType(dtype)
    if module == "torch" and name in _DTYPES:
        return Dtype(name)
    return UnknownGlobal(module, name)


def find_storage(identity: object) -> Storage | UnknownGlobal:
    """Storage of a persistent id ``("storage", class, key, location, count, ...)``.

    Older files have ``("module", class, file, source)`` in place of the class of a module.
    """
    if isinstance(identity, tuple) and identity[:1] == ("module",):
        unknown = next((one for one in identity if isinstance(one, UnknownGlobal)), None)
        if unknown is not None:
            return unknown
    if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6:
        raise MalformedPickleError("a persistent id is not that of a storage")
    word, kind, key, _, count = identity[:5]
    if word != "storage" or not isinstance(kind, StorageType) or not isinstance(key, str):
        raise MalformedPickleError("a persistent id is not that of a storage")
    (count,) = _integers((count,))
    return Storage(key, kind.dtype, count)
