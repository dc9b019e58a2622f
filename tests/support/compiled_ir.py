"""Emitted functions, compiled and called on arrays: what the tests of the emitters share."""

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
from lstm_cli.engines.jit.codegen.ir import Function, Lanes, Module, Value
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine, Unusable, host

Array = np.ndarray[Any, Any]
Body = Callable[[Function, Lanes, Mapping[str, Value]], Mapping[str, Value]]

COUNTS = {"float": (1, 2, 4, 8, 16), "double": (1, 2, 4, 8)}
"""Numbers of lanes that kernels use."""

_counter = count()


def machine() -> Machine:
    """This machine; the test is skipped where no kernels can be made."""
    try:
        return host()
    except Unusable as error:
        pytest.skip(str(error))


def address(module: Module, name: str) -> int:
    """Where the compiled function `name` is; nothing of it is kept on disk."""
    with patch.dict(os.environ, {"LSTM_CLI_CACHE_DIR": ""}):
        return kernels(name, lambda: module, machine())[name]


class Vectorised:
    """A function of vectors, called on arrays of any length that the number of lanes divides.

    Attributes
    ----------
    text
        Its LLVM IR.
    """

    def __init__(self, lanes: Lanes, inputs: tuple[str, ...], body: Body) -> None:
        self.lanes, self.inputs = lanes, inputs
        self.dtype = np.dtype("f4" if lanes.element == "float" else "f8")
        module, name = Module(), f"vectorised{next(_counter)}"
        f = module.function(name, {"data": "ptr", "count": "i64"}, exported=True)
        align = lanes.bits // 8
        with f.loop(0, f.args["count"], lanes.count) as k:
            given = {
                key: f.load(lanes.type, self._at(f, n, k), align) for n, key in enumerate(inputs)
            }
            results = body(f, lanes, given)
            for n, value in enumerate(results.values(), len(inputs)):
                f.store(value, self._at(f, n, k), align)
        f.done()
        self.outputs, self.text = tuple(results), str(module)
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._call = call(address(module, name))

    def _at(self, f: Function, n: int, k: Value) -> Value:
        array = f.load("ptr", f.at(f.args["data"], n, "ptr"), 8)
        return f.at(array, k, self.lanes.element)

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        given = [np.ascontiguousarray(arrays[key], self.dtype) for key in self.inputs]
        (length,) = {len(array) for array in given}
        assert length % self.lanes.count == 0
        found = {key: np.full(length, -7.0, self.dtype) for key in self.outputs}
        addresses = np.array([a.ctypes.data for a in (*given, *found.values())], np.uint64)
        self._call(addresses.ctypes.data, length)
        return found

    def count(self, instruction: str) -> int:
        """How often an instruction, or the call of an intrinsic, is in it."""
        found = re.findall(rf"= (?:{instruction} |call <.*> @llvm\.{instruction}\.)", self.text)
        return len(found)


@cache
def function(name: str, element: str, lanes: int) -> Callable[[Array], Array]:
    """A function of `arithmetic`, on arrays."""

    def body(f: Function, lanes: Lanes, given: Mapping[str, Value]) -> Mapping[str, Value]:
        return {"y": getattr(vector_math, name)(f, lanes, given["x"])}

    made = Vectorised(Lanes(element, lanes), ("x",), body)
    return lambda x: made({"x": x})["y"]


def graph(element: str, lanes: int, roots: Mapping[str, Expression]) -> Vectorised:
    """An expression graph, on arrays."""
    nodes = topological(roots.values())
    return Vectorised(
        Lanes(element, lanes),
        tuple(str(node.payload) for node in nodes if node.op == "symbol"),
        lambda f, lanes, given: cell.emit(f, lanes, roots, given),
    )


def at_an_end(array: np.ndarray) -> np.ndarray:
    """A copy whose last number is the last one before memory that nobody may touch."""
    if sys.platform != "linux":
        pytest.skip("pages are protected as Linux does it")
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(memory.ctypes.data + size), ctypes.c_size_t(page), 0) == 0
    copy = memory[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def narrower() -> Machine:
    """This machine, if it had AVX2 only."""
    if not machine().x86:
        pytest.skip("not an x86 processor")
    features = ",".join(
        name if not name.startswith("+avx512") else "-" + name[1:]
        for name in machine().features.split(",")
    )
    return replace(machine(), features=features, vector_bits=256, registers=16, dot_bfloat16=False)
