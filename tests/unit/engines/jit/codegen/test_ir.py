"""Text of emitted IR, and the results of compiled functions."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from compiled_ir import compiled_address, usable_machine

from lstm_cli.engines.jit.codegen import ir
from lstm_cli.engines.jit.codegen.ir import Function, Module, Value, VectorType

_number = count()


def function(body: Callable[[Function, Value], Value | int]) -> Callable[[int], int]:
    """A function of a whole number, compiled."""
    module, name = Module(), f"tested{next(_number)}"
    f = module.function(name, {"n": "i64"}, returns="i64", exported=True)
    f.ret(body(f, f.args["n"]))
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(compiled_address(module, name))
    return lambda n: int(call(n))


@pytest.fixture(autouse=True)
def _machine() -> None:
    usable_machine()


# Whole numbers


def test_arithmetic_of_whole_numbers() -> None:
    compiled = function(lambda f, n: f.sub(f.mul(f.add(n, 5), 3), f.add(f.div(n, 4), f.rem(n, 4))))
    for n in (0, 7, -9, 1 << 40):
        assert compiled(n) == (n + 5) * 3 - (int(n / 4) + math.fmod(n, 4))


def test_numbers_that_are_known_need_no_instruction() -> None:
    f = Module().function("f", {})
    assert f.add(3, 4) == Value("i64", "7")
    assert f.mul(3, 4) == Value("i64", "12")
    assert "add" not in str(f)


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [("eq", "=="), ("ne", "!="), ("slt", "<"), ("sle", "<="), ("sgt", ">"), ("sge", ">=")],
)
def test_comparisons(predicate: str, expected: str) -> None:
    compiled = function(lambda f, n: f.select(f.compare(predicate, n, 3), 10, 20))
    for n in (-4, 2, 3, 4):
        assert compiled(n) == (10 if eval(f"{n} {expected} 3") else 20)


def test_the_minimum() -> None:
    compiled = function(lambda f, n: f.minimum(n, 12))
    assert [compiled(n) for n in (-3, 11, 12, 13)] == [-3, 11, 12, 12]


# Control


def test_loops() -> None:
    def body(f: Function, n: Value) -> Value:
        total = f.variable("i64", 0)
        with f.loop(2, n, 3) as i, f.loop(0, i) as j:
            f.set(total, f.add(f.get(total), j))
        return f.get(total)

    compiled = function(body)
    for n in (-1, 2, 3, 20):
        assert compiled(n) == sum(j for i in range(2, n, 3) for j in range(i))


def test_a_loop_that_is_left_from_within() -> None:
    def body(f: Function, n: Value) -> Value:
        steps = f.variable("i64", 0)
        value = f.variable("i64", n)
        with f.while_() as loop:
            loop.leave_if(f.compare("sle", f.get(value), 1))
            f.set(value, f.div(f.get(value), 2))
            f.set(steps, f.add(f.get(steps), 1))
            loop.leave_if(f.compare("sge", f.get(steps), 5))
        return f.get(steps)

    compiled = function(body)
    assert [compiled(n) for n in (0, 1, 2, 9, 1 << 30)] == [0, 0, 1, 3, 5]


def test_conditions() -> None:
    def body(f: Function, n: Value) -> Value:
        value = f.variable("i64", n)
        with f.when(f.compare("sgt", n, 0)):
            f.set(value, f.mul(n, 2))
            with f.when(f.compare("sgt", n, 10)):
                f.set(value, -1)
        return f.get(value)

    compiled = function(body)
    assert [compiled(n) for n in (-3, 0, 4, 10, 11)] == [-3, 0, 8, 20, -1]


def test_cases() -> None:
    def body(f: Function, n: Value) -> Value:
        value = f.variable("i64", 0)
        with f.switch(n, (1, 4)) as cases:
            for number, case in cases.items():
                with case:
                    f.set(value, f.add(n, 100 * number))
        return f.get(value)

    compiled = function(body)
    assert [compiled(n) for n in (0, 1, 2, 4, 5)] == [0, 101, 0, 404, 0]


def test_a_function_may_return_early_and_call_another() -> None:
    module = Module()
    half = module.function("half", {"n": "i64"}, returns="i64")
    half.ret(half.div(half.args["n"], 2))
    f = module.function("early", {"n": "i64"}, returns="i64", exported=True)
    with f.when(f.compare("slt", f.args["n"], 0)):
        f.ret(-1)
    f.ret(f.call(half, f.args["n"]))
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(compiled_address(module, "early"))
    assert [call(n) for n in (-8, 8, 9)] == [-1, 4, 4]
    assert module.exported == ("early",)


# Memory and vectors


def run(dtype: str, size: int, body: Callable[[Function, Value, Value], None]) -> np.ndarray:
    """Array `y` after a call with 0, 1, 2, ... in array `x`."""
    module, name = Module(), f"tested{next(_number)}"
    f = module.function(name, {"x": "ptr", "y": "ptr"}, exported=True)
    body(f, f.args["x"], f.args["y"])
    f.ret()
    x, y = np.arange(size, dtype=dtype), np.full(size, -7, dtype)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(compiled_address(module, name))
    call(x.ctypes.data, y.ctypes.data)
    return y


@pytest.mark.parametrize(("element", "dtype"), [("float", "f4"), ("double", "f8")])
def test_vectors(element: str, dtype: str) -> None:
    vector = VectorType(element, 4)

    def body(f: Function, x: Value, y: Value) -> None:
        a = f.load(vector.type, f.at(x, 1, element), 4)
        b = f.splat(f.load(element, f.at(x, 3, element)), vector)
        quotient = f.fdiv(f.fsub(f.fmul(a, b), vector.number(0.5)), f.fadd(b, vector.number(1.0)))
        f.store(f.fneg(quotient), f.at(y, 2, element), 4)

    result = run(dtype, 8, body)
    expected = -(np.arange(1, 5) * 3 - 0.5) / 4
    np.testing.assert_array_equal(result, np.array([-7, -7, *expected, -7, -7], dtype))


def test_comparisons_with_nan_are_false() -> None:
    vector = VectorType("double", 4)

    def body(f: Function, x: Value, y: Value) -> None:
        a = f.load(vector.type, x, 8)
        b = f.fdiv(a, a)  # NaN, 1, 1, 1
        for k, predicate in enumerate(("olt", "ole", "ogt")):
            chosen = f.select(f.fcompare(predicate, b, vector.number(1.0)), vector.number(5.0), a)
            f.store(chosen, f.at(y, k, vector.type), 8)

    result = run("f8", 12, body).reshape(3, 4)
    np.testing.assert_array_equal(result, [[0, 1, 2, 3], [0, 5, 5, 5], [0, 1, 2, 3]])


def test_arrays_on_the_stack_and_conversions() -> None:
    def body(f: Function, x: Value, y: Value) -> None:
        squares = f.array(6, "double")
        with f.loop(0, 6) as k:
            number = f.convert("sitofp", f.mul(k, k), "double")
            f.store(number, f.at(squares, k, "double"), 8)
        with f.loop(0, 6) as k:
            f.store(f.load("double", f.at(squares, f.sub(5, k), "double")), f.at(y, k, "double"))

    np.testing.assert_array_equal(run("f8", 6, body), [25, 16, 9, 4, 1, 0])


def test_intrinsics_are_declared_once() -> None:
    module = Module()
    vector = VectorType("float", 4)
    f = module.function("f", {"x": "ptr"}, exported=True)
    a = f.load(vector.type, f.args["x"], 4)
    for _ in range(2):
        a = f.intrinsic(f"llvm.fma.{vector.suffix}", vector.type, a, a, a)
    f.intrinsic("llvm.donothing", "void")
    f.store(a, f.args["x"], 4)
    f.ret()
    text = str(module)
    declared = "declare <4 x float> @llvm.fma.v4f32(<4 x float>, <4 x float>, <4 x float>)"
    assert text.count(declared) == 1
    assert text.count("declare void @llvm.donothing()") == 1
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled_address(module, "f"))
    x = np.arange(4, dtype=np.float32)
    call(x.ctypes.data)
    np.testing.assert_array_equal(x, [n * n + n for n in (0, 2, 6, 12)])


# Text


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.0, 0.1, -2.5e-7, 3e38, 1e300, 5e-324, math.inf, -math.inf, math.pi],
)
def test_literals_are_exact(value: float) -> None:
    vector = VectorType("double", 2)
    result = run("f8", 2, lambda f, x, y: f.store(vector.number(value), y, 8))
    np.testing.assert_array_equal(result.view("u8"), np.full(2, value).view("u8"))
    single = VectorType("float", 2)
    result = run("f4", 2, lambda f, x, y: f.store(single.number(value), y, 4))
    with np.errstate(over="ignore"):
        expected = np.full(2, value).astype("f4")
    np.testing.assert_array_equal(result.view("u4"), expected.view("u4"))


def test_a_literal_is_rounded_to_its_type() -> None:
    assert ir.literal(1.0, "double") == ir.literal(1.0, "float") == "0x3FF0000000000000"
    assert ir.literal(0.1, "double") == "0x3FB999999999999A"
    assert ir.literal(0.1, "float") == "0x3FB99999A0000000"
    assert ir.literal(1e300, "float") == ir.literal(math.inf, "double")


def test_vector_types() -> None:
    vector = VectorType("float", 16)
    assert (vector.bits, vector.bytes, vector.suffix) == (32, 64, "v16f32")
    assert (vector.type, vector.integers) == ("<16 x float>", "<16 x i32>")
    double = VectorType("double", 4)
    assert (double.bits, double.bytes, double.suffix) == (64, 32, "v4f64")
    assert double.integer(-3) == Value("<4 x i64>", "<" + ", ".join(["i64 -3"] * 4) + ">")


def test_heads_of_functions() -> None:
    module = Module()
    parameters = {"x": "ptr", "n": "i64"}
    module.function("inner", parameters).ret()
    module.function("outer", parameters, exported=True).ret()
    module.function("shared", parameters, exported=True, noalias=False).ret()
    text = str(module)
    assert "define internal void @inner(ptr noalias %x, i64 %n) nounwind noinline {" in text
    assert "define void @outer(ptr noalias %x, i64 %n) nounwind {" in text
    assert "define void @shared(ptr %x, i64 %n) nounwind {" in text
    assert module.exported == ("outer", "shared")
    assert ir.i64(5) == Value("i64", "5")
