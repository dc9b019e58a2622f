"""An unpickler that can make tensors, containers, numbers and texts, and nothing else.

It is a machine of its own: it calls no class and imports no module, whatever a pickle says,
because every opcode it knows only moves stand-ins about.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch import admitted
from lstm_cli.formats.torch.admitted import Callee, Foreign, Opaque
from lstm_cli.formats.torch.foreign_values import STATE_DICT, refusal
from lstm_cli.formats.torch.opcodes import Malformed, Scanner, opcodes

LARGEST_PICKLE = 32 << 20
LONGEST_KEY = 4096
LARGEST_KEY = 2**31
MOST_FOREIGN = 50_000
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
    root, foreign = unpickled(Scanner(data), source)
    if foreign:
        raise refusal(root, foreign, source, path)
    return root


def unpickled(scanner: Scanner, source: str) -> tuple[Any, tuple[Foreign, ...]]:
    """What the next pickle of the bytes holds, and whatever foreign it names.

    Raises
    ------
    WeightsError
        It is malformed.
    """
    machine = _Machine()
    try:
        return machine.run(scanner), tuple(machine.foreign)
    except Malformed as error:
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
        self.foreign: list[Foreign] = []

    def run(self, scanner: Scanner) -> Any:
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
                    raise Malformed(f"it has the opcode {bytes([code])!r}")
                action(self, argument)
        raise Malformed("it has no end")

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
        if isinstance(self._stack[-1], Opaque | Foreign):
            return
        if type(self._stack[-1]) is not list:
            raise Malformed("values are added to what is no list")
        self._stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        items = self._to_mark()
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        mapping = self._stack[-1]
        if isinstance(mapping, Opaque):
            mapping = mapping.entries
        if type(mapping) is not dict or len(items) % 2:
            raise Malformed("entries are set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                mapping[key] = value

    def find(self, names: tuple[str, str]) -> None:
        stand_in = admitted.find(*names)
        if isinstance(stand_in, Foreign):
            self.foreign.append(stand_in)
            if len(self.foreign) > MOST_FOREIGN:
                raise Malformed("it names very many classes")
        self._stack.append(stand_in)

    def find_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("a class is named by no text")
        self.find((module, name))

    def reduce(self, _: Any) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if isinstance(callee, Foreign | Opaque):
            self._make(callee)
        elif not isinstance(callee, Callee) or type(arguments) is not tuple:
            raise Malformed("it calls what is no function")
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
        if not isinstance(kind, Foreign | Opaque):
            raise Malformed("it makes an object of what is no class")
        self._stack.append(Opaque(kind if isinstance(kind, Foreign) else kind.source))

    def build(self, _: Any) -> None:
        """Attributes of an OrderedDict, such as the versions of its modules: not needed."""
        state = self._stack.pop()
        if isinstance(self._stack[-1], Opaque):
            self._stack[-1].is_module |= isinstance(state, dict) and "_modules" in state
        elif type(self._stack[-1]) is not dict and not isinstance(self._stack[-1], Foreign):
            raise Malformed("attributes are set on what is no dict")

    def extension(self, code: int) -> None:
        self.foreign.append(Foreign("copyreg", f"extension {code}"))
        self._stack.append(Opaque(self.foreign[-1]))

    def persistent(self, _: Any) -> None:
        self._stack.append(admitted.persistent(self._stack.pop()))


def _is_key(key: object) -> bool:
    """Whether to keep an entry: no state dict has other keys, and hashing them may take long."""
    if isinstance(key, str):
        return len(key) <= LONGEST_KEY
    return isinstance(key, int) and abs(key) < LARGEST_KEY


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
            raise Malformed("a tuple lacks values")
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
