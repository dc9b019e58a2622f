"""Expressions on whole arrays, compared with NumPy at every place and number of threads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from compiled_ir import usable_machine

from lstm_cli.cells.expression import Expression, exp, select, sqrt, symbol
from lstm_cli.engines.jit.codegen.elementwise import (
    CHUNK,
    MIN_THREAD_CHUNKS,
    ElementwiseTask,
    build,
    evaluate_elementwise,
    sum_elementwise,
)
from lstm_cli.engines.jit.codegen.ir import literal
from lstm_cli.engines.jit.runtime.compiler import compile_object
from lstm_cli.engines.jit.runtime.machine import (
    Machine,
    machine_from_features,
)
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.training.optimizers import OPTIMIZERS, Optimizer, make_optimizer

pytest.importorskip("llvmlite")

KINDS = [
    *({"type": kind} for kind in OPTIMIZERS),
    {"type": "sgd", "momentum": 0.9},
    {"type": "sgd", "momentum": 0.9, "nesterov": True},
    {"type": "rmsprop", "momentum": 0.5},
]
LARGE = CHUNK * MIN_THREAD_CHUNKS * 3 + 5
"""Elements for three threads, not a multiple of a vector."""
TOLERANCES = {"f4": 1e-6, "f8": 1e-14}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", "")


@pytest.fixture(scope="module")
def machine() -> Machine:
    return usable_machine()


def update(optimizer: Optimizer) -> dict[str, Expression]:
    numbers = {name: symbol(name) for name in optimizer.numbers(0.1, 1)}
    slots = {name: symbol(name) for name in optimizer.slots}
    w, kept = optimizer.equation(symbol("w"), symbol("g"), slots, numbers)
    return {"w": w} | kept


def drawn(names: Any, shape: Any, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Positive numbers, as means of squares are."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.1, 2.0, shape).astype(dtype) for name in names}


def mapped(
    machine: Machine,
    roots: Mapping[str, Expression],
    arrays: Mapping[str, Any],
    numbers: Mapping[str, float],
    threads: int = 1,
) -> dict[str, Any]:
    """Results in arrays of their own, filled before with what is no result."""
    first = next(iter(arrays.values()))
    out = {name: np.full_like(first, -77) for name in roots}
    evaluate_elementwise(roots, {**arrays, **numbers}, out, machine, threads)
    return out


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_optimizer(machine: Machine, options: dict[str, Any], dtype: str) -> None:
    optimizer = make_optimizer(options)
    arrays = drawn(["w", "g", *optimizer.slots], (37, 11), dtype)
    for step, rate in ((1, 0.1), (7, 0.03)):  # with the same kernel
        numbers = optimizer.numbers(rate, step)
        actual = mapped(machine, update(optimizer), arrays, numbers)
        wide = {name: array.astype(np.longdouble) for name, array in arrays.items()}
        w, slots = optimizer.equation(wide["w"], wide["g"], wide, numbers)
        for name, expected in ({"w": w} | slots).items():
            np.testing.assert_allclose(
                actual[name], expected.astype("f8"), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
            )


def test_an_elements_bits_do_not_depend_on_where_it_stands(machine: Machine) -> None:
    optimizer = make_optimizer({"type": "adam"})
    roots, numbers = update(optimizer), optimizer.numbers(0.1, 3)
    whole = drawn(["w", "g", *optimizer.slots], 80, "f4")
    expected = mapped(machine, roots, whole, numbers)
    for size in range(1, 71):
        for start in (0, 9):
            part = {name: array[start : start + size] for name, array in whole.items()}
            actual = mapped(machine, roots, part, numbers)
            for name, value in actual.items():
                np.testing.assert_array_equal(value, expected[name][start : start + size])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_results_may_take_the_place_of_inputs_and_nothing_else(
    machine: Machine, dtype: str
) -> None:
    optimizer = make_optimizer({"type": "adadelta"})
    roots, numbers = update(optimizer), optimizer.numbers(0.1, 1)
    for size in (1, 15, 16, 17, 63, 70, CHUNK, CHUNK + 1):
        memory = drawn(["w", "g", *optimizer.slots], size + 40, dtype)
        before = {name: array.copy() for name, array in memory.items()}
        arrays = {name: array[20 : size + 20] for name, array in memory.items()}
        expected = mapped(machine, roots, arrays, numbers)
        evaluate_elementwise(
            roots, {**arrays, **numbers}, {name: arrays[name] for name in roots}, machine
        )
        for name, value in before.items():
            value[20 : size + 20] = expected.get(name, value[20 : size + 20])
            np.testing.assert_array_equal(memory[name], value)


def test_two_arrays_change_places(machine: Machine) -> None:
    roots = {"a": symbol("b"), "b": symbol("a")}
    for evaluate in (lambda *call: evaluate_elementwise(*call, machine), NUMPY.evaluate):
        arrays = drawn("ab", 50, "f4")
        before = {name: array.copy() for name, array in arrays.items()}
        evaluate(roots, arrays, arrays)
        np.testing.assert_array_equal(arrays["a"], before["b"])
        np.testing.assert_array_equal(arrays["b"], before["a"])


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(machine: Machine, threads: int) -> None:
    optimizer = make_optimizer({"type": "rmsprop"})
    roots, numbers = update(optimizer), optimizer.numbers(0.1, 1)
    arrays = drawn(["w", "g", "v"], LARGE, "f4")
    expected = mapped(machine, roots, arrays, numbers)
    actual = mapped(machine, roots, arrays, numbers, threads)
    assert not (expected["w"] == -77).any()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name])
    square = symbol("g") * symbol("g")
    totals = {sum_elementwise(square, {"g": arrays["g"]}, machine, n) for n in (1, threads)}
    assert len(totals) == 1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "size", [*range(1, 71), CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 33, LARGE]
)
def test_a_sum_is_in_double_precision(machine: Machine, size: int, dtype: str) -> None:
    x, y = symbol("x"), symbol("y")
    arrays = drawn("xy", size, dtype)
    root = select(x < y, exp(x) * symbol("n"), sqrt(y))
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    expected = math.fsum(
        np.where(wide["x"] < wide["y"], np.exp(wide["x"]) * 0.3, np.sqrt(wide["y"]))
    )
    actual = sum_elementwise(root, {**arrays, "n": 0.3}, machine)
    assert actual == pytest.approx(expected, rel=1e-14)
    assert NUMPY.total(root, {**arrays, "n": 0.3}) == pytest.approx(expected, rel=1e-14)


def test_squares_of_single_precision_do_not_overflow(machine: Machine) -> None:
    g = np.full(33, 1e30, np.float32)
    assert sum_elementwise(symbol("g") * symbol("g"), {"g": g}, machine) == pytest.approx(33e60)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_where_it_is(machine: Machine, bad: float) -> None:
    root = {"y": symbol("x") * 2.0 + 1.0}
    for place in (0, 17, 35, 36):
        x = drawn("x", 37, "f4")["x"]
        x[place] = bad
        actual = mapped(machine, root, {"x": x}, {})["y"]
        np.testing.assert_array_equal(actual, x * 2 + 1)
        assert not math.isfinite(sum_elementwise(symbol("x"), {"x": x}, machine))


def test_nothing_at_all(machine: Machine) -> None:
    empty = np.zeros((0, 3), np.float32)
    evaluate_elementwise({"x": symbol("x") + 1.0}, {"x": empty}, {"x": empty}, machine)
    assert sum_elementwise(symbol("x"), {"x": empty}, machine) == 0.0


def test_numbers_are_no_part_of_the_kernel() -> None:
    """A rate that changes with every step must not be compiled with every step."""
    root = (("y", symbol("x") * symbol("rate")),)
    task = ElementwiseTask(root, ("x",), "float")
    assert task.scalars == ("rate",)
    assert task.name == ElementwiseTask(root, ("x",), "float").name
    others = [
        ElementwiseTask(root, ("x",), "double"),
        ElementwiseTask(root, ("x", "rate"), "float"),
    ]
    others += [ElementwiseTask(root, ("x",), "float", summed=True)]
    others += [ElementwiseTask((("y", symbol("x") * symbol("other")),), ("x",), "float")]
    others += [ElementwiseTask((("y", symbol("rate") * symbol("x")),), ("x",), "float")]
    others += [ElementwiseTask((("y", symbol("x") + symbol("rate")),), ("x",), "float")]
    others += [ElementwiseTask((("z", symbol("x") * symbol("rate")),), ("x",), "float")]
    assert len({task.name, *(other.name for other in others)}) == 1 + len(others)


def test_arrays_that_do_not_fit_are_refused(machine: Machine) -> None:
    x = np.ones((4, 6), np.float32)
    roots = {"y": symbol("a") + symbol("b")}
    gaps = [x.T, x[:, ::2], x[:2], x.ravel()]
    kinds = [x.astype("f8"), x.astype(">f4"), x.astype(int)]
    for b in [*gaps, *kinds]:
        for out in (b, np.empty_like(x)):
            with pytest.raises(ValueError, match="are needed"):
                evaluate_elementwise(roots, {"a": x, "b": b}, {"y": out}, machine)
    for b in gaps:
        with pytest.raises(ValueError, match="are needed"):
            NUMPY.evaluate(roots, {"a": x, "b": b}, {"y": x})
    for total in (NUMPY.total, lambda *call: sum_elementwise(*call, machine)):
        with pytest.raises(ValueError, match="at least one"):
            total(symbol("n"), {"n": 1.0})


def test_numbers_beyond_single_precision_are_infinite(machine: Machine) -> None:
    x = np.array([1.0, -2.0], np.float32)
    large = mapped(machine, {"y": symbol("x") * symbol("n")}, {"x": x}, {"n": 1e300})["y"]
    np.testing.assert_array_equal(large, [np.inf, -np.inf])
    assert literal(1e300, "float") == literal(math.inf, "float")


def test_another_machine() -> None:
    arm = machine_from_features("aarch64-unknown-linux-gnu", "generic", {"neon"})
    optimizer = make_optimizer({"type": "adam"})
    update_task = ElementwiseTask(tuple(update(optimizer).items()), ("w", "g", "m", "v"), "float")
    sum_task = ElementwiseTask((("", symbol("g") * symbol("g")),), ("g",), "float", summed=True)
    for task in (update_task, sum_task):
        assert compile_object(build(task, arm), arm).startswith(b"\x7fELF")


def test_narrower_vectors_give_the_same_bits(machine: Machine) -> None:
    if not machine.x86 or machine.vector_bits == 256:
        pytest.skip("this machine has one width of vectors")
    narrow = replace(machine, vector_bits=256, registers=16)
    optimizer = make_optimizer({"type": "adam"})
    arrays = drawn(["w", "g", *optimizer.slots], 75, "f4")
    numbers = optimizer.numbers(0.1, 1)
    expected = mapped(machine, update(optimizer), arrays, numbers)
    for name, value in mapped(narrow, update(optimizer), arrays, numbers).items():
        np.testing.assert_array_equal(value, expected[name])
