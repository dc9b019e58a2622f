"""A message as a frozen dataclass: each field's declaration says its number and its kind.

One table, the fields themselves, is what both directions read.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from lstm_cli.formats.onnx import wire
from lstm_cli.formats.onnx.wire import Raw, WireError

DEEPEST = 40
"""Messages within messages: graphs within graphs, and nothing that is not hostile has more."""
MOST_PARTS = 1_000_000
"""Fields and numbers of lists; two bytes of a file may cost a hundred in memory."""
A_MESSAGE, AN_ARRAY = 6, 3
"""Fields that are read in the time that a message, or an array of numbers, takes."""

Kind: TypeAlias = "str | Callable[[], type[Message]]"
"""``int``, ``float``, ``text``, ``bytes``, an array's dtype, or what gives the message's class."""

_STORAGE = {"int": wire.VARINT, "float": wire.FOUR, "text": wire.LENGTH, "bytes": wire.LENGTH}


@dataclass(frozen=True)
class Entry:
    """What a field's declaration says."""

    number: int
    kind: Kind
    many: bool
    array: bool = False


def single(number: int, kind: Kind, default: Any = None) -> Any:
    """Declare a field that stands once; equal to `default` it is not written."""
    return dataclasses.field(default=default, metadata={"entry": Entry(number, kind, False)})


def listed(number: int, kind: Kind) -> Any:
    """Declare a field that may stand several times: a tuple."""
    return dataclasses.field(default=(), metadata={"entry": Entry(number, kind, True)})


def array(number: int, dtype: str) -> Any:
    """Declare packed numbers: an array of this dtype (``<i8``: varints), or None."""
    entry = Entry(number, dtype, False, array=True)
    return dataclasses.field(default=None, metadata={"entry": entry})


class Budget:
    """What a file may still cost."""

    def __init__(self, parts: int = MOST_PARTS) -> None:
        self.left = parts

    def spend(self, parts: int) -> None:
        """Count parts.

        Raises
        ------
        WireError
            There are too many.
        """
        self.left -= parts
        if self.left < 0:
            raise WireError(f"more than {MOST_PARTS:,} parts")


@dataclass(frozen=True)
class Message:
    """Base of all messages."""

    @classmethod
    def decode(cls, data: memoryview, budget: Budget | None = None, depth: int = 0) -> Self:
        """The message that `data` holds; fields it does not declare are passed over.

        Raises
        ------
        WireError
            Malformed, too deep, or too many parts.
        """
        if depth > DEEPEST:
            raise WireError(f"messages within messages more than {DEEPEST} deep")
        budget = budget or Budget()
        budget.spend(A_MESSAGE)
        known, found = _entries(cls), dict[str, Any]()
        for number, storage, raw in wire.fields(data):
            budget.spend(1)
            if number not in known:
                continue
            name, entry = known[number]
            if entry.array:
                budget.spend(AN_ARRAY)
                found.setdefault(name, []).append(_numbers(entry.kind, storage, raw))
            elif entry.many:
                found.setdefault(name, []).extend(_several(entry.kind, storage, raw, budget, depth))
            else:
                found[name] = _value(entry.kind, storage, raw, budget, depth)
        return cls(**{name: _whole(value) for name, value in found.items()})

    def encode(self) -> bytes:
        """The message's bytes."""
        parts: list[bytes] = []
        for field in dataclasses.fields(self):
            entry, value = field.metadata["entry"], getattr(self, field.name)
            if entry.array:
                parts += [] if value is None else [_encoded_array(entry, value)]
            elif entry.many:
                parts += [_encoded(entry, item) for item in value]
            elif value is not None and value != field.default:
                parts.append(_encoded(entry, value))
        return b"".join(parts)


_TABLES: dict[type, Mapping[int, tuple[str, Entry]]] = {}


def _entries(cls: type[Message]) -> Mapping[int, tuple[str, Entry]]:
    """Name and entry of every field, by number."""
    if cls not in _TABLES:
        entries = {field.name: field.metadata["entry"] for field in dataclasses.fields(cls)}
        _TABLES[cls] = {entry.number: (name, entry) for name, entry in entries.items()}
    return _TABLES[cls]


def _whole(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], np.ndarray):
        return np.concatenate(value) if len(value) > 1 else value[0]
    return tuple(value)


def _several(kind: Kind, storage: int, raw: Raw, budget: Budget, depth: int) -> list[Any]:
    """Elements of a list: one, or several numbers packed together."""
    if kind in ("int", "float") and storage == wire.LENGTH:
        numbers = _numbers("<i8" if kind == "int" else "<f4", storage, raw)
        budget.spend(numbers.size)
        return list(numbers.tolist())
    return [_value(kind, storage, raw, budget, depth)]


def _numbers(kind: Kind, storage: int, raw: Raw) -> Any:
    """Numbers of an array; one alone that is not packed makes an array of one."""
    if isinstance(raw, int):
        return np.array([wire.signed(raw)], np.int64)
    if kind == "<i8":
        if storage != wire.LENGTH:
            raise WireError("an integer is stored as another kind of value")
        return wire.varints(raw)
    return wire.numbers(raw, str(kind))


def _value(kind: Kind, storage: int, raw: Raw, budget: Budget, depth: int) -> Any:
    expected = _STORAGE[kind] if isinstance(kind, str) else wire.LENGTH
    if storage != expected:
        raise WireError("a field is stored as another kind of value than it has")
    if isinstance(raw, int):
        return wire.signed(raw)
    if callable(kind):
        return kind().decode(raw, budget, depth + 1)
    if kind == "float":
        return float(struct.unpack("<f", raw)[0])
    return _text(raw) if kind == "text" else raw


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name is not UTF-8") from None


def _encoded(entry: Entry, value: Any) -> bytes:
    if isinstance(value, Message):
        return wire.encoded(entry.number, wire.LENGTH, value.encode())
    if entry.kind == "text":
        value = value.encode()
    return wire.encoded(entry.number, _STORAGE[str(entry.kind)], value)


def _encoded_array(entry: Entry, value: Any) -> bytes:
    if entry.kind == "<i8":
        data = b"".join(wire.encoded_varint(int(item)) for item in value)
    else:
        data = np.ascontiguousarray(value, str(entry.kind)).tobytes()
    return wire.encoded(entry.number, wire.LENGTH, data)
