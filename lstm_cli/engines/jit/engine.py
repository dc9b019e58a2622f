"""The jit engine: kernels compiled for this processor from the cells' equations.

The results of a sequence have the same bits in every batch and at every place in it. The number of
threads does not change them either: every sum has one order, however threads share the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.jit.codegen.elementwise import evaluate_elementwise, sum_elementwise
from lstm_cli.engines.jit.explanation import explain
from lstm_cli.engines.jit.layers import Resources, make_layer
from lstm_cli.engines.jit.program import make_program, make_stepper
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.protocols import Layer, NetworkProgram, Stepper, array_dtype
from lstm_cli.engines.reference.arrays import HostArrays
from lstm_cli.engines.types import (
    SUPPORTED_DTYPES,
    Array,
    Layers,
    LayerSpec,
    MachinePeaks,
    RecurrentSpec,
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
    ignores_padding = True

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
        vector = self.machine.vector("double" if dtype == "float64" else "float")
        self._resources = Resources(self.machine, vector, threads, dtype == "bfloat16")

    def layer(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Layer[Array, Array]:
        """The layer with its weights, which are packed at first use."""
        dtype = array_dtype(self)
        spec, weights = with_biases(spec, weights)
        tensors = {name: np.ascontiguousarray(weights[name], dtype) for name in _names(spec)}
        return make_layer(spec, tensors, self._resources)

    def program(
        self, layers: Sequence[Layer[Array, Array]], N: int, T: int
    ) -> NetworkProgram[Array] | None:
        """A prepared pass of small layers; see `lstm_cli.engines.protocols.Engine`."""
        return make_program(layers, N, T, array_dtype(self), self._resources)

    def stepper(self, layers: Sequence[Layer[Array, Array]], N: int) -> Stepper[Array] | None:
        """A prepared pass of one step; see `lstm_cli.engines.protocols.Engine`."""
        return make_stepper(layers, N, array_dtype(self), self._resources)

    def evaluate(
        self,
        roots: Mapping[str, Expression],
        values: Mapping[str, Array | float],
        out: Mapping[str, Array],
    ) -> None:
        """Evaluate expressions; see `lstm_cli.engines.protocols.ArrayOperations`."""
        evaluate_elementwise(roots, values, out, self.machine, self.threads)

    def total(self, root: Expression, values: Mapping[str, Array | float]) -> float:
        """The sum of an expression; see `lstm_cli.engines.protocols.ArrayOperations`."""
        return sum_elementwise(root, values, self.machine, self.threads)

    def measure_peaks(self, sizes: Sequence[int] = ()) -> MachinePeaks:
        """Measured peaks of the machine; see `lstm_cli.engines.protocols.Engine`."""
        from lstm_cli.engines.jit.runtime.peaks import measure

        element = "bfloat" if self.dtype == "bfloat16" else self._resources.vector.element
        return measure(self.machine, self.threads, element, sizes)

    def explain(
        self, layers: Layers, N: int, T: int, *, training: bool = False
    ) -> Mapping[int, Explanation]:
        """Kernels and threads of recurrent layers; see `lstm_cli.engines.protocols.Engine`."""
        plan = self._resources.packing_plan
        return {
            spec.index: explain(plan(spec.cells[0], spec.input_size), spec, N, T)
            for spec in layers
            if isinstance(spec, RecurrentSpec)
        }

    @property
    def kernels_title(self) -> str:
        """Processor that the kernels are made for; see `lstm_cli.engines.protocols.Engine`."""
        machine = self.machine
        return f"{machine.cpu}, {machine.vector_bits}-bit vectors, {machine.cache:,} bytes of cache"

    @property
    def workspace_bytes(self) -> int:
        """Bytes of idle workspaces and idle pooled arrays, without the weights."""
        return self._resources.workspaces.bytes + self._resources.array_pool.bytes


@lru_cache(maxsize=256)
def _names(spec: LayerSpec) -> tuple[str, ...]:
    return tuple(spec.parameters())
