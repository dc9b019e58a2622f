"""Weights packed natively, compared with packing in NumPy."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite.binding")

from compiled_ir import usable_machine

from lstm_cli.engines.jit.codegen.packing import (
    MatrixLayout,
    Packer,
    PanelPacking,
    bfloat16_pairs,
    build,
)
from lstm_cli.engines.jit.codegen.tile import Columns, split_columns
from lstm_cli.engines.jit.runtime.compiler import compile_object
from lstm_cli.engines.jit.runtime.machine import Machine, machine_from_features
from lstm_cli.engines.jit.runtime.memory import ArrayPool

Array = np.ndarray[Any, Any]

SIZES = (1, 3, 8, 16, 17, 50, 64, 100, 131)
DTYPES = {"float": np.float32, "double": np.float64}


def expected(columns: Columns, matrix: Array) -> Array:
    """A matrix (gates, size, K) as panels, each [k][gate][column]; 0 in the padding."""
    panels, first = [], 0
    shapes = [columns.split.main] * columns.count + (
        [columns.split.tail] if columns.split.tail else []
    )
    for shape in shapes:
        here = matrix[:, first : first + shape.columns]
        panel = np.zeros((matrix.shape[2], len(matrix), shape.columns), matrix.dtype)
        panel[:, :, : here.shape[1]] = here.transpose(2, 0, 1)
        panels.append(panel.ravel())
        first += shape.columns
    return np.concatenate(panels)


def narrow() -> Machine:
    """This machine, without its widest vectors."""
    return replace(usable_machine(), vector_bits=256, registers=16)


def random_matrix(*shape: int, element: str = "float") -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(DTYPES[element])


def surrounded(matrix: Array) -> Array:
    """A copy of a matrix with NaN before and after it in memory."""
    around = np.full(matrix.size + 200, np.nan, matrix.dtype)
    copy = around[100 : 100 + matrix.size].reshape(matrix.shape)
    copy[...] = matrix
    return copy


def packed(
    columns: Columns, layout: MatrixLayout, matrix: Array, on: Machine, threads: int = 1
) -> Array:
    """Panels in memory that held NaN; the memory around them must be unchanged."""
    packer = Packer(columns, layout, on, threads)
    around = np.full(packer.size + 64, np.nan, matrix.dtype)
    skip = -around.ctypes.data % 64 // matrix.itemsize + 64 // matrix.itemsize
    out = around[skip : skip + packer.size]
    packer.fill(out, surrounded(matrix))
    assert np.isnan(around[:skip]).all()
    assert np.isnan(around[skip + packer.size :]).all()
    return out


@pytest.mark.parametrize("on", [usable_machine, narrow])
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_matrix_become_columns(size: int, gates: int, element: str, on: Any) -> None:
    vector = on().vector(element)
    for K in (1, 2, 15, 16, 35, 70):
        matrix = random_matrix(gates, size, K, element=element)
        for gate_vectors in (None, 1, 2):
            columns = split_columns(size, gates, vector, gate_vectors)
            panels = packed(columns, MatrixLayout.of(gates, size, K), matrix, on())
            assert np.array_equal(panels, expected(columns, matrix))


@pytest.mark.parametrize("on", [usable_machine, narrow])
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("blocks", [(0,), (2, 0), (3, 1, 0, 2)])
@pytest.mark.parametrize("width", SIZES)
def test_blocks_in_any_order_transposed(
    width: int, blocks: tuple[int, ...], element: str, on: Any
) -> None:
    vector = on().vector(element)
    for size in (1, 5, 16, 33):
        matrix = random_matrix(4, size, width, element=element)
        for gate_vectors in (None, 1, 2):
            columns = split_columns(width, 1, vector, gate_vectors)
            panels = packed(columns, MatrixLayout.transposed(size, width, blocks), matrix, on())
            blocks_in_order = np.concatenate([matrix[k] for k in blocks]).T[None]
            assert np.array_equal(panels, expected(columns, blocks_in_order))


@pytest.mark.parametrize(("size", "gates"), [(5, 1), (64, 1), (50, 3), (131, 4)])
def test_a_number_for_each_column(size: int, gates: int) -> None:
    row = random_matrix(gates, size)
    columns = split_columns(size, gates, usable_machine().vector("float"))
    panels = packed(columns, MatrixLayout.row(gates, size), row, usable_machine())
    assert np.array_equal(panels, expected(columns, row[:, :, None]))


def test_gates_may_begin_anywhere() -> None:
    matrix = random_matrix(4, 20, 6)
    layout = replace(MatrixLayout.of(2, 20, 6), starts=((3 * 120, 120),))
    columns = split_columns(20, 2, usable_machine().vector("float"))
    panels = packed(columns, layout, matrix, usable_machine())
    assert np.array_equal(panels, expected(columns, matrix[[3, 1]]))


def test_runs_of_k_of_several_gates() -> None:
    matrix = random_matrix(3, 2, 20, 7)  # run, gate
    starts = tuple(tuple((run * 2 + gate) * 140 for gate in (1, 0)) for run in (2, 0, 1))
    columns = split_columns(20, 2, usable_machine().vector("float"))
    panels = packed(columns, MatrixLayout(starts, 7, column=7), matrix, usable_machine())
    blocks_in_order = np.concatenate([matrix[run, ::-1] for run in (2, 0, 1)], axis=2)
    assert np.array_equal(panels, expected(columns, blocks_in_order))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_panels_on_any_number_of_threads(transposed: bool, streamed: bool) -> None:
    on = replace(usable_machine(), cache=1 << 10) if streamed else usable_machine()
    size, K = 531, 419
    matrix = random_matrix(1, size, K)
    layout = MatrixLayout.transposed(size, K) if transposed else MatrixLayout.of(1, size, K)
    columns = split_columns(K if transposed else size, 1, on.vector("float"))
    reference = expected(columns, matrix.transpose(0, 2, 1) if transposed else matrix)
    for threads in (1, 2, 3):
        assert np.array_equal(packed(columns, layout, matrix, on, threads), reference)


def test_strides_of_which_none_is_1_are_refused() -> None:
    columns = split_columns(9, 1, usable_machine().vector("float"))
    with pytest.raises(ValueError, match="neither"):
        Packer(columns, MatrixLayout.of_array(random_matrix(18, 46)[::2, ::2]), usable_machine(), 1)


def test_special_numbers_keep_their_bits() -> None:
    bits = np.array([0x7FC00001, 0xFFA00002, 1, 0x80000000, 0x7F800000, 0xFF800000], np.uint32)
    matrix = np.resize(bits, (1, 40, 40)).view(np.float32)
    for layout in (MatrixLayout.of(1, 40, 40), MatrixLayout.transposed(40, 40)):
        columns = split_columns(40, 1, usable_machine().vector("float"))
        panels = packed(columns, layout, matrix, usable_machine()).view(np.uint32)
        turned = matrix.transpose(0, 2, 1) if layout.column == 1 else matrix
        assert np.array_equal(panels, expected(columns, turned.view(np.uint32)))


@pytest.mark.parametrize("K", [1, 6, 7])
def test_pairs_of_bfloat16_are_packed_as_one_number(K: int) -> None:
    matrix = random_matrix(2, 21, K)
    columns = split_columns(21, 2, usable_machine().vector("float"))
    columns = replace(columns, split=columns.split.with_bf16)
    packing = PanelPacking(columns, MatrixLayout.of(2, 21, -(-K // 2)), usable_machine(), 1)
    panels = packing(matrix.reshape(42, K), None, ArrayPool())
    assert np.array_equal(panels.panels.view(np.uint32), expected(columns, bfloat16_pairs(matrix)))


def test_sums_start_from_given_values_or_zero() -> None:
    matrix, row = random_matrix(3, 21, 5), random_matrix(3, 21)
    columns = split_columns(21, 3, usable_machine().vector("float"))
    packing = PanelPacking(columns, MatrixLayout.of(3, 21, 5), usable_machine(), 1)
    with_init, without_init = packing(matrix, row, ArrayPool()), packing(matrix, None, ArrayPool())
    assert np.array_equal(with_init.init, expected(columns, row[:, :, None]))
    assert np.array_equal(without_init.init, np.zeros(columns.width))
    assert with_init.K == 5


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_is_read_in_its_layout(transposed: bool) -> None:
    matrix = random_matrix(23, 9).T if transposed else random_matrix(9, 23)
    columns = split_columns(9, 1, usable_machine().vector("float"))
    panels = PanelPacking(columns, MatrixLayout.of_array(matrix), usable_machine(), 1)(
        matrix, None, ArrayPool()
    )
    assert np.array_equal(panels.panels, expected(columns, np.ascontiguousarray(matrix)[None]))


@pytest.mark.parametrize(("triple", "bits"), [("aarch64-unknown-linux-gnu", 128), ("x86_64", 256)])
def test_other_machines_get_code_too(triple: str, bits: int) -> None:
    present = {"neon"} if bits == 128 else {"avx2", "fma"}
    other = machine_from_features(triple, "generic" if bits == 128 else "haswell", present)
    for element in DTYPES:
        assert compile_object(build(other.vector(element), other), other)


def test_lent_memory_comes_back_when_no_array_shows_it() -> None:
    array_pool, dtype = ArrayPool(), np.dtype(np.float32)
    first = array_pool.shaped((300, 300), dtype)
    place, first[...] = first.ctypes.data, 1
    part = first[100:].T[3:]
    del first
    gc.collect()
    assert array_pool.bytes == 0
    other = array_pool.shaped((300, 300), dtype)
    other[...] = 2
    assert (part == 1).all()
    del part
    gc.collect()
    assert array_pool.bytes == 300 * 300 * 4
    again = array_pool.shaped((300, 300), dtype)
    assert again.ctypes.data == place
    assert array_pool.bytes == 0


def test_panels_in_use_are_not_overwritten() -> None:
    columns, array_pool = split_columns(200, 1, usable_machine().vector("float")), ArrayPool()
    packing = PanelPacking(columns, MatrixLayout.of(1, 200, 150), usable_machine(), 2)
    matrices = [random_matrix(200, 150) + k for k in range(3)]
    packed_matrices = [packing(matrix, None, array_pool) for matrix in matrices[:2]]
    places = {part.panels.ctypes.data for part in packed_matrices}
    for part, matrix in zip(packed_matrices, matrices, strict=False):
        assert np.array_equal(part.panels, expected(columns, matrix[None]))
    del part, packed_matrices
    gc.collect()
    again = packing(matrices[2], None, array_pool)
    assert again.panels.ctypes.data in places
    assert np.array_equal(again.panels, expected(columns, matrices[2][None]))


def test_memory_of_unused_sizes_is_freed() -> None:
    array_pool, dtype = ArrayPool(), np.dtype(np.float64)
    old = array_pool.array(1 << 16, dtype)
    del old
    gc.collect()
    assert array_pool.bytes == 8 << 16
    assert array_pool.array(1 << 15, dtype).ctypes.data % 64 == 0
    gc.collect()
    assert array_pool.bytes == 8 << 15


def test_small_arrays_are_not_kept() -> None:
    array_pool = ArrayPool()
    assert array_pool.array(64, np.dtype(np.float32)).ctypes.data % 64 == 0
    gc.collect()
    assert array_pool.bytes == 0
