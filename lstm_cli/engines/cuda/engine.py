"""The cuda engine: data go to the device once, and stay there from the first layer to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.kernels import GeneralKernels, PersistentKernels, RecurrenceKernels
from lstm_cli.engines.cuda.layers import (
    PreparedDense,
    PreparedRecurrent,
    dropout,
    dropout_backward,
    flatten,
    flatten_backward,
)
from lstm_cli.engines.cuda.passes import DeviceState
from lstm_cli.engines.cuda.precision import PRECISIONS, Precision
from lstm_cli.engines.cuda.runtime.device import Device
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelineOptions, stack_groups
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.stacks import Prepared
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    State,
    TrainingPass,
    with_biases,
)
from lstm_cli.errors import DeviceError

KERNELS = ("auto", "general", "persistent")
"""``auto`` takes persistent kernels where there is a plan, and the general ones elsewhere;
``persistent`` has nothing else."""


def select_kernels(name: str, device: Device, precision: Precision) -> RecurrenceKernels:
    """What runs recurrent layers: a name of `KERNELS`."""
    if name == "persistent":
        return PersistentKernels(device, precision)
    general = GeneralKernels(device, precision)
    return general if name == "general" else PersistentKernels(device, precision, general)


class CudaEngine(DeviceArrays):
    """Kernels on a GPU.

    Parameters
    ----------
    dtype
        A name of `PRECISIONS`.
    device
        What computes.
    way
        How recurrent layers run: one of `KERNELS`; ``auto`` chooses by their sizes.
    pipelining
        When recurrent layers on top of each other run side by side; None: a model decides.

    Raises
    ------
    DeviceError
        Another dtype or way.
    """

    name = "cuda"
    threads = None

    def __init__(
        self,
        dtype: str,
        device: Device,
        way: str = "auto",
        pipelining: PipelineOptions | None = None,
    ) -> None:
        if dtype not in PRECISIONS:
            raise DeviceError(
                f"the cuda engine does not compute in {dtype}",
                expected=", ".join(PRECISIONS),
                hint="--dtype float32",
            )
        if way not in KERNELS:
            raise DeviceError(f"{way} is no way to run a layer", expected=", ".join(KERNELS))
        super().__init__(device, PRECISIONS[dtype])
        self.dtype, self.device = dtype, device.name
        self.way = select_kernels(way, device, self.precision)
        self._no_bias: dict[int, Any] = {}
        self.stacks = PipelinedStacks(device, self.way, pipelining or PipelineOptions())

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Any]) -> Any:
        """The layer's weights on the device: those that are there already as they are."""
        spec, weights = with_biases(spec, weights, self._zeros)
        own = {name: self.own(weights[name]) for name in spec.parameters()}
        if isinstance(spec, DenseSpec):
            prefix = f"layers.{spec.index}."
            tensors = own[prefix + "weight"], own[prefix + "bias"]
            return PreparedDense(spec, *tensors, self.hardware, self.precision)
        if isinstance(spec, RecurrentSpec):
            return PreparedRecurrent(spec, own, self.hardware, self.precision, self.way)
        return None

    def _zeros(self, size: int) -> Any:
        """A bias of zeros on the device, made once: weights are prepared anew for every update."""
        if size not in self._no_bias:
            self._no_bias[size] = self.own(np.zeros(size))
        return self._no_bias[size]

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Any,
        lengths: Array | None,
        state: State | None = None,
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """One layer over a batch; see `lstm_cli.engines.types.Engine`."""
        values = x if isinstance(x, PackedSequences) else self.batch(x, lengths)
        if isinstance(spec, RecurrentSpec):
            layer: PreparedRecurrent = prepared
            return layer.forward(values, self._state(state), keep=keep, training=training)
        if isinstance(spec, DenseSpec):
            dense: PreparedDense = prepared
            return dense.forward(values, training=training is not None)
        if isinstance(spec, DropoutSpec):
            return dropout(self.hardware, spec, values, training)
        return flatten(self.hardware, spec, values)

    def parts(self, layers: Sequence[LayerSpec], *, training: bool) -> Iterator[list[LayerSpec]]:
        """PipelinedStacks that may run side by side; see `lstm_cli.engines.stacks.Stacking`."""
        return stack_groups(layers, training=training)

    def forward_stack(
        self,
        layers: Prepared,
        x: Any,
        states: Mapping[int, State],
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult] | None:
        """A stack side by side; see `lstm_cli.engines.stacks.Stacking`."""
        recurrent = [pair for pair in layers if isinstance(pair[0], RecurrentSpec)]
        given = [self._state(states.get(spec.index)) for spec, _ in recurrent]
        stack = [layer for _, layer in recurrent]
        made = self.stacks.forward(stack, x, given, keep=keep, training=training)
        if made is None:
            return None
        found: list[LayerResult] = []
        for spec, _ in layers:
            if isinstance(spec, DropoutSpec):  # between two it is the identity
                found.append(dropout(self.hardware, spec, found[-1].output, training))
            else:
                found.append(made.pop(0))
        return found

    def backward_stack(
        self, layers: Prepared, tapes: Sequence[Any], d_output: Any
    ) -> list[LayerGradients] | None:
        """The way back through it."""
        both = [(layer, tape) for (_, layer), tape in zip(layers, tapes, strict=True) if layer]
        stack, own = [layer for layer, _ in both], [tape for _, tape in both]
        sequences = stack[-1].spec.return_sequences
        d = self.over(own[-1].x, d_output, per_step=sequences)
        made = self.stacks.backward(stack, own, d)
        if made is None:
            return None
        found: list[LayerGradients] = []
        for _, layer in reversed(layers):
            found.append(made.pop() if layer else LayerGradients(found[-1].x))
        return found[::-1]

    def _state(self, state: State | None) -> DeviceState | None:
        """A layer's initial states on the device."""
        if state is None:
            return None
        h, c = state
        return self.own(h), None if c is None else self.own(c)

    def backward(
        self,
        spec: LayerSpec,
        prepared: Any,
        tape: Any,
        d_output: Any,
        *,
        d_logits: bool = False,
    ) -> LayerGradients:
        """Derivatives through one layer; see `lstm_cli.engines.types.Engine`."""
        sequences = isinstance(spec, DenseSpec | DropoutSpec) and tape.x.per_step
        if isinstance(spec, RecurrentSpec):
            sequences = spec.return_sequences
        d = self.over(tape.x, d_output, per_step=sequences)
        if isinstance(spec, RecurrentSpec):
            layer: PreparedRecurrent = prepared
            return layer.backward(tape, d)
        if isinstance(spec, DenseSpec):
            dense: PreparedDense = prepared
            return dense.backward(tape, d.real, d_logits=d_logits)
        if isinstance(spec, DropoutSpec):
            return dropout_backward(self.hardware, tape, d)
        return flatten_backward(self.hardware, spec, tape, d)

    def explain(
        self, spec: RecurrentSpec, N: int, T: int, *, training: bool = False
    ) -> Explanation:
        """What was chosen; see `lstm_cli.engines.explanation.Explaining`."""
        return self.explain_layers([spec], N, T, training=training)[spec.index]

    def explain_layers(
        self,
        layers: Sequence[LayerSpec],
        N: int,
        T: int,
        *,
        training: bool = False,
    ) -> Mapping[int, Explanation]:
        """What was chosen; see `lstm_cli.engines.explanation.ExplainingStacks`."""
        from lstm_cli.engines.cuda.explain import explain_stack

        return explain_stack(self.stacks, layers, N, T, training=training)
