"""Blocks of arguments: what is packed on one side is what a kernel reads on the other."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest
from compiled_ir import address

from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.jit.runtime.memory import address as address_of

VALUES = {"T": -3, "N": 1 << 40, "x": (1 << 63) - 9, "rate": 0.1, "eps": 1e-300}


@pytest.fixture
def layout() -> Arguments:
    return Arguments(["T", "N"], ["x"], ["rate", "eps"])


def test_entries_stand_in_order(layout: Arguments) -> None:
    assert layout.names == ("T", "N", "x", "rate", "eps")
    assert layout.pack(VALUES) == struct.pack("qqqdd", *VALUES.values())
    assert layout.block(VALUES).tobytes() == layout.pack(VALUES)
    assert not layout.empty().any()
    assert layout.empty().nbytes == 40


def test_an_entry_without_a_value_is_a_mistake(layout: Arguments) -> None:
    with pytest.raises(KeyError, match="eps"):
        layout.pack({name: 1 for name in layout.names if name != "eps"})


def test_parts_are_filled_apart(layout: Arguments) -> None:
    other = Arguments(["K", "L"])
    joined = Arguments.joined(other, layout)
    assert joined.names == ("K", "L", *layout.names)
    block = joined.empty()
    joined.fill(block, layout, layout.pack(VALUES))
    assert block[:2].tolist() == [0, 0]
    assert block[2:].tobytes() == layout.pack(VALUES)
    joined.fill(block, other, other.pack({"K": 5, "L": 6}))
    assert block[:2].tolist() == [5, 6]
    assert block[2:].tobytes() == layout.pack(VALUES)


def test_a_kernel_reads_and_writes_them_by_name(layout: Arguments) -> None:
    joined = Arguments.joined(Arguments(["K", "spent"]), layout)
    module = Module()
    f = module.function("look", {"block": "ptr", "out": "ptr"}, exported=True)
    found = joined.read(f, f.args["block"])
    assert {name: value.type for name, value in found.items()} == {
        "K": "i64", "spent": "i64", "T": "i64", "N": "i64", "x": "ptr", "rate": "double",
        "eps": "double",
    }  # fmt: skip
    for k, name in enumerate(joined.names):
        f.store(found[name], f.at(f.args["out"], k, "i64"), 8)
    f.store(f.add(found["K"], found["N"]), joined.place(f, f.args["block"], "spent"))
    f.done()
    values = {"K": 11, "spent": 13, **VALUES}
    block, out = joined.empty(), joined.empty()
    joined.fill(block, layout, layout.pack(VALUES))
    block[:2] = 11, 13
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    call(address(module, "look"))(address_of(block), address_of(out))
    assert out.tobytes() == struct.pack("qqqqqdd", *values.values())
    assert block[1] == 11 + VALUES["N"]
    assert np.array_equal(block[2:], out[2:])
