"""Derivatives of weights, compared with NumPy in double precision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite.binding")

from compiled_ir import avx2_machine, before_protected_page, usable_machine

from lstm_cli.engines.jit.codegen import weight_gradient
from lstm_cli.engines.jit.codegen.matmul import MemoryRows
from lstm_cli.engines.jit.codegen.tile import split_columns
from lstm_cli.engines.jit.codegen.weight_gradient import (
    WeightGradient,
    WeightGradientKernel,
    build,
    run_weight_gradient,
    weight_gradient_kernel,
)
from lstm_cli.engines.jit.runtime.compiler import compile_object
from lstm_cli.engines.jit.runtime.machine import Machine, machine_from_features
from lstm_cli.engines.jit.runtime.memory import Workspace

SIZES = (1, 2, 7, 33, 100, 257)


@dataclass
class Problem:
    """Random operands: gates in any slots, `a` in random order, NaN between them."""

    steps: int
    units: int
    size: int
    gates: tuple[int, ...] = (0,)
    dtype: Any = np.float32
    space: Workspace = field(default_factory=Workspace)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.steps, self.units, self.size])
        Q, H, D, G = self.steps, self.units, self.size, len(self.gates)
        self.dz = rng.standard_normal((Q, G, H)).astype(self.dtype)
        self.a = rng.standard_normal((Q, D)).astype(self.dtype)
        self.slots = np.full((Q, max(self.gates) + 2, H + 3), np.nan, self.dtype)
        self.slots[:, self.gates, :H] = self.dz
        self.order = rng.permutation(Q)
        self.lines = np.full((Q + 1, D + 2), np.nan, self.dtype)
        self.lines[self.order, :D] = self.a
        self.out = np.full((G * H + 1, D), 7.0, self.dtype)
        self.bias = np.full(G * H + 1, 7.0, self.dtype)

    def kernel(self, on: Machine | None = None) -> WeightGradientKernel:
        element = "float" if self.dtype == np.float32 else "double"
        return weight_gradient_kernel(self.size, element, on)

    def gradient(self, *, bias: bool = True) -> WeightGradient:
        row = self.slots.shape[1] * self.slots.shape[2]
        places = np.array(self.gates, np.int64) * self.slots.shape[2]
        return WeightGradient(
            self.steps,
            MemoryRows.of(self.slots.reshape(self.steps, row)),
            places,
            self.units,
            MemoryRows.of(self.lines, self.order * (self.size + 2)),
            self.out[:-1],
            self.bias[:-1] if bias else None,
        )

    def run(self, threads: int = 1, on: Machine | None = None, **changes: Any) -> np.ndarray:
        """Derivatives of the weights and, as a last column, of the bias."""
        self.out[:-1], self.bias[:-1] = np.nan, np.nan
        gradient = replace(self.gradient(), **changes)
        run_weight_gradient(self.kernel(on), gradient, self.space, threads)
        assert (self.out[-1] == 7).all()
        assert self.bias[-1] == 7
        return np.concatenate([self.out[:-1], self.bias[:-1, None]], axis=1)

    @property
    def expected(self) -> np.ndarray:
        flat = self.dz.reshape(self.steps, -1).astype(np.float64)
        result = flat.T @ self.a.astype(np.float64)
        return np.concatenate([result, flat.sum(axis=0)[:, None]], axis=1)

    def check(self, result: np.ndarray) -> None:
        atol = float(20 * np.finfo(self.dtype).eps * (1 + self.steps) ** 0.5)
        np.testing.assert_allclose(result, self.expected, rtol=1e-5, atol=atol)


@pytest.fixture(autouse=True)
def _many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradient, "_MIN_THREAD_WORK", 1)
    usable_machine()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("units", SIZES)
def test_matches_numpy(units: int, size: int, dtype: Any) -> None:
    for steps in (1, 7, 523):
        problem = Problem(steps, units, size, dtype=dtype)
        problem.check(problem.run())


@pytest.mark.parametrize("size", [1, 7, 50, 100])
@pytest.mark.parametrize("gates", [(0, 1, 2, 3), (3, 1), (2, 0, 5)])
def test_gates_in_slots(gates: tuple[int, ...], size: int) -> None:
    problem = Problem(270, 19, size, gates)
    problem.check(problem.run())


@pytest.mark.parametrize("gates", [(0,), (2, 0, 1)])
@pytest.mark.parametrize(
    ("units", "size"), [(1, 1), (40, 2), (7, 200), (100, 33), (130, 130), (300, 5)]
)
def test_same_bits_for_any_number_of_threads(units: int, size: int, gates: tuple[int, ...]) -> None:
    problem = Problem(1100, units, size, gates)
    single = problem.run(1)
    problem.check(single)
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(problem.run(threads), single)


@pytest.mark.parametrize("units", [1, 40])
def test_no_steps(units: int) -> None:
    problem = Problem(0, units, 5)
    assert (problem.run() == 0).all()


@pytest.mark.parametrize("size", [3, 20])
def test_bias_not_wanted(size: int) -> None:
    problem = Problem(40, 33, size)
    result = problem.run(bias=None)
    assert np.isnan(result[:, -1]).all()
    result[:, -1] = problem.expected[:, -1]
    problem.check(result)


@pytest.mark.parametrize("size", [3, 100])
def test_derivatives_anywhere(size: int) -> None:
    problem = Problem(300, 33, size, (1, 0))
    rng = np.random.default_rng(8)
    order = rng.permutation(300)
    rows = np.full_like(problem.slots, np.nan)
    rows[order] = problem.slots
    row = rows.shape[1] * rows.shape[2]
    problem.check(problem.run(2, dz=MemoryRows.of(rows, order * row)))


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("size", [3, 41, 100])
def test_nothing_behind_the_last_number_is_touched(size: int, offsets: bool) -> None:
    problem = Problem(300, 33, size)
    where = np.arange(300)
    dz, a = before_protected_page(problem.dz[:, 0]), before_protected_page(problem.a)
    out, bias = before_protected_page(problem.out[:-1]), before_protected_page(problem.bias[:-1])
    gradient = replace(problem.gradient(), a=MemoryRows.of(a), out=out, bias=bias)
    gradient = replace(gradient, dz=MemoryRows.of(dz, where * 33) if offsets else MemoryRows.of(dz))
    run_weight_gradient(problem.kernel(), gradient, problem.space, 2)
    problem.check(np.concatenate([out, bias[:, None]], axis=1))


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_every_thread_has_a_part_of_its_own(threads: int) -> None:
    for strips in (1, 3, 22, 170):
        for panels in (0, 1, 2, 5):
            rows, across = weight_gradient._grid(strips, panels, threads)
            assert 1 <= rows * across <= threads
            assert across <= max(panels, 1)


@pytest.mark.parametrize("size", [100, 257])
def test_smaller_cache(size: int) -> None:
    problem = Problem(600, 40, size)
    whole = problem.kernel()
    small = replace(
        whole,
        block=weight_gradient._block_steps(whole.columns.split, replace(usable_machine(), cache=0)),
    )
    assert small.block < whole.block
    run_weight_gradient(small, problem.gradient(), problem.space, 3)
    problem.check(np.concatenate([problem.out[:-1], problem.bias[:-1, None]], axis=1))


def test_last_step_and_last_numbers_count() -> None:
    problem = Problem(513, 33, 41)
    right = problem.run()
    problem.slots[512, 0, 32] += 1
    wrong = problem.run()
    assert (right[32] != wrong[32]).all()
    np.testing.assert_array_equal(right[:32], wrong[:32])


def test_nan_stays_in_its_row_and_column() -> None:
    problem = Problem(50, 33, 41)
    problem.slots[7, 0, 5] = np.nan
    problem.lines[problem.order[9], 11] = np.inf
    result = problem.run()
    assert np.isnan(result[5]).all()
    assert not np.isfinite(result[:, 11]).any()
    result[5], result[:, 11] = problem.expected[5], problem.expected[:, 11]
    problem.check(result)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 3, 33, 50])
def test_avx2(size: int, dtype: Any) -> None:
    problem = Problem(300, 33, size, (1, 0), dtype)
    problem.check(problem.run(on=avx2_machine()))
    problem.check(problem.run(2, on=avx2_machine()))


@pytest.mark.parametrize("size", [1, 50, 64])
def test_neon_compiles(size: int) -> None:
    neon = machine_from_features("aarch64-unknown-linux-gnu", "neoverse-n1", {"neon"})
    for element in ("float", "double"):
        module = build(split_columns(size, 1, neon.vector(element)).split, neon)
        assert len(compile_object(module, neon)) > 1000
