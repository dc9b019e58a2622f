"""The cuda engine: data go to the device once, and stay there from the first layer to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.kernels import KERNELS, select_kernels
from lstm_cli.engines.cuda.layers import make_layer
from lstm_cli.engines.cuda.passes import RecurrentTape
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.recurrent import Recurrent
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray
from lstm_cli.engines.cuda.runtime.memory import DeviceFeed
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelineOptions, stack_groups
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.protocols import Layer
from lstm_cli.engines.types import (
    Array,
    LayerGradients,
    LayerResult,
    Layers,
    LayerSpec,
    LayerTape,
    State,
    TrainingPass,
    add_biases,
    own_tape,
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
    workspace_bytes = None
    bits_ignore_threads = True
    ignores_padding = True

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
        self.accelerator = device
        self.dtype, self.device = dtype, device.name
        self.kernels = select_kernels(kernels, device, self.precision)
        self._zero_biases: dict[int, DeviceArray] = {}
        self.stacks = PipelinedStacks(device, self.kernels, pipelining or PipelineOptions())

    @property
    def kernels_title(self) -> str:
        """GPU architecture that the kernels are made for."""
        return f"GPU of architecture {self.hardware.architecture}"

    def feed(self) -> DeviceFeed:
        """Copies to and from the device; their benefit is unmeasured."""
        return DeviceFeed(self.hardware)

    def layer(
        self, spec: LayerSpec, weights: Mapping[str, DeviceArray | Array]
    ) -> Layer[DeviceArray, PackedSequences]:
        """The layer with its weights on the device; weights already there are not copied."""
        spec, weights = add_biases(spec, weights, self._zeros)
        tensors = {name: self.to_device(weights[name]) for name in spec.parameters()}
        return make_layer(spec, tensors, self, self.kernels)

    def _zeros(self, size: int) -> DeviceArray:
        """A zero bias on the device, cached since weights are prepared again for every update."""
        if size not in self._zero_biases:
            self._zero_biases[size] = self.to_device(np.zeros(size))
        return self._zero_biases[size]

    def layer_groups(
        self, layers: Sequence[LayerSpec], *, training: bool
    ) -> Iterator[list[LayerSpec]]:
        """Group layers in stacks that may be pipelined; see `lstm_cli.engines.stacks`."""
        return stack_groups(layers, training=training)

    def forward_stack(
        self,
        layers: Sequence[Layer[DeviceArray, PackedSequences]],
        x: PackedSequences,
        states: Mapping[int, State[DeviceArray | Array]],
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult[DeviceArray, PackedSequences]] | None:
        """Compute a stack as a pipeline, or return None; see `lstm_cli.engines.stacks`."""
        stack = [layer for layer in layers if isinstance(layer, Recurrent)]
        initial_states = [self.state_to_device(states.get(one.spec.index)) for one in stack]
        recurrent_results = self.stacks.forward(
            stack, x, initial_states, return_gates=return_gates, training=training
        )
        if recurrent_results is None:
            return None
        results: list[LayerResult[DeviceArray, PackedSequences]] = []
        for layer in layers:
            if isinstance(layer, Recurrent):
                results.append(recurrent_results.pop(0))
            else:  # dropout, the identity inside a stack
                results.append(
                    layer.forward(results[-1].output, x.batch.lengths, training=training)
                )
        return results

    def backward_stack(
        self,
        layers: Sequence[Layer[DeviceArray, PackedSequences]],
        tapes: Sequence[LayerTape],
        d_output: PackedSequences | Array,
    ) -> list[LayerGradients[DeviceArray, PackedSequences]] | None:
        """Derivatives through a stack as a pipeline, or None."""
        pairs = zip(layers, tapes, strict=True)
        recurrent = [(one, tape) for one, tape in pairs if isinstance(one, Recurrent)]
        stack = [layer for layer, _ in recurrent]
        stack_tapes = [own_tape(tape, RecurrentTape) for _, tape in recurrent]
        per_step = stack[-1].spec.return_sequences
        d = self.pack_like(stack_tapes[-1].x, d_output, per_step=per_step)
        recurrent_gradients = self.stacks.backward(stack, stack_tapes, d)
        if recurrent_gradients is None:
            return None
        gradients: list[LayerGradients[DeviceArray, PackedSequences]] = []
        for layer in reversed(layers):
            is_recurrent = isinstance(layer, Recurrent)
            gradients.append(
                recurrent_gradients.pop() if is_recurrent else LayerGradients(gradients[-1].x)
            )
        return gradients[::-1]

    def program(
        self, layers: Sequence[Layer[DeviceArray, PackedSequences]], N: int, T: int
    ) -> None:
        """Always None, since a device's layers are launched one by one."""

    def stepper(self, layers: Sequence[Layer[DeviceArray, PackedSequences]], N: int) -> None:
        """Always None, since a device's layers are launched one by one."""

    def explain(
        self, layers: Layers, N: int, T: int, *, training: bool = False
    ) -> Mapping[int, Explanation]:
        """Explain the kernels of recurrent layers; see `lstm_cli.engines.protocols.Engine`."""
        from lstm_cli.engines.cuda.explanation import explain_stack

        return explain_stack(self.stacks, layers, N, T, training=training)

    def measure_peaks(self, sizes: Sequence[int] = ()) -> None:
        """Always None, since a device's peak rates are not measured."""
