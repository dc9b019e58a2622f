"""An unpickler that makes tensors, containers, numbers and texts, and nothing else.

It calls no class and imports no module, whatever a pickle names: its opcodes only move stand-ins
(`allowed_globals`) between a stack and a memo.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch import allowed_globals
from lstm_cli.formats.torch.allowed_globals import (
    AllowedCall,
    MalformedPickleError,
    RefusedObject,
    UnknownGlobal,
)
from lstm_cli.formats.torch.refused_objects import STATE_DICT, refusal

MAX_OPCODES = 1_000_000
"""An opcode makes one object of a hundred bytes or two at most, so this bounds the memory."""
MAX_INTEGER_BYTES = 256


class PickleScanner:
    """Takes bytes in order, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise MalformedPickleError(f"it ends within an opcode that declares {size:,} bytes")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise MalformedPickleError("the name of a class has no end")
        line = self.take(end - self.at)
        self.at += 1
        return line.decode()


def _number(size: int) -> Callable[[PickleScanner], Any]:
    return lambda scanner: scanner.unsigned(size)


def _text(size: int) -> Callable[[PickleScanner], Any]:
    return lambda scanner: scanner.take(scanner.unsigned(size)).decode()


def _bytes(size: int) -> Callable[[PickleScanner], Any]:
    return lambda scanner: scanner.take(scanner.unsigned(size))


def _integer(size: int) -> Callable[[PickleScanner], Any]:
    def read(scanner: PickleScanner) -> int:
        length = scanner.unsigned(size)
        if length > MAX_INTEGER_BYTES:
            raise MalformedPickleError(f"it has an integer of {length:,} bytes")
        return int.from_bytes(scanner.take(length), "little", signed=True)

    return read


def _signed(scanner: PickleScanner) -> Any:
    return int.from_bytes(scanner.take(4), "little", signed=True)


def _float(scanner: PickleScanner) -> Any:
    return struct.unpack(">d", scanner.take(8))[0]


def _lines(scanner: PickleScanner) -> Any:
    return scanner.line(), scanner.line()


_ARGUMENTS: dict[int, Callable[[PickleScanner], Any]] = {
    0x80: _number(1),  # PROTO
    0x95: _number(8),  # FRAME
    ord("K"): _number(1),  # BININT1
    ord("M"): _number(2),  # BININT2
    ord("J"): _signed,  # BININT
    0x8A: _integer(1),  # LONG1
    0x8B: _integer(4),  # LONG4
    ord("G"): _float,  # BINFLOAT
    ord("X"): _text(4),  # BINUNICODE
    0x8C: _text(1),  # SHORT_BINUNICODE
    0x8D: _text(8),  # BINUNICODE8
    ord("T"): _text(4),  # BINSTRING
    ord("U"): _text(1),  # SHORT_BINSTRING
    ord("B"): _bytes(4),  # BINBYTES
    ord("C"): _bytes(1),  # SHORT_BINBYTES
    0x8E: _bytes(8),  # BINBYTES8
    ord("q"): _number(1),  # BINPUT
    ord("r"): _number(4),  # LONG_BINPUT
    ord("h"): _number(1),  # BINGET
    ord("j"): _number(4),  # LONG_BINGET
    ord("c"): _lines,  # GLOBAL
    ord("i"): _lines,  # INST
    0x82: _number(1),  # EXT1
    0x83: _number(2),  # EXT2
    0x84: _number(4),  # EXT4
}


def opcodes(scanner: PickleScanner) -> Iterator[tuple[int, Any]]:
    """Opcode and argument (None: it has none), up to and with STOP.

    Raises
    ------
    Malformed
        Truncated, an argument that is no text, or more opcodes than any state dict has.
    """
    for _ in range(MAX_OPCODES):
        code = scanner.unsigned(1)
        read = _ARGUMENTS.get(code)
        try:
            argument = None if read is None else read(scanner)
        except UnicodeDecodeError:
            raise MalformedPickleError("a text in it is not UTF-8") from None
        yield code, argument
        if code == ord("."):
            return
    raise MalformedPickleError(f"it has more than {MAX_OPCODES:,} opcodes")


MAX_PICKLE_BYTES = 32 << 20
MAX_KEY_CHARACTERS = 4096
MAX_INTEGER_KEY = 2**31
MAX_UNKNOWN_GLOBALS = 50_000
"""Names that are not admitted, up to which the keys that hold them are looked for."""


def unpickle(data: bytes, source: str, path: Path | str = "path") -> Any:
    """What a pickle holds: dicts, lists, tuples, numbers, texts and `TensorView`.

    Parameters
    ----------
    source
        What it was read from, for errors.
    path
        The file, as a hint's Python names it.

    Raises
    ------
    WeightsError
        It would call or make anything else (named; nothing of it is done), or is malformed.
    """
    root, foreign = unpickle_next(PickleScanner(data), source)
    if foreign:
        raise refusal(root, foreign, source, path)
    return root


def unpickle_next(scanner: PickleScanner, source: str) -> tuple[Any, tuple[UnknownGlobal, ...]]:
    """What the next pickle of the bytes holds, and whatever foreign it names.

    Raises
    ------
    WeightsError
        It is malformed.
    """
    machine = _Machine()
    try:
        return machine.run(scanner), tuple(machine.foreign)
    except MalformedPickleError as error:
        found = str(error)
    except (IndexError, KeyError, TypeError, AttributeError):
        found = "an opcode lacks what it works on"
    if machine.foreign:
        raise refusal(None, machine.foreign, source)
    raise WeightsError(
        f"{source} is no pickle of a state dict",
        expected="tensors in dicts, as torch.save writes them",
        found=found,
        hint=STATE_DICT,
    )


