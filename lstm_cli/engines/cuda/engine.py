"""The cuda engine: data go to the device once, and stay there from the first layer to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.kernels import KERNELS, select_kernels
from lstm_cli.engines.cuda.layers import (
    PreparedDense,
    PreparedRecurrent,
    dropout,
    dropout_backward,
    flatten,
    flatten_backward,
)
from lstm_cli.engines.cuda.passes import DeviceState
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.runtime.device import Device
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelineOptions, stack_groups
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.stacks import PreparedLayers
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


class CudaEngine(DeviceArrays):
    """Layers computed by kernels on a GPU.

    Parameters
    ----------
    dtype
        A name of `PRECISIONS`.
    device
        Device that computes.
    kernels
        Kernels of recurrent layers: a name of `KERNELS`. ``auto`` chooses by size.
    pipelining
        Rules for pipelined stacks of recurrent layers; None: a cost model decides.

    Raises
    ------
    DeviceError
        The dtype or the kernels are unknown.
    """

    name = "cuda"
    threads = None
    bits_ignore_threads = True

    def __init__(
        self,
        dtype: str,
        device: Device,
        kernels: str = "auto",
        pipelining: PipelineOptions | None = None,
    ) -> None:
        if dtype not in PRECISIONS:
            raise DeviceError(
                f"the cuda engine does not compute in {dtype}",
                expected=", ".join(PRECISIONS),
                hint="--dtype float32",
            )
        if kernels not in KERNELS:
            raise DeviceError(f"there are no {kernels} kernels", expected=", ".join(KERNELS))
        super().__init__(device, PRECISIONS[dtype])
        self.dtype, self.device = dtype, device.name
        self.kernels = select_kernels(kernels, device, self.precision)
        self._zero_biases: dict[int, Any] = {}
        self.stacks = PipelinedStacks(device, self.kernels, pipelining or PipelineOptions())

    @property
    def kernels_title(self) -> str:
        """GPU architecture that the kernels are made for."""
        return f"GPU of architecture {self.hardware.architecture}"

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Any]) -> Any:
        """Move a layer's weights to the device; weights already there are not copied."""
        spec, weights = with_biases(spec, weights, self._zeros)
        tensors = {name: self.to_device(weights[name]) for name in spec.parameters()}
        if isinstance(spec, DenseSpec):
            prefix = f"layers.{spec.index}."
            weight, bias = tensors[prefix + "weight"], tensors[prefix + "bias"]
            return PreparedDense(spec, weight, bias, self.hardware, self.precision)
        if isinstance(spec, RecurrentSpec):
            return PreparedRecurrent(spec, tensors, self.hardware, self.precision, self.kernels)
        return None

    def _zeros(self, size: int) -> Any:
        """A zero bias on the device, cached since weights are prepared again for every update."""
        if size not in self._zero_biases:
            self._zero_biases[size] = self.to_device(np.zeros(size))
        return self._zero_biases[size]

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Any,
        lengths: Array | None,
        state: State | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """Compute one layer over a batch; see `lstm_cli.engines.types.Engine`."""
        values = x if isinstance(x, PackedSequences) else self.from_padded(x, lengths)
        if isinstance(spec, RecurrentSpec):
            layer: PreparedRecurrent = prepared
            return layer.forward(
                values, self._device_state(state), return_gates=return_gates, training=training
            )
        if isinstance(spec, DenseSpec):
            dense: PreparedDense = prepared
            return dense.forward(values, training=training is not None)
        if isinstance(spec, DropoutSpec):
            return dropout(self.hardware, spec, values, training)
        return flatten(self.hardware, spec, values)

    def layer_groups(
        self, layers: Sequence[LayerSpec], *, training: bool
    ) -> Iterator[list[LayerSpec]]:
        """Group layers in stacks that may be pipelined; see `lstm_cli.engines.stacks`."""
        return stack_groups(layers, training=training)

    def forward_stack(
        self,
        layers: PreparedLayers,
        x: Any,
        states: Mapping[int, State],
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult] | None:
        """Compute a stack as a pipeline, or return None; see `lstm_cli.engines.stacks`."""
        recurrent = [(spec, layer) for spec, layer in layers if isinstance(spec, RecurrentSpec)]
        initial_states = [self._device_state(states.get(spec.index)) for spec, _ in recurrent]
        stack = [layer for _, layer in recurrent]
        recurrent_results = self.stacks.forward(
            stack, x, initial_states, return_gates=return_gates, training=training
        )
        if recurrent_results is None:
            return None
        results: list[LayerResult] = []
        for spec, _ in layers:
            if isinstance(spec, DropoutSpec):  # the identity inside a stack
                results.append(dropout(self.hardware, spec, results[-1].output, training))
            else:
                results.append(recurrent_results.pop(0))
        return results

    def backward_stack(
        self, layers: PreparedLayers, tapes: Sequence[Any], d_output: Any
    ) -> list[LayerGradients] | None:
        """Derivatives through a stack as a pipeline, or None."""
        pairs = [(layer, tape) for (_, layer), tape in zip(layers, tapes, strict=True) if layer]
        stack, stack_tapes = [layer for layer, _ in pairs], [tape for _, tape in pairs]
        per_step = stack[-1].spec.return_sequences
        d = self.pack_like(stack_tapes[-1].x, d_output, per_step=per_step)
        recurrent_gradients = self.stacks.backward(stack, stack_tapes, d)
        if recurrent_gradients is None:
            return None
        gradients: list[LayerGradients] = []
        for _, layer in reversed(layers):
            gradients.append(
                recurrent_gradients.pop() if layer else LayerGradients(gradients[-1].x)
            )
        return gradients[::-1]

    def _device_state(self, state: State | None) -> DeviceState | None:
        if state is None:
            return None
        h, c = state
        return self.to_device(h), None if c is None else self.to_device(c)

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
        per_step = isinstance(spec, DenseSpec | DropoutSpec) and tape.x.per_step
        if isinstance(spec, RecurrentSpec):
            per_step = spec.return_sequences
        d = self.pack_like(tape.x, d_output, per_step=per_step)
        if isinstance(spec, RecurrentSpec):
            layer: PreparedRecurrent = prepared
            return layer.backward(tape, d)
        if isinstance(spec, DenseSpec):
            dense: PreparedDense = prepared
            return dense.backward(tape, d.values, d_logits=d_logits)
        if isinstance(spec, DropoutSpec):
            return dropout_backward(self.hardware, tape, d)
        return flatten_backward(self.hardware, spec, tape, d)

    def explain(
        self, spec: RecurrentSpec, N: int, T: int, *, training: bool = False
    ) -> Explanation:
        """Explain the kernels of one layer; see `lstm_cli.engines.explanation`."""
        return self.explain_layers([spec], N, T, training=training)[spec.index]

    def explain_layers(
        self,
        layers: Sequence[LayerSpec],
        N: int,
        T: int,
        *,
        training: bool = False,
    ) -> Mapping[int, Explanation]:
        """Explain the kernels of recurrent layers; see `lstm_cli.engines.explanation`."""
        from lstm_cli.engines.cuda.explanation import explain_stack

        return explain_stack(self.stacks, layers, N, T, training=training)
