"""Matrix products outside of the recurrence, compared with NumPy in double precision."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite.binding")

from compiled_ir import avx2_machine, before_protected_page, usable_machine

from lstm_cli.cells import Activation
from lstm_cli.cells.expression import symbol
from lstm_cli.engines.jit.codegen import matmul
from lstm_cli.engines.jit.codegen.ir import Module, VectorType
from lstm_cli.engines.jit.codegen.matmul import (
    Matmul,
    MemoryRows,
    build,
    least_padded_columns,
    matmul_kernel,
    pack_matrix,
    run_matmul,
)
from lstm_cli.engines.jit.codegen.tile import PanelShape, TileEmitter, split_columns
from lstm_cli.engines.jit.runtime.compiler import _simplify, _target, compile_object
from lstm_cli.engines.jit.runtime.machine import Machine, machine_from_features

SIZES = (1, 2, 7, 33, 100, 257)


@dataclass
class Problem:
    """Random operands; rows in random order, with NaN between them."""

    rows: int
    K: int
    size: int
    dtype: Any = np.float32
    times: int = 1
    gap: int = 5

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.rows, self.K, self.size, self.times])
        self.a = rng.standard_normal((self.rows, self.times, self.K)).astype(self.dtype)
        self.w = rng.standard_normal((self.size, self.times * self.K)).astype(self.dtype)
        self.b = rng.standard_normal(self.size).astype(self.dtype)
        width = self.times * (self.K + self.gap)
        self.memory = np.full((self.rows + 1, width), np.nan, self.dtype)
        self.order = rng.permutation(self.rows)
        self.spread = self.memory[: self.rows].reshape(self.rows, self.times, width // self.times)
        self.spread[self.order, :, : self.K] = self.a
        self.out = np.full((self.rows + 1, self.size + 3), -7.0, self.dtype)

    def operands(self, **changes: Any) -> Matmul:
        a = MemoryRows.of(self.memory, self.order * self.memory.shape[1])
        out = MemoryRows.of(self.out, self.order[::-1] * self.out.shape[1])
        weights = pack_matrix(self.w, self.b, changes.pop("machine", None))
        gap = self.K + self.gap
        return Matmul(self.rows, a, weights, out, times=self.times, skip=gap, **changes)

    def run(self, threads: int = 1, on: Machine | None = None, **changes: Any) -> np.ndarray:
        """The rows of `out`; numbers between the rows must be unchanged."""
        operands = self.operands(machine=on, **changes)
        run_matmul(matmul_kernel(operands.weights.columns.split, machine=on), operands, threads)
        return self.result()

    def result(self) -> np.ndarray:
        assert (self.out[:, self.size :] == -7).all()
        assert (self.out[self.rows] == -7).all()
        return self.out[self.order[::-1], : self.size].copy()

    @property
    def expected(self) -> np.ndarray:
        flat = self.a.reshape(self.rows, -1).astype(np.float64)
        return flat @ self.w.T.astype(np.float64) + self.b

    @property
    def tolerance(self) -> float:
        return float(20 * np.finfo(self.dtype).eps * (1 + self.times * self.K) ** 0.5)

    def check(self, result: np.ndarray) -> None:
        np.testing.assert_allclose(result, self.expected, rtol=1e-5, atol=self.tolerance)


@pytest.fixture(autouse=True)
def _many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_MIN_THREAD_WORK", 1)
    usable_machine()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("K", SIZES)
def test_matches_numpy(K: int, size: int, dtype: Any) -> None:
    for rows in (1, 7, 33):
        problem = Problem(rows, K, size, dtype)
        problem.check(problem.run())


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("K", [1, 7, 32, 33])
def test_runs_of_numbers_with_gaps(times: int, K: int) -> None:
    problem = Problem(29, K, 141, times=times)
    problem.check(problem.run())


@pytest.mark.parametrize(("rows", "size"), [(1, 257), (5, 100), (300, 33), (1000, 7)])
def test_same_bits_for_any_number_of_threads(rows: int, size: int) -> None:
    problem = Problem(rows, 50, size)
    single = problem.run(1)
    problem.check(single)
    for threads in (2, 3):
        problem.out[:, :size] = -7
        np.testing.assert_array_equal(problem.run(threads), single)


def test_same_bits_for_a_single_row() -> None:
    problem = Problem(100, 70, 90)
    together = problem.run()
    for row in (0, 41, 99):
        one, out = problem.a[row].copy(), np.empty((1, 90), np.float32)
        operands = replace(
            problem.operands(), rows=1, a=MemoryRows.of(one), out=MemoryRows.of(out), times=1
        )
        run_matmul(matmul_kernel(operands.weights.columns.split), operands, 1)
        np.testing.assert_array_equal(out[0], together[row])


def test_small_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(500, 64, 130)
    whole = problem.run()
    operands = problem.operands()
    kernel = replace(matmul_kernel(operands.weights.columns.split), cache=16_000)
    problem.out[:, :130] = -7
    run_matmul(kernel, operands, 2)
    np.testing.assert_array_equal(problem.result(), whole)


def test_no_rows() -> None:
    problem = Problem(0, 3, 4)
    assert problem.run().shape == (0, 4)


def test_rows_at_even_distances() -> None:
    problem = Problem(31, 19, 23, gap=4)
    out = np.full((31, 23), np.nan, np.float32)
    problem.order = np.arange(31)
    problem.spread[:, 0, :19] = problem.a[:, 0]
    operands = replace(problem.operands(), a=MemoryRows.of(problem.memory), out=MemoryRows.of(out))
    run_matmul(matmul_kernel(operands.weights.columns.split), operands, 1)
    problem.check(out)


@pytest.mark.parametrize("size", [5, 16, 70])
def test_activation_and_its_argument(size: int) -> None:
    problem = Problem(37, 11, size)
    logits = np.full((37, size), np.nan, np.float32)
    elu = Activation("elu", alpha=0.3)
    operands = problem.operands(sums=MemoryRows.of(logits))
    kernel = matmul_kernel(operands.weights.columns.split, elu(symbol("a")))
    run_matmul(kernel, operands, 1)
    problem.check(logits)
    np.testing.assert_allclose(problem.result(), elu(problem.expected), rtol=1e-4, atol=1e-5)
    problem.out[:, :size] = -7
    run_matmul(kernel, replace(operands, sums=None), 1)
    np.testing.assert_allclose(problem.result(), elu(problem.expected), rtol=1e-4, atol=1e-5)


def test_results_added_to_the_output() -> None:
    problem = Problem(20, 13, 37)
    first = problem.run()
    twice = problem.run(add=True)
    np.testing.assert_array_equal(twice, first + first)


def test_nan_and_infinity_stay_in_their_rows() -> None:
    problem = Problem(20, 13, 37)
    problem.spread[problem.order[3], 0, 12] = np.nan
    problem.spread[problem.order[4], 0, 0] = np.inf
    result = problem.run()
    assert np.isnan(result[3]).all()
    assert np.isinf(result[4]).all()
    others = [row for row in range(20) if row not in (3, 4)]
    expected = problem.expected[others]
    np.testing.assert_allclose(result[others], expected, rtol=1e-5, atol=problem.tolerance)


def test_a_wrong_weight_shows() -> None:
    problem = Problem(9, 33, 41)
    right = problem.run()
    problem.w[40, 32] += 1
    wrong = problem.run()
    assert (right[:, 40] != wrong[:, 40]).all()
    np.testing.assert_array_equal(right[:, :40], wrong[:, :40])


def test_no_access_past_the_last_number() -> None:
    problem = Problem(5, 33, 41)
    a, out = (
        before_protected_page(problem.a[:, 0]),
        before_protected_page(np.zeros((5, 41), np.float32)),
    )
    operands = replace(problem.operands(), a=MemoryRows.of(a), out=MemoryRows.of(out))
    run_matmul(matmul_kernel(operands.weights.columns.split), operands, 1)
    problem.check(out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 33, 50])
def test_avx2(size: int, dtype: Any) -> None:
    problem = Problem(29, 33, size, dtype)
    problem.check(problem.run(on=avx2_machine()))
    problem.check(problem.run(threads=2, on=avx2_machine()))


@pytest.mark.parametrize("size", [1, 50, 64])
def test_neon_compiles(size: int) -> None:
    neon = machine_from_features("aarch64-unknown-linux-gnu", "neoverse-n1", {"neon"})
    for element in ("float", "double"):
        split = split_columns(size, 1, neon.vector(element)).split
        module = build(split, Activation("tanh")(symbol("a")), neon)
        assert len(compile_object(module, neon)) > 1000


@pytest.mark.parametrize(("size", "padded"), [(1, 8), (16, 16), (33, 40), (40, 40), (50, 56)])
def test_the_last_panel_has_little_padding(size: int, padded: int) -> None:
    assert least_padded_columns(size, VectorType("float", 16)).padded == padded


@pytest.mark.parametrize("gates", [1, 2, 3, 4])
@pytest.mark.parametrize("element", ["float", "double"])
def test_tiles_stay_in_sixteen_registers(gates: int, element: str) -> None:
    from llvmlite import binding as llvm

    haswell = machine_from_features("x86_64-unknown-linux-gnu", "haswell", {"avx2", "fma"})
    part, module = PanelShape(gates, 1, haswell.vector(element)), Module()
    TileEmitter(module, haswell).product(part)
    module.function("main", {}, exported=True).ret()
    target = _target(haswell)
    head = f'target datalayout = "{target.target_data}"\ntarget triple = "{target.triple}"\n'
    text = head + str(module).replace("internal ", "")  # what is internal and not called is dropped
    with llvm.create_context() as context, llvm.parse_assembly(text, context) as parsed:
        _simplify(parsed, target)
        assembly = target.emit_assembly(parsed)
    assert assembly.count("vfmadd") > 10
    # A sum that is kept in memory waits for itself in every step: less than half of the speed.
    loads = re.findall(r"(?:vfmadd\w+|vmov[au]p[sd])\s+-?\d*\(%rsp\), %", assembly)
    assert len(loads) <= (8 if gates == 1 else 0)
