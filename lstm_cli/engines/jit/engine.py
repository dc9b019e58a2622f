"""The jit engine: kernels compiled for this processor from the cells' equations.

The same bits whatever a sequence is batched with, wherever it stands in the batch, and however many
threads there are: every sum is made in one order, and no result depends on how work is shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.host import HostArrays
from lstm_cli.engines.jit.codegen.elementwise import run_map, run_total
from lstm_cli.engines.jit.layers import DenseLayer, RecurrentLayer
from lstm_cli.engines.jit.runtime.machine import Machine, host
from lstm_cli.engines.jit.runtime.memory import Stock, Workspaces
from lstm_cli.engines.jit.weights import plan, recurrent_weights
from lstm_cli.engines.limits import Limits
from lstm_cli.engines.pointwise import dropout_forward, flatten_backward, flatten_forward
from lstm_cli.engines.types import (
    SUPPORTED_DTYPES,
    Array,
    DenseSpec,
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    State,
    TrainingPass,
    array_dtype,
    with_biases,
)
from lstm_cli.errors import DeviceError

JIT_DTYPES = (*SUPPORTED_DTYPES, "bfloat16")
"""bfloat16 is for inference: the matrices of recurrent layers, and what they multiply."""


class JitEngine(HostArrays):
    """Compiled kernels on the CPU.

    Parameters
    ----------
    dtype
        One of `JIT_DTYPES`.
    threads
        As many as are used where the work is enough for them.
    machine
        What the kernels are made for; this machine by default.

    Raises
    ------
    DeviceError
        Another dtype.
    """

    name = "jit"
    device = "cpu"

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
        self.machine = machine or host()
        self._lanes = self.machine.lanes("double" if dtype == "float64" else "float")
        self._spaces, self._stock = Workspaces(), Stock()

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Any:
        """The layer's weights, packed as they are first needed."""
        dtype = array_dtype(self)
        spec, weights = with_biases(spec, weights)
        own = {name: np.ascontiguousarray(weights[name], dtype) for name in _names(spec)}
        if isinstance(spec, DenseSpec):
            prefix = f"layers.{spec.index}."
            weight, bias = own[prefix + "weight"], own[prefix + "bias"]
            return DenseLayer(spec, weight, bias, self.machine, self._stock)
        if isinstance(spec, RecurrentSpec):
            how = self._lanes, self.machine, self.threads, self.dtype == "bfloat16"
            packed = [
                recurrent_weights(
                    plan(cell, spec.input_size, *how),
                    {name: own[spec.prefix(d) + name] for name in cell.tensor_names},
                    self._stock,
                )
                for d, cell in enumerate(spec.cells)
            ]
            return RecurrentLayer(spec, packed, self.machine, self._spaces, self.threads)
        return None

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Array,
        lengths: Array | None,
        state: State | None = None,
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """One layer over a batch; see `lstm_cli.engines.types.Engine`."""
        if isinstance(spec, RecurrentSpec):
            layer: RecurrentLayer = prepared
            if training is None:
                return layer.forward(x, lengths, state, keep=keep)
            if self.dtype == "bfloat16":
                raise DeviceError(
                    "bfloat16 is for inference; there is no training in it",
                    hint="--dtype float32",
                )
            return layer.forward_training(x, lengths, state, training)
        with np.errstate(all="ignore"):
            if isinstance(spec, DenseSpec):
                dense: DenseLayer = prepared
                return dense.forward(x, lengths, self.threads)
            if isinstance(spec, DropoutSpec):
                return dropout_forward(spec, x, training)
            return flatten_forward(spec, x, lengths)

    def backward(
        self,
        spec: LayerSpec,
        prepared: Any,
        tape: Any,
        d_output: Array,
        *,
        d_logits: bool = False,
    ) -> LayerGradients:
        """Derivatives through one layer; see `lstm_cli.engines.types.Engine`."""
        with np.errstate(all="ignore"):
            if isinstance(spec, RecurrentSpec):
                layer: RecurrentLayer = prepared
                return layer.backward(tape, d_output)
            if isinstance(spec, DenseSpec):
                dense: DenseLayer = prepared
                return dense.backward(tape, d_output, self._spaces, self.threads, d_logits=d_logits)
            if isinstance(spec, DropoutSpec):
                return LayerGradients(d_output if tape is None else d_output * tape)
            return flatten_backward(tape, d_output)

    def evaluate(
        self,
        roots: Mapping[str, Expression],
        values: Mapping[str, Array | float],
        out: Mapping[str, Array],
    ) -> None:
        """Every root, element by element; see `lstm_cli.engines.types.Elementwise`."""
        run_map(roots, values, out, self.machine, self.threads)

    def total(self, root: Expression, values: Mapping[str, Array | float]) -> float:
        """The sum of an expression; see `lstm_cli.engines.types.Elementwise`."""
        return run_total(root, values, self.machine, self.threads)

    def limits(self, sizes: Sequence[int] = ()) -> Limits:
        """What the machine can do at most; see `lstm_cli.engines.limits.Measurable`."""
        from lstm_cli.engines.jit.runtime.peaks import measure

        element = "bfloat" if self.dtype == "bfloat16" else self._lanes.element
        return measure(self.machine, self.threads, element, sizes)

    def explain(
        self, spec: RecurrentSpec, N: int, T: int, *, training: bool = False
    ) -> Explanation:
        """What was chosen; see `lstm_cli.engines.explanation.Explaining`."""
        from lstm_cli.engines.jit.batch import explain

        pairs = self.dtype == "bfloat16"
        how = self._lanes, self.machine, self.threads, pairs
        return explain(plan(spec.cells[0], spec.input_size, *how), spec, N, T)

    @property
    def workspace_bytes(self) -> int:
        """Memory kept to compute in, beside the weights; what is in use just now is not counted."""
        return self._spaces.bytes + self._stock.bytes


@lru_cache(maxsize=256)
def _names(spec: LayerSpec) -> tuple[str, ...]:
    """The names that a layer's tensors are stored under."""
    return tuple(spec.parameters())
