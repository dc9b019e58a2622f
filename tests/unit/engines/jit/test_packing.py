"""Weights packed natively, against the same written with NumPy."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite.binding")

from compiled_ir import machine

from lstm_cli.engines.jit.codegen.packing import Order, Packer, Packing, build, paired
from lstm_cli.engines.jit.codegen.tile import Columns, columns
from lstm_cli.engines.jit.runtime.compiler import compile_object
from lstm_cli.engines.jit.runtime.machine import Machine, described
from lstm_cli.engines.jit.runtime.memory import Stock

Array = np.ndarray[Any, Any]

SIZES = (1, 3, 8, 16, 17, 50, 64, 100, 131)
DTYPES = {"float": np.float32, "double": np.float64}


def expected(cut: Columns, matrix: Array) -> Array:
    """A matrix (gates, size, K) as panels, each [k][gate][column]; 0 in the padding."""
    panels, begun = [], 0
    parts = [cut.split.main] * cut.count + ([cut.split.tail] if cut.split.tail else [])
    for part in parts:
        here = matrix[:, begun : begun + part.columns]
        panel = np.zeros((matrix.shape[2], len(matrix), part.columns), matrix.dtype)
        panel[:, :, : here.shape[1]] = here.transpose(2, 0, 1)
        panels.append(panel.ravel())
        begun += part.columns
    return np.concatenate(panels)


def narrow() -> Machine:
    """This machine, without its widest vectors."""
    return replace(machine(), vector_bits=256, registers=16)


def drawn(*shape: int, element: str = "float") -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(DTYPES[element])


def surrounded(matrix: Array) -> Array:
    """The same numbers, with NaN before and behind them."""
    around = np.full(matrix.size + 200, np.nan, matrix.dtype)
    found = around[100 : 100 + matrix.size].reshape(matrix.shape)
    found[...] = matrix
    return found


def packed(cut: Columns, order: Order, matrix: Array, on: Machine, threads: int = 1) -> Array:
    """The panels, of memory that held NaN; what surrounds them must be as it was."""
    packer = Packer(cut, order, on, threads)
    around = np.full(packer.size + 64, np.nan, matrix.dtype)
    skip = -around.ctypes.data % 64 // matrix.itemsize + 64 // matrix.itemsize
    out = around[skip : skip + packer.size]
    packer.fill(out, surrounded(matrix))
    assert np.isnan(around[:skip]).all()
    assert np.isnan(around[skip + packer.size :]).all()
    return out


@pytest.mark.parametrize("on", [machine, narrow])
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_matrix_become_columns(size: int, gates: int, element: str, on: Any) -> None:
    lanes = on().lanes(element)
    for K in (1, 2, 15, 16, 35, 70):
        matrix = drawn(gates, size, K, element=element)
        for per in (None, 1, 2):
            cut = columns(size, gates, lanes, per)
            found = packed(cut, Order.of(gates, size, K), matrix, on())
            assert np.array_equal(found, expected(cut, matrix))


@pytest.mark.parametrize("on", [machine, narrow])
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("blocks", [(0,), (2, 0), (3, 1, 0, 2)])
@pytest.mark.parametrize("width", SIZES)
def test_blocks_in_any_order_transposed(
    width: int, blocks: tuple[int, ...], element: str, on: Any
) -> None:
    lanes = on().lanes(element)
    for size in (1, 5, 16, 33):
        matrix = drawn(4, size, width, element=element)
        for per in (None, 1, 2):
            cut = columns(width, 1, lanes, per)
            found = packed(cut, Order.transposed(size, width, blocks), matrix, on())
            beside = np.concatenate([matrix[k] for k in blocks]).T[None]
            assert np.array_equal(found, expected(cut, beside))


@pytest.mark.parametrize(("size", "gates"), [(5, 1), (64, 1), (50, 3), (131, 4)])
def test_a_number_for_each_column(size: int, gates: int) -> None:
    row = drawn(gates, size)
    cut = columns(size, gates, machine().lanes("float"))
    found = packed(cut, Order.row(gates, size), row, machine())
    assert np.array_equal(found, expected(cut, row[:, :, None]))


def test_gates_may_begin_anywhere() -> None:
    matrix = drawn(4, 20, 6)
    order = replace(Order.of(2, 20, 6), starts=((3 * 120, 120),))
    cut = columns(20, 2, machine().lanes("float"))
    found = packed(cut, order, matrix, machine())
    assert np.array_equal(found, expected(cut, matrix[[3, 1]]))


def test_runs_of_k_of_several_gates() -> None:
    matrix = drawn(3, 2, 20, 7)  # run, gate
    starts = tuple(tuple((run * 2 + gate) * 140 for gate in (1, 0)) for run in (2, 0, 1))
    cut = columns(20, 2, machine().lanes("float"))
    found = packed(cut, Order(starts, 7, column=7), matrix, machine())
    beside = np.concatenate([matrix[run, ::-1] for run in (2, 0, 1)], axis=2)
    assert np.array_equal(found, expected(cut, beside))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_same_on_any_number_of_threads(transposed: bool, streamed: bool) -> None:
    on = replace(machine(), cache=1 << 10) if streamed else machine()
    size, K = 531, 419
    matrix = drawn(1, size, K)
    order = Order.transposed(size, K) if transposed else Order.of(1, size, K)
    cut = columns(K if transposed else size, 1, on.lanes("float"))
    wanted = expected(cut, matrix.transpose(0, 2, 1) if transposed else matrix)
    for threads in (1, 2, 3):
        assert np.array_equal(packed(cut, order, matrix, on, threads), wanted)


def test_strides_of_which_none_is_1_are_refused() -> None:
    cut = columns(9, 1, machine().lanes("float"))
    with pytest.raises(ValueError, match="neither"):
        Packer(cut, Order.of_array(drawn(18, 46)[::2, ::2]), machine(), 1)


def test_special_numbers_keep_their_bits() -> None:
    bits = np.array([0x7FC00001, 0xFFA00002, 1, 0x80000000, 0x7F800000, 0xFF800000], np.uint32)
    matrix = np.resize(bits, (1, 40, 40)).view(np.float32)
    for order in (Order.of(1, 40, 40), Order.transposed(40, 40)):
        cut = columns(40, 1, machine().lanes("float"))
        found = packed(cut, order, matrix, machine()).view(np.uint32)
        turned = matrix.transpose(0, 2, 1) if order.column == 1 else matrix
        assert np.array_equal(found, expected(cut, turned.view(np.uint32)))


@pytest.mark.parametrize("K", [1, 6, 7])
def test_pairs_of_bfloat16_are_packed_as_one_number(K: int) -> None:
    matrix, cut = drawn(2, 21, K), columns(21, 2, machine().lanes("float"))
    cut = replace(cut, split=cut.split.paired)
    how = Packing(cut, Order.of(2, 21, -(-K // 2)), machine(), 1)
    found = how(matrix.reshape(42, K), None, Stock())
    assert np.array_equal(found.panels.view(np.uint32), expected(cut, paired(matrix)))


def test_sums_begin_from_what_is_given_or_zero() -> None:
    matrix, row = drawn(3, 21, 5), drawn(3, 21)
    cut = columns(21, 3, machine().lanes("float"))
    how = Packing(cut, Order.of(3, 21, 5), machine(), 1)
    given, nothing = how(matrix, row, Stock()), how(matrix, None, Stock())
    assert np.array_equal(given.init, expected(cut, row[:, :, None]))
    assert np.array_equal(nothing.init, np.zeros(cut.width))
    assert given.K == 5


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_is_read_as_it_lies(transposed: bool) -> None:
    matrix = drawn(23, 9).T if transposed else drawn(9, 23)
    cut = columns(9, 1, machine().lanes("float"))
    found = Packing(cut, Order.of_array(matrix), machine(), 1)(matrix, None, Stock())
    assert np.array_equal(found.panels, expected(cut, np.ascontiguousarray(matrix)[None]))


@pytest.mark.parametrize(("triple", "bits"), [("aarch64-unknown-linux-gnu", 128), ("x86_64", 256)])
def test_other_machines_get_code_too(triple: str, bits: int) -> None:
    present = {"neon"} if bits == 128 else {"avx2", "fma"}
    other = described(triple, "generic" if bits == 128 else "haswell", present)
    for element in DTYPES:
        assert compile_object(build(other.lanes(element), other), other)


def test_lent_memory_comes_back_when_nothing_shows_it() -> None:
    stock, dtype = Stock(), np.dtype(np.float32)
    first = stock.shaped((300, 300), dtype)
    place, first[...] = first.ctypes.data, 1
    part = first[100:].T[3:]
    del first
    gc.collect()
    assert stock.bytes == 0
    other = stock.shaped((300, 300), dtype)
    other[...] = 2
    assert (part == 1).all()
    del part
    gc.collect()
    assert stock.bytes == 300 * 300 * 4
    again = stock.shaped((300, 300), dtype)
    assert again.ctypes.data == place
    assert stock.bytes == 0


def test_panels_in_use_are_not_overwritten() -> None:
    cut, stock = columns(200, 1, machine().lanes("float")), Stock()
    how = Packing(cut, Order.of(1, 200, 150), machine(), 2)
    matrices = [drawn(200, 150) + k for k in range(3)]
    held = [how(matrix, None, stock) for matrix in matrices[:2]]
    places = {part.panels.ctypes.data for part in held}
    for part, matrix in zip(held, matrices, strict=False):
        assert np.array_equal(part.panels, expected(cut, matrix[None]))
    del part, held
    gc.collect()
    again = how(matrices[2], None, stock)
    assert again.panels.ctypes.data in places
    assert np.array_equal(again.panels, expected(cut, matrices[2][None]))


def test_memory_of_sizes_that_are_wanted_no_more_is_let_go() -> None:
    stock, dtype = Stock(), np.dtype(np.float64)
    old = stock.array(1 << 16, dtype)
    del old
    gc.collect()
    assert stock.bytes == 8 << 16
    assert stock.array(1 << 15, dtype).ctypes.data % 64 == 0
    gc.collect()
    assert stock.bytes == 8 << 15


def test_small_arrays_are_not_kept() -> None:
    stock = Stock()
    assert stock.array(64, np.dtype(np.float32)).ctypes.data % 64 == 0
    gc.collect()
    assert stock.bytes == 0
