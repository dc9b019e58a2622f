"""Buffers that grow and are reused, addresses of arrays, and blocks of arguments."""

from __future__ import annotations

import ctypes
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from compiled_ir import compiled_address

from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.memory import (
    _MAX_CACHED,
    Arguments,
    Workspace,
    Workspaces,
    address,
    aligned,
)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_buffer_is_zero_at_first_and_kept(dtype: str) -> None:
    space = Workspace()
    buffer = space.get("h", 100, dtype)
    assert buffer.dtype == dtype
    assert buffer.size >= 100
    assert not buffer.any()
    assert buffer.ctypes.data % 64 == 0
    buffer[:] = 7
    assert space.get("h", 100, dtype) is buffer
    assert space.get("h", 3, dtype) is buffer
    grown = space.get("h", 101, dtype)
    assert grown.size >= 101
    assert not grown.any()
    assert space.get("h", 100, dtype) is grown


def test_names_and_dtypes_have_buffers_of_their_own() -> None:
    space = Workspace()
    buffers = [
        space.get(name, 20, dtype) for name in ("h", "c") for dtype in ("float32", "float64")
    ]
    for value, buffer in enumerate(buffers):
        buffer[:] = value
    assert [set(buffer) for buffer in buffers] == [{0}, {1}, {2}, {3}]
    assert space.bytes == sum(buffer.nbytes for buffer in buffers)


def test_a_shape_is_the_beginning_of_a_buffer() -> None:
    space = Workspace()
    buffer = space.get("h", 100, "float32")
    array = space.shaped("h", (3, 4, 5), "float32")
    assert array.shape == (3, 4, 5)
    assert np.shares_memory(array, buffer)
    assert address(array) == address(buffer)
    array[:] = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(buffer[:60], np.arange(60))
    assert space.shaped("h", (0, 4), "float32").shape == (0, 4)


def test_cached_objects_are_forgotten_when_buffers_move() -> None:
    space = Workspace()
    space.get("h", 100, "float32")
    assert space.cached("a") is None
    assert space.remember("a", (1, 2)) == (1, 2)
    assert space.cached("a") == (1, 2)
    space.get("h", 50, "float32")
    assert space.cached("a") == (1, 2)
    space.get("h", 200, "float32")
    assert space.cached("a") is None


def test_few_objects_are_cached() -> None:
    space = Workspace()
    for n in range(5 * _MAX_CACHED):
        space.remember(n, n)
        assert space.cached(n) == n
        assert sum(space.cached(k) is not None for k in range(n + 1)) <= _MAX_CACHED


def test_a_workspace_comes_back_to_its_purpose() -> None:
    spaces = Workspaces()
    one, other = spaces.acquire("a"), spaces.acquire("a")
    assert one is not other
    one.get("h", 1000, "float32")
    other.get("h", 10, "float32")
    spaces.release("a", one)
    assert spaces.acquire("b") is not one
    assert spaces.acquire("a") is one
    spaces.release("a", one)
    assert spaces.bytes == one.bytes


def test_threads_never_have_one_workspace_at_once() -> None:
    spaces, threads, turns = Workspaces(), 4, 300
    begin = Barrier(threads)

    def use(number: int) -> int:
        begin.wait(30)
        matches = 0
        for _ in range(turns):
            space = spaces.acquire("a")
            buffer = space.get("h", 16, "int64")
            buffer[:] = number
            matches += int((buffer == number).all())
            spaces.release("a", space)
        return matches

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            assert sum(pool.map(use, range(threads))) == threads * turns
    finally:
        sys.setswitchinterval(before)
    assert len(spaces._free["a"]) <= threads


def test_address() -> None:
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    assert address(None) == 0
    for view in (array, array[1], array[:, 2], array[:, :, 1:], array.T, array[::-1]):
        assert address(view) == view.ctypes.data


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_arrays_begin_on_a_cache_line(dtype: str) -> None:
    for size in (0, 1, 17, 1000):
        array = aligned(size, dtype)
        assert (array.size, array.dtype) == (size, np.dtype(dtype))
        assert size == 0 or array.ctypes.data % 64 == 0
        array[:] = 1  # is its own memory


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
    entries = joined.read(f, f.args["block"])
    assert {name: value.type for name, value in entries.items()} == {
        "K": "i64", "spent": "i64", "T": "i64", "N": "i64", "x": "ptr", "rate": "double",
        "eps": "double",
    }  # fmt: skip
    for k, name in enumerate(joined.names):
        f.store(entries[name], f.at(f.args["out"], k, "i64"), 8)
    f.store(f.add(entries["K"], entries["N"]), joined.place(f, f.args["block"], "spent"))
    f.ret()
    values = {"K": 11, "spent": 13, **VALUES}
    block, out = joined.empty(), joined.empty()
    joined.fill(block, layout, layout.pack(VALUES))
    block[:2] = 11, 13
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    call(compiled_address(module, "look"))(address(block), address(out))
    assert out.tobytes() == struct.pack("qqqqqdd", *values.values())
    assert block[1] == 11 + VALUES["N"]
    assert np.array_equal(block[2:], out[2:])
