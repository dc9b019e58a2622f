"""An unpickler that makes tensors, containers, numbers and texts, and nothing else.

It calls no class and imports no module that a pickle names. Its opcodes only move stand-ins
(`allowed_globals`) between a stack and a memo.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.torch import allowed_globals
from lstm_cli.formats.torch.allowed_globals import (
    AllowedCall,
    MalformedPickleError,
    RefusedObject,
    UnknownGlobal,
)
from lstm_cli.formats.torch.refused_objects import SAVE_WEIGHTS_HINT, refusal

MAX_OPCODES = 1_000_000
"""Number of opcodes in a pickle. Each makes at most 200 bytes, so this limits the memory."""
MAX_INTEGER_BYTES = 256


class PickleScanner:
    """Sequential reader of bytes that never passes the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise MalformedPickleError(
                f"it ends within an opcode that declares {counted(size, 'byte', grouped=True)}"
            )
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
    """Opcodes with their arguments (None if there is none), up to and including STOP.

    Raises
    ------
    MalformedPickleError
        The pickle is truncated, an argument is not a text, or there are too many opcodes.
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
"""Number of unknown globals up to which their keys are searched."""


def unpickle(data: bytes, source: str, path: Path | str = "path") -> Any:
    """Unpickle dicts, lists, tuples, numbers, texts and `TensorView`.

    Parameters
    ----------
    source
        File and member in words, for errors.
    path
        Path in the Python code of hints.

    Raises
    ------
    WeightsError
        The pickle is malformed, or names an unknown global; nothing of it is executed.
    """
    root, unknown_globals = unpickle_next(PickleScanner(data), source)
    if unknown_globals:
        raise refusal(root, unknown_globals, source, path)
    return root


def unpickle_next(scanner: PickleScanner, source: str) -> tuple[Any, tuple[UnknownGlobal, ...]]:
    """Unpickle the next pickle of the data; also return the unknown globals that it names.

    Raises
    ------
    WeightsError
        The pickle is malformed.
    """
    machine = _PickleMachine()
    try:
        return machine.run(scanner), tuple(machine.unknown_globals)
    except MalformedPickleError as error:
        problem = str(error)
    except (IndexError, KeyError, TypeError, AttributeError):
        problem = "an opcode lacks what it works on"
    if machine.unknown_globals:
        raise refusal(None, machine.unknown_globals, source)
    raise WeightsError(
        f"{source} is not a pickle of a state dict",
        expected="tensors in dicts, as torch.save writes them",
        found=problem,
        hint=SAVE_WEIGHTS_HINT,
    )


class _PickleMachine:
    """Stack, marks and memo of a pickle, and a method for each opcode."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marked_stacks: list[list[Any]] = []  # one stack for each open mark
        self._memo: dict[int, Any] = {}
        self.unknown_globals: list[UnknownGlobal] = []

    def run(self, scanner: PickleScanner) -> Any:
        """Execute all opcodes and return the value on top of the stack."""
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
        """Skip an opcode that needs no action."""

    def mark(self, _: Any) -> None:
        self._marked_stacks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked_stacks.pop()
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
            raise MalformedPickleError("values are added to something that is not a list")
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
            raise MalformedPickleError("entries are set in something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                mapping[key] = value

    def find(self, names: tuple[str, str]) -> None:
        stand_in = allowed_globals.find_global(*names)
        if isinstance(stand_in, UnknownGlobal):
            self.unknown_globals.append(stand_in)
            if len(self.unknown_globals) > MAX_UNKNOWN_GLOBALS:
                raise MalformedPickleError("it names very many classes")
        self._stack.append(stand_in)

    def find_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedPickleError("the name of a class is not a text")
        self.find((module, name))

    def reduce(self, _: Any) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if isinstance(callee, UnknownGlobal | RefusedObject):
            self._make(callee)
        elif not isinstance(callee, AllowedCall) or type(arguments) is not tuple:
            raise MalformedPickleError("it calls something that is not a function")
        else:
            self._stack.append(callee.call(*arguments))

    def new(self, _: Any) -> None:
        """Make an object of the class below its arguments."""
        self._stack.pop()
        self._make(self._stack.pop())

    def new_of_keywords(self, _: Any) -> None:
        self._stack.pop()
        self.new(None)

    def instance(self, names: tuple[str, str] | None) -> None:
        """Make an object of a class that INST names, and OBJ has first above the mark."""
        items = self._to_mark()
        if names is not None:
            self.find(names)
            items = [self._stack.pop()]
        self._make(items[0])

    def _make(self, kind: Any) -> None:
        if not isinstance(kind, UnknownGlobal | RefusedObject):
            raise MalformedPickleError("it makes an object of something that is not a class")
        self._stack.append(RefusedObject(kind if isinstance(kind, UnknownGlobal) else kind.source))

    def build(self, _: Any) -> None:
        """Ignore attributes of a dict, such as the versions of modules."""
        state = self._stack.pop()
        if isinstance(self._stack[-1], RefusedObject):
            self._stack[-1].is_module |= isinstance(state, dict) and "_modules" in state
        elif type(self._stack[-1]) is not dict and not isinstance(self._stack[-1], UnknownGlobal):
            raise MalformedPickleError("attributes are set on something that is not a dict")

    def extension(self, code: int) -> None:
        self.unknown_globals.append(UnknownGlobal("copyreg", f"extension {code}"))
        self._stack.append(RefusedObject(self.unknown_globals[-1]))

    def persistent(self, _: Any) -> None:
        self._stack.append(allowed_globals.find_storage(self._stack.pop()))


def _is_key(key: object) -> bool:
    # State dicts have no other keys, and hashing them could take long.
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


def _tuple_of(count: int) -> Callable[[_PickleMachine, Any], None]:
    def make(machine: _PickleMachine, _: Any) -> None:
        stack = machine._stack
        if len(stack) < count:
            raise MalformedPickleError("a tuple lacks values")
        stack[-count:] = [tuple(stack[-count:])]

    return make


_ACTIONS: dict[int, Callable[[_PickleMachine, Any], None]] = {
    0x80: _PickleMachine.ignore,  # PROTO
    0x95: _PickleMachine.ignore,  # FRAME
    ord("("): _PickleMachine.mark,
    ord("0"): _PickleMachine.pop,
    ord("1"): _PickleMachine.pop_mark,
    ord("2"): _PickleMachine.duplicate,
    ord("q"): _PickleMachine.put,
    ord("r"): _PickleMachine.put,
    0x94: _PickleMachine.put,  # MEMOIZE
    ord("h"): _PickleMachine.get,
    ord("j"): _PickleMachine.get,
    ord("t"): _PickleMachine.close_tuple,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    0x91: _PickleMachine.frozen_set,
    ord("a"): _PickleMachine.append,
    ord("e"): _PickleMachine.extend,
    0x90: _PickleMachine.extend,  # ADDITEMS
    ord("s"): _PickleMachine.set_item,
    ord("u"): _PickleMachine.set_items,
    ord("c"): _PickleMachine.find,
    0x93: _PickleMachine.find_on_stack,
    ord("R"): _PickleMachine.reduce,
    ord("b"): _PickleMachine.build,
    ord("i"): _PickleMachine.instance,
    ord("o"): _PickleMachine.instance,
    0x81: _PickleMachine.new,  # NEWOBJ
    0x92: _PickleMachine.new_of_keywords,  # NEWOBJ_EX
    0x82: _PickleMachine.extension,
    0x83: _PickleMachine.extension,
    0x84: _PickleMachine.extension,
    ord("Q"): _PickleMachine.persistent,
}
