"""Emitted functions, compiled and called on arrays, for tests of the jit engine's emitters."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.jit.codegen import cell, vector_math
from lstm_cli.engines.jit.codegen.ir import Function, Module, Value, VectorType
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine, UnusableMachine, this_machine

Array = np.ndarray[Any, Any]
Body = Callable[[Function, VectorType, Mapping[str, Value]], Mapping[str, Value]]

COUNTS = {"float": (1, 2, 4, 8, 16), "double": (1, 2, 4, 8)}
"""Lanes of the vectors that kernels use, by element."""

_counter = count()


def usable_machine() -> Machine:
    """This machine; skips the test if no kernels can be made."""
    try:
        return this_machine()
    except UnusableMachine as error:
        pytest.skip(str(error))


def compiled_address(module: Module, name: str) -> int:
    """Address of the compiled function `name`, which is not stored on disk."""
    with patch.dict(os.environ, {"LSTM_CLI_CACHE_DIR": ""}):
        return load_kernels(name, lambda: module, usable_machine())[name]


class VectorFunction:
    """A function of vectors, called on arrays whose length is a multiple of the lanes.

    Attributes
    ----------
    text
        Its LLVM IR.
    """

    def __init__(self, vector: VectorType, inputs: tuple[str, ...], body: Body) -> None:
        self.vector, self.inputs = vector, inputs
        self.dtype = np.dtype("f4" if vector.element == "float" else "f8")
        module, name = Module(), f"vectorised{next(_counter)}"
        f = module.function(name, {"data": "ptr", "count": "i64"}, exported=True)
        align = vector.bits // 8
        with f.loop(0, f.args["count"], vector.count) as k:
            values = {
                key: f.load(vector.type, self._at(f, n, k), align) for n, key in enumerate(inputs)
            }
            results = body(f, vector, values)
            for n, value in enumerate(results.values(), len(inputs)):
                f.store(value, self._at(f, n, k), align)
        f.ret()
        self.outputs, self.text = tuple(results), str(module)
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._call = call(compiled_address(module, name))

    def _at(self, f: Function, n: int, k: Value) -> Value:
        array = f.load("ptr", f.at(f.args["data"], n, "ptr"), 8)
        return f.at(array, k, self.vector.element)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        inputs = [np.ascontiguousarray(arrays[key], self.dtype) for key in self.inputs]
        (length,) = {len(array) for array in inputs}
        assert length % self.vector.count == 0
        results = {key: np.full(length, -7.0, self.dtype) for key in self.outputs}
        addresses = np.array([a.ctypes.data for a in (*inputs, *results.values())], np.uint64)
        self._call(addresses.ctypes.data, length)
        return results

    def count(self, instruction: str) -> int:
        """How often the text has an instruction, or the call of an intrinsic."""
        pattern = rf"= (?:{instruction} |call <.*> @llvm\.{instruction}\.)"
        return len(re.findall(pattern, self.text))


@cache
def math_function(name: str, element: str, lanes: int) -> Callable[[Array], Array]:
    """A function of `vector_math`, on arrays."""

    def body(f: Function, vector: VectorType, values: Mapping[str, Value]) -> Mapping[str, Value]:
        return {"y": getattr(vector_math, name)(f, vector, values["x"])}

    function = VectorFunction(VectorType(element, lanes), ("x",), body)
    return lambda x: function({"x": x})["y"]


def expression_function(
    element: str, lanes: int, roots: Mapping[str, Expression]
) -> VectorFunction:
    """An expression graph, on arrays."""
    nodes = topological(roots.values())
    return VectorFunction(
        VectorType(element, lanes),
        tuple(str(node.payload) for node in nodes if node.op == "symbol"),
        lambda f, vector, values: cell.emit(f, vector, roots, values),
    )


def before_protected_page(array: np.ndarray) -> np.ndarray:
    """A copy whose last number is right before a page that must not be accessed."""
    if sys.platform != "linux":
        pytest.skip("protects pages with a function of Linux")
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(memory.ctypes.data + size), ctypes.c_size_t(page), 0) == 0
    copy = memory[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def avx2_machine() -> Machine:
    """This machine, as if it had AVX2 only."""
    if not usable_machine().x86:
        pytest.skip("not an x86 processor")
    here = usable_machine()
    features = ",".join(
        name if not name.startswith("+avx512") else "-" + name[1:]
        for name in here.features.split(",")
    )
    return replace(here, features=features, vector_bits=256, registers=16, dot_bfloat16=False)
