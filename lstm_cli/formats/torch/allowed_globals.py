"""What a pickled state dict may name: stand-ins for tensors, storages and containers.

A name is looked up in a table of our own; nothing is ever imported. No stand-in copies what
it is given, so that a pickle cannot make much out of little.
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
"""Storage class without its ending to dtype; "Typed" is only ever written as one of these."""
_DTYPES = {
    *_STORAGES.values(), "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "uint32", "uint64", "complex32", "bits8",
}  # fmt: skip


class MalformedPickleError(ValueError):
    """The bytes are no pickle that torch.save writes."""


@dataclass(frozen=True)
class StorageType:
    """A class of storages."""

    dtype: str


@dataclass(frozen=True)
class Dtype:
    """A dtype named on its own."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Values of one dtype in the archive's member ``data/<key>``."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A strided view of a storage, in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class IgnoredValue:
    """A value that no weight depends on, such as a device."""


@dataclass(frozen=True)
class AllowedCall:
    """What a pickle may call: its arguments to a stand-in."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class UnknownGlobal:
    """Anything else that a pickle names. A file that does is refused."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class RefusedObject:
    """A value that a pickle would call something foreign for. It is not made.

    Attributes
    ----------
    source
        The class or function.
    entries
        What is set in it by key, as in a dict of a class of its own.
    is_module
        Whether its state is that of an nn.Module.
    """

    source: UnknownGlobal
    entries: dict[Any, Any] = field(default_factory=dict)
    is_module: bool = False


def _tensor(storage: object, offset: object, shape: object, strides: object, *rest: Any) -> Any:
    """What torch._utils._rebuild_tensor and _v2 (requires_grad, hooks, metadata) are given."""
    if len(rest) > 2 and rest[2]:
        raise MalformedPickleError("a tensor is stored conjugated or negated")
    if not isinstance(storage, Storage):
        raise MalformedPickleError("a tensor has no storage")
    return _view(storage, storage.dtype, offset, shape, strides)


def _tensor_of_dtype(
    storage: object, offset: object, shape: object, strides: object, *rest: Any
) -> Any:
    """What torch._utils._rebuild_tensor_v3 is given: the dtype stands beside the storage."""
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
        raise MalformedPickleError("the shape of a tensor is no short tuple")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in values):
        raise MalformedPickleError("a size, stride or offset of a tensor is no natural number")
    return values


def _parameter(data: object, *_: Any) -> Any:
    if not isinstance(data, TensorView | RefusedObject):
        raise MalformedPickleError("a parameter holds no tensor")
    return data


def _size(*arguments: Any) -> Any:
    return _integers(*arguments)


def _set(values: object = ()) -> Any:
    """The list itself: its members are not hashed, as that could take for ever."""
    if not isinstance(values, list | tuple):
        raise MalformedPickleError("a set is made of no list")
    return values


def _inert(*_: Any) -> Any:
    return IgnoredValue()


def _empty_mapping() -> dict[Any, Any]:
    return {}


_CALLEES = {
    ("collections", "OrderedDict"): AllowedCall(_empty_mapping),
    ("_codecs", "encode"): AllowedCall(_inert),  # bytes, as old protocols spell them
    ("torch", "Size"): AllowedCall(_size),
    ("torch", "device"): AllowedCall(_inert),
    ("torch._utils", "_rebuild_tensor"): AllowedCall(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): AllowedCall(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): AllowedCall(_tensor_of_dtype),
    ("torch._utils", "_rebuild_parameter"): AllowedCall(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): AllowedCall(_parameter),
    **{
        (module, name): AllowedCall(_set)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
    },
}


def find(module: str, name: str) -> AllowedCall | StorageType | Dtype | UnknownGlobal:
    """The stand-in for what a pickle names."""
    if (module, name) in _CALLEES:
        return _CALLEES[module, name]
    if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
        dtype = _STORAGES.get(name.removesuffix("Storage"))
        if dtype is not None:
            return StorageType(dtype)
    if module == "torch" and name in _DTYPES:
        return Dtype(name)
    return UnknownGlobal(module, name)


def persistent(identity: object) -> Storage | UnknownGlobal:
    """The storage of a persistent id: ``("storage", class, key, location, count, ...)``.

    Older files have ``("module", class, file, source)`` in the place of a module's class.
    """
    if isinstance(identity, tuple) and identity[:1] == ("module",):
        found = next((one for one in identity if isinstance(one, UnknownGlobal)), None)
        if found is not None:
            return found
    if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6:
        raise MalformedPickleError("a persistent id is no storage's")
    word, kind, key, _, count = identity[:5]
    if word != "storage" or not isinstance(kind, StorageType) or not isinstance(key, str):
        raise MalformedPickleError("a persistent id is no storage's")
    (count,) = _integers((count,))
    return Storage(key, kind.dtype, count)
