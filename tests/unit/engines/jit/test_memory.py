"""Buffers that grow and are used again, and addresses of arrays."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from lstm_cli.engines.jit.runtime.memory import _PLANS, Workspace, Workspaces, address, aligned


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
    found = space.shaped("h", (3, 4, 5), "float32")
    assert found.shape == (3, 4, 5)
    assert np.shares_memory(found, buffer)
    assert address(found) == address(buffer)
    found[:] = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(buffer[:60], np.arange(60))
    assert space.shaped("h", (0, 4), "float32").shape == (0, 4)


def test_plans_are_forgotten_when_buffers_move() -> None:
    space = Workspace()
    space.get("h", 100, "float32")
    assert space.plan("a") is None
    assert space.keep("a", (1, 2)) == (1, 2)
    assert space.plan("a") == (1, 2)
    space.get("h", 50, "float32")
    assert space.plan("a") == (1, 2)
    space.get("h", 200, "float32")
    assert space.plan("a") is None


def test_plans_are_few() -> None:
    space = Workspace()
    for n in range(5 * _PLANS):
        space.keep(n, n)
        assert space.plan(n) == n
        assert sum(space.plan(k) is not None for k in range(n + 1)) <= _PLANS


def test_a_workspace_comes_back_to_its_purpose() -> None:
    spaces = Workspaces()
    one, other = spaces.take("a"), spaces.take("a")
    assert one is not other
    one.get("h", 1000, "float32")
    other.get("h", 10, "float32")
    spaces.give("a", one)
    assert spaces.take("b") is not one
    assert spaces.take("a") is one
    spaces.give("a", one)
    assert spaces.bytes == one.bytes


def test_threads_never_have_one_workspace_at_once() -> None:
    spaces, threads, turns = Workspaces(), 4, 300
    begin = Barrier(threads)

    def use(number: int) -> int:
        begin.wait(30)
        seen = 0
        for _ in range(turns):
            space = spaces.take("a")
            own = space.get("h", 16, "int64")
            own[:] = number
            seen += int((own == number).all())
            spaces.give("a", space)
        return seen

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
        found = aligned(size, dtype)
        assert (found.size, found.dtype) == (size, np.dtype(dtype))
        assert size == 0 or found.ctypes.data % 64 == 0
        found[:] = 1  # is its own memory
