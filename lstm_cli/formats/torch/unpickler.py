"""An unpickler that can make tensors, containers, numbers and texts, and nothing else.

It is a machine of its own: it calls no class and imports no module, whatever a pickle says,
because every opcode it knows only moves stand-ins about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch import admitted
from lstm_cli.formats.torch.admitted import Callee, Foreign
from lstm_cli.formats.torch.opcodes import Malformed, opcodes
from lstm_cli.formats.torch.tensors import shown

LARGEST_PICKLE = 32 << 20
LONGEST_KEY = 4096
LARGEST_KEY = 2**31

_TENSORS = ("torch._utils", "torch._tensor", "torch.serialization")
STATE_DICT = "save the weights alone: torch.save(model.state_dict(), path)"
_EXPLAINED = {
    "_rebuild_qtensor": ("a quantised tensor", "dequantise the model before saving its state dict"),
    "_rebuild_sparse_tensor": ("a sparse tensor", "save tensor.to_dense()"),
    "_rebuild_sparse_csr_tensor": ("a sparse tensor", "save tensor.to_dense()"),
    "_get_layout": ("a sparse tensor", "save tensor.to_dense()"),
    "_rebuild_nested_tensor": ("a nested tensor", "save plain tensors"),
    "_rebuild_meta_tensor_no_storage": ("a tensor without values", "save it from a real device"),
    "_rebuild_from_type_v2": ("a tensor of a class of its own", STATE_DICT),
    "_rebuild_wrapper_subclass": ("a tensor of a class of its own", STATE_DICT),
}


def unpickle(data: bytes, source: str) -> Any:
    """What a pickle holds: dicts, lists, tuples, numbers, texts and `TensorView`.

    Parameters
    ----------
    source
        What it was read from, for errors.

    Raises
    ------
    WeightsError
        It would call or make anything else (named; nothing of it is done), or is malformed.
    """
    machine = _Machine(source)
    try:
        return machine.run(data)
    except Malformed as error:
        found = str(error)
    except (IndexError, KeyError, TypeError, AttributeError):
        found = "an opcode lacks what it works on"
    machine.refuse_foreign()
    raise WeightsError(
        f"{source} is no pickle of a state dict",
        expected="tensors in dicts, as torch.save writes them",
        found=found,
        hint=STATE_DICT,
    )


class _Machine:
    """A pickle's stack, its marks and its memo."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # a stack for every open mark
        self._memo: dict[int, Any] = {}
        self._foreign: list[Foreign] = []

    def run(self, data: bytes) -> Any:
        """Carry out the opcodes; what the last one leaves."""
        for code, argument in opcodes(data):
            if code == _STOP:
                self.refuse_foreign()
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

    def refuse_foreign(self) -> None:
        """Raise if anything was named that is not admitted."""
        if self._foreign:
            raise self._error(f"names {shown(str(self._foreign[0]))}")

    def _error(self, does: str, hint: str = STATE_DICT) -> WeightsError:
        key = self._stack[-1] if self._stack else None
        return WeightsError(
            f"{self._source} {does}, which is refused: nothing was executed",
            expected="tensors, storages and plain containers only",
            where=f"at {shown(key)}" if isinstance(key, str) else (),
            hint=hint,
        )

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
        if type(mapping) is not dict or len(items) % 2:
            raise Malformed("entries are set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                mapping[key] = value

    def find(self, names: tuple[str, str]) -> None:
        stand_in = admitted.find(*names)
        if isinstance(stand_in, Foreign):
            self._foreign.append(stand_in)
        self._stack.append(stand_in)

    def find_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("a class is named by no text")
        self.find((module, name))

    def reduce(self, _: Any) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if isinstance(callee, Foreign):
            raise self._call(callee)
        if not isinstance(callee, Callee) or type(arguments) is not tuple:
            raise Malformed("it calls what is no function")
        self._stack.append(callee.call(*arguments))

    def _call(self, callee: Foreign) -> WeightsError:
        if callee.module in _TENSORS and callee.name in _EXPLAINED:
            what, hint = _EXPLAINED[callee.name]
            return self._error(f"holds {what} ({callee})", hint)
        return self._error(f"would call {shown(str(callee))}")

    def instance(self, names: tuple[str, str] | None) -> None:
        """INST names a class itself; OBJ has it first above the mark; NEWOBJ below its arguments.

        No class is admitted, so this always ends in an error.
        """
        near = [*reversed(self._stack[-3:]), *self._stack[:1]]
        named = [value for value in near if isinstance(value, Foreign)]
        found = Foreign(*names) if names else next(iter(named), None)
        if found is None:
            raise Malformed("it makes an object of what is no class")
        if found.module.startswith("torch.nn.") or found.module == "__main__":
            raise self._error(f"holds a whole module, an object of the class {shown(str(found))}")
        raise self._error(f"would make an object of {shown(str(found))}")

    def build(self, _: Any) -> None:
        """Attributes of an OrderedDict, such as the versions of its modules: not needed."""
        self._stack.pop()
        if isinstance(self._stack[-1], Foreign):
            raise self._call(self._stack[-1])
        if type(self._stack[-1]) is not dict:
            raise Malformed("attributes are set on what is no dict")

    def extension(self, _: Any) -> None:
        raise self._error("would make an object of a registered extension")

    def persistent(self, _: Any) -> None:
        self._stack.append(admitted.storage(self._stack.pop()))


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
    0x81: _Machine.instance,  # NEWOBJ
    0x92: _Machine.instance,  # NEWOBJ_EX
    0x82: _Machine.extension,
    0x83: _Machine.extension,
    0x84: _Machine.extension,
    ord("Q"): _Machine.persistent,
}