class _Machine:
    """A pickle's stack, its marks and its memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # a stack for every open mark
        self._memo: dict[int, Any] = {}
        self.foreign: list[UnknownGlobal] = []

    def run(self, scanner: PickleScanner) -> Any:
        """Carry out the opcodes; what the last one leaves."""
        for code, argument in opcodes(scanner):
            if code == _STOP:
                return self._stack.pop()
            if code in _VALUES:
                self._stack.append(argument)
            elif code in _MAKERS:
                self._stack.append(_MAKERS[code]())
            else:
                action = _ACTIONS.get(code)
                if action is None:
                    raise MalformedPickleError(f"it has the opcode {bytes([code])!r}")
                action(self, argument)
        raise MalformedPickleError("it has no end")

    def ignore(self, _: Any) -> None:
        """Of no meaning here."""

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def pop_mark(self, _: Any) -> None:
        self._to_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def close_tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def frozen_set(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend([value])

    def extend(self, _: Any) -> None:
        items = self._to_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], RefusedObject | UnknownGlobal):
            return
        if type(self._stack[-1]) is not list:
            raise MalformedPickleError("values are added to what is no list")
        self._stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        items = self._to_mark()
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        mapping = self._stack[-1]
        if isinstance(mapping, RefusedObject):
            mapping = mapping.entries
        if type(mapping) is not dict or len(items) % 2:
            raise MalformedPickleError("entries are set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                mapping[key] = value

    def find(self, names: tuple[str, str]) -> None:
        stand_in = allowed_globals.find(*names)
        if isinstance(stand_in, UnknownGlobal):
            self.foreign.append(stand_in)
            if len(self.foreign) > MAX_UNKNOWN_GLOBALS:
                raise MalformedPickleError("it names very many classes")
        self._stack.append(stand_in)

    def find_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedPickleError("a class is named by no text")
        self.find((module, name))

    def reduce(self, _: Any) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if isinstance(callee, UnknownGlobal | RefusedObject):
            self._make(callee)
        elif not isinstance(callee, AllowedCall) or type(arguments) is not tuple:
            raise MalformedPickleError("it calls what is no function")
        else:
            self._stack.append(callee.call(*arguments))

    def new(self, _: Any) -> None:
        """An object of the class below its arguments."""
        self._stack.pop()
        self._make(self._stack.pop())

    def new_of_keywords(self, _: Any) -> None:
        self._stack.pop()
        self.new(None)

    def instance(self, names: tuple[str, str] | None) -> None:
        """INST names a class itself; OBJ has it first above the mark."""
        items = self._to_mark()
        if names is not None:
            self.find(names)
            items = [self._stack.pop()]
        self._make(items[0])

    def _make(self, kind: Any) -> None:
        if not isinstance(kind, UnknownGlobal | RefusedObject):
            raise MalformedPickleError("it makes an object of what is no class")
        self._stack.append(RefusedObject(kind if isinstance(kind, UnknownGlobal) else kind.source))

    def build(self, _: Any) -> None:
        """Attributes of an OrderedDict, such as the versions of its modules: not needed."""
        state = self._stack.pop()
        if isinstance(self._stack[-1], RefusedObject):
            self._stack[-1].is_module |= isinstance(state, dict) and "_modules" in state
        elif type(self._stack[-1]) is not dict and not isinstance(self._stack[-1], UnknownGlobal):
            raise MalformedPickleError("attributes are set on what is no dict")

    def extension(self, code: int) -> None:
        self.foreign.append(UnknownGlobal("copyreg", f"extension {code}"))
        self._stack.append(RefusedObject(self.foreign[-1]))

    def persistent(self, _: Any) -> None:
        self._stack.append(allowed_globals.persistent(self._stack.pop()))


def _is_key(key: object) -> bool:
    """Whether to keep an entry: no state dict has other keys, and hashing them may take long."""
    if isinstance(key, str):
        return len(key) <= MAX_KEY_CHARACTERS
    return isinstance(key, int) and abs(key) < MAX_INTEGER_KEY


_STOP = ord(".")
_VALUES = frozenset(b"KMJ\x8a\x8bGX\x8c\x8dTUBC\x8e")
_MAKERS: dict[int, Callable[[], Any]] = {
    ord("N"): lambda: None,
    0x88: lambda: True,
    0x89: lambda: False,
    ord(")"): lambda: (),
    ord("]"): list,
    ord("}"): dict,
    0x8F: list,  # EMPTY_SET
}


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        stack = machine._stack
        if len(stack) < count:
            raise MalformedPickleError("a tuple lacks values")
        stack[-count:] = [tuple(stack[-count:])]

    return make


_ACTIONS: dict[int, Callable[[_Machine, Any], None]] = {
    0x80: _Machine.ignore,  # PROTO
    0x95: _Machine.ignore,  # FRAME
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.pop_mark,
    ord("2"): _Machine.duplicate,
    ord("q"): _Machine.put,
    ord("r"): _Machine.put,
    0x94: _Machine.put,  # MEMOIZE
    ord("h"): _Machine.get,
    ord("j"): _Machine.get,
    ord("t"): _Machine.close_tuple,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    0x91: _Machine.frozen_set,
    ord("a"): _Machine.append,
    ord("e"): _Machine.extend,
    0x90: _Machine.extend,  # ADDITEMS
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("c"): _Machine.find,
    0x93: _Machine.find_on_stack,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("i"): _Machine.instance,
    ord("o"): _Machine.instance,
    0x81: _Machine.new,  # NEWOBJ
    0x92: _Machine.new_of_keywords,  # NEWOBJ_EX
    0x82: _Machine.extension,
    0x83: _Machine.extension,
    0x84: _Machine.extension,
    ord("Q"): _Machine.persistent,
}
