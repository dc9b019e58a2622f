"""The jit engine: kernels compiled for this processor from the cells' equations.

The results of a sequence have the same bits in every batch and at every place in it. The number of
threads does not change them either: every sum has one order, however threads share the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import assert_never

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.expression import Expression
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.jit.codegen.elementwise import evaluate_elementwise, sum_elementwise
from lstm_cli.engines.jit.explanation import explain
from lstm_cli.engines.jit.layers import Dense, Recurrent
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.jit.runtime.memory import ArrayPool, Workspaces
from lstm_cli.engines.jit.weights import PackingPlan, packing_plan, recurrent_weights
from lstm_cli.engines.reference.arrays import HostArrays
from lstm_cli.engines.reference.layers import Dropout, Flatten
from lstm_cli.engines.types import (
    SUPPORTED_DTYPES,
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layer,
    Layers,
    LayerSpec,
    MachinePeaks,
    RecurrentSpec,
    array_dtype,
    with_biases,
)
from lstm_cli.errors import DeviceError

JIT_DTYPES = (*SUPPORTED_DTYPES, "bfloat16")
"""Dtypes of the engine. bfloat16 is for inference only: recurrent layers round their matrices, and
the vectors that these multiply."""


class JitEngine(HostArrays):
    """Compiled kernels on the CPU.

    Parameters
    ----------
    dtype
        One of `JIT_DTYPES`.
    threads
        Largest number of threads to use; small work takes fewer.
    machine
        Machine that the kernels are made for; this machine by default.

    Raises
    ------
    DeviceError
        The dtype is not one of `JIT_DTYPES`.
    """

    name = "jit"
    device = "cpu"
    bits_ignore_threads = True

    def __init__(
        self, dtype: str = "float32", threads: int = 1, machine: Machine | None = None
    ) -> None:
        if dtype not in JIT_DTYPES:
            raise DeviceError(
                f"the jit engine does not compute in {dtype}",
                expected=", ".join(JIT_DTYPES),
                hint="--dtype float32",
            )
        self.dtype, self.threads = dtype, threads
        self.machine = machine or this_machine()
        self._vector = self.machine.vector("double" if dtype == "float64" else "float")
        self._workspaces, self._array_pool = Workspaces(), ArrayPool()

    def layer(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Layer[Array, Array]:
        """The layer with its weights, which are packed at first use."""
        dtype = array_dtype(self)
        spec, weights = with_biases(spec, weights)
        tensors = {name: np.ascontiguousarray(weights[name], dtype) for name in _names(spec)}
        machine, workspaces, threads = self.machine, self._workspaces, self.threads
        match spec:
            case RecurrentSpec():
                packed = []
                for d, cell in enumerate(spec.cells):
                    stored = {name: tensors[spec.prefix(d) + name] for name in cell.tensor_names}
                    plan = self._packing_plan(cell, spec.input_size)
                    packed.append(recurrent_weights(plan, stored, self._array_pool))
                return Recurrent(spec, packed, machine, workspaces, threads)
            case DenseSpec():
                return Dense(spec, tensors, machine, workspaces, self._array_pool, threads)
            case DropoutSpec():
                return Dropout(spec)
            case FlattenSpec():
                return Flatten(spec)
            case _:
                assert_never(spec)

    def _packing_plan(self, cell: Cell, input_size: int) -> PackingPlan:
        bf16 = self.dtype == "bfloat16"
        return packing_plan(cell, input_size, self._vector, self.machine, self.threads, bf16)

    def evaluate(
        self,
        roots: Mapping[str, Expression],
        values: Mapping[str, Array | float],
        out: Mapping[str, Array],
    ) -> None:
        """Evaluate expressions element by element; see `lstm_cli.engines.types.ArrayOperations`."""
        evaluate_elementwise(roots, values, out, self.machine, self.threads)

    def total(self, root: Expression, values: Mapping[str, Array | float]) -> float:
        """The sum of an expression; see `lstm_cli.engines.types.ArrayOperations`."""
        return sum_elementwise(root, values, self.machine, self.threads)

    def measure_peaks(self, sizes: Sequence[int] = ()) -> MachinePeaks:
        """Measured peaks of the machine; see `lstm_cli.engines.types.Engine`."""
        from lstm_cli.engines.jit.runtime.peaks import measure

        element = "bfloat" if self.dtype == "bfloat16" else self._vector.element
        return measure(self.machine, self.threads, element, sizes)

    def explain(
        self, layers: Layers, N: int, T: int, *, training: bool = False
    ) -> Mapping[int, Explanation]:
        """Kernels and threads of recurrent layers; see `lstm_cli.engines.types.Engine`."""
        return {
            spec.index: explain(self._packing_plan(spec.cells[0], spec.input_size), spec, N, T)
            for spec in layers
            if isinstance(spec, RecurrentSpec)
        }

    @property
    def kernels_title(self) -> str:
        """Processor that the kernels are made for; see `lstm_cli.engines.types.Engine`."""
        machine = self.machine
        return f"{machine.cpu}, {machine.vector_bits}-bit vectors, {machine.cache:,} bytes of cache"

    @property
    def workspace_bytes(self) -> int:
        """Bytes of idle workspaces and idle pooled arrays, without the weights."""
        return self._workspaces.bytes + self._array_pool.bytes


@lru_cache(maxsize=256)
def _names(spec: LayerSpec) -> tuple[str, ...]:
    return tuple(spec.parameters())
