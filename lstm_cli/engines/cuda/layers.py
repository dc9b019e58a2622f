"""Layers with their weights on the device: dense, dropout and flatten, and the choice of one.

Recurrent layers are in ``recurrent.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.cells.expression import Expression, symbol
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.data_movement import (
    operand_of,
    pad_steps,
    round_if_narrow,
    unpad_steps,
)
from lstm_cli.engines.cuda.codegen.elementwise import evaluate
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.codegen.rows import column_sums, softmax, softmax_backward
from lstm_cli.engines.cuda.kernels import RecurrenceKernels
from lstm_cli.engines.cuda.precision import C_TYPES
from lstm_cli.engines.cuda.recurrent import Recurrent
from lstm_cli.engines.cuda.runtime.device import (
    LOOP_THREADS,
    Device,
    DeviceArray,
    EventTimer,
    cached_kernels,
    dtype_name,
    grid_stride_launch,
)
from lstm_cli.engines.protocols import Layer
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    LayerTape,
    RecurrentSpec,
    State,
    TrainingPass,
    own_tape,
)


@dataclass(frozen=True)
class DenseTape(LayerTape):
    """Values of a dense layer's forward pass that its backward pass needs."""

    x: PackedSequences
    logits: DeviceArray
    output: DeviceArray


class Dense:
    """A dense layer with its weights on the device.

    Parameters
    ----------
    weights
        Weight (units, D) and bias (units,) by stored name, in the accumulator type, on the device.
    arrays
        Operations on the device's arrays.
    """

    def __init__(
        self, spec: DenseSpec, weights: Mapping[str, DeviceArray], arrays: DeviceArrays
    ) -> None:
        self.spec, self.arrays = spec, arrays
        self.device, self.precision = arrays.hardware, arrays.precision
        self._names = tuple(spec.parameters())
        self.weight, self.bias = (weights[name] for name in self._names)

    def forward(
        self,
        x: PackedSequences,
        lengths: Array | None = None,
        state: State[DeviceArray | Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[DeviceArray, PackedSequences]:
        """Compute act(W x + b) for every valid row."""
        device, precision = self.device, self.precision
        timer = EventTimer(device)
        timer.start("product")
        a = device.empty((x.values.shape[0], self.spec.units), precision.accumulator)
        if a.size:
            weight = round_if_narrow(device, precision, self.weight)
            operand = operand_of(device, precision, x)
            device.multiply(operand, weight, a, precision.name, transpose_b=True)
        y = self._activate(a)
        timer.stop()
        tape = None if training is None else DenseTape(x, a, y)
        logits = PackedSequences(x.batch, a, x.per_step)
        output = PackedSequences(x.batch, y, x.per_step)
        return LayerResult(output, logits=logits, seconds=timer, tape=tape)

    def backward(
        self, tape: LayerTape, d_output: PackedSequences | Array, *, d_logits: bool = False
    ) -> LayerGradients[DeviceArray, PackedSequences]:
        """Derivatives for input, weight and bias from those of the valid rows."""
        recorded = own_tape(tape, DenseTape)
        device, precision, x = self.device, self.precision.backward, recorded.x
        d = self.arrays.pack_like(x, d_output, per_step=x.per_step).values
        if not d_logits:
            d = self._activation_backward(recorded, d)
        dx = device.empty(x.values.shape, precision.accumulator)
        dw = device.zeros(self.weight.shape, precision.accumulator)
        db = column_sums(device, precision, d)
        if dx.size:
            operand = round_if_narrow(device, precision, d)
            weight = round_if_narrow(device, precision, self.weight)
            device.multiply(operand, weight, dx, precision.name)
            x_operand = operand_of(device, precision, x)
            device.multiply(operand, x_operand, dw, precision.name, transpose_a=True)
        gradients = dict(zip(self._names, (dw, db), strict=True))
        return LayerGradients(PackedSequences(x.batch, dx, x.per_step), gradients)

    def _activate(self, a: DeviceArray) -> DeviceArray:
        """Activation of logits, to which the bias is added in place."""
        activation = self.spec.activation
        if activation is None:
            return softmax(self.device, a, self.bias)
        in_place = str(activation) == "identity"
        y = a if in_place else self.device.empty(a.shape, self.precision.accumulator)
        if a.size:
            key = ("dense", activation, self.precision.accumulator)
            kernels = cached_kernels(self.device, key, ["finish"], lambda: self._source(activation))
            launch = grid_stride_launch(self.device, a.size)
            kernels["finish"](launch, a, self.bias, y, self.spec.units, a.size)
        return y

    def _source(self, activation: Activation) -> str:
        """CUDA C++ of the kernel ``finish``: bias and activation."""
        lines, names = emit({"y": activation(symbol("a"))}, {"a": "a"})
        body = "\n    ".join(lines)
        return f"""{PRELUDE}
typedef {C_TYPES[self.precision.accumulator]} real;
extern "C" __global__ void __launch_bounds__({LOOP_THREADS}) finish(
    real* logits, const real* bias, real* y, long long F, long long size) {{
  {GRID_STRIDE_LOOP} {{
    const real a = logits[k] + bias[k % F];
    {body}
    logits[k] = a;
    y[k] = {names["y"]};
  }}
}}
"""

    def _activation_backward(self, tape: DenseTape, d: DeviceArray) -> DeviceArray:
        """Derivative for the logits from the derivative for the activations."""
        activation = self.spec.activation
        if activation is None:
            return softmax_backward(self.device, tape.output, d)
        if str(activation) == "identity":
            return d
        out = self.device.empty(d.shape, self.precision.accumulator)
        root = _derivative(activation)
        evaluate(self.device, {"a": root}, {"a": tape.logits, "d": d}, {"a": out})
        return out


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Expression:
    return gradient({activation(symbol("a")): symbol("d")})["a"]


_MASK_PRODUCT = {"y": symbol("x") * symbol("m")}


@dataclass(frozen=True)
class MaskTape(LayerTape):
    """Values that the backward pass of dropout or flatten needs.

    Attributes
    ----------
    x
        Input of the layer.
    mask
        Dropout mask; None without dropout.
    """

    x: PackedSequences
    mask: DeviceArray | None = None


@dataclass(frozen=True)
class Dropout:
    """A dropout layer: inverted dropout in training, the identity otherwise."""

    spec: DropoutSpec
    arrays: DeviceArrays

    def forward(
        self,
        x: PackedSequences,
        lengths: Array | None = None,
        state: State[DeviceArray | Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[DeviceArray, PackedSequences]:
        """`x`, in training times a mask."""
        if training is None:
            return LayerResult(x)
        if self.spec.rate == 0:
            return LayerResult(x, tape=MaskTape(x))
        batch = x.batch
        mask = training.mask(self.spec, 0, x.shape, self.spec.rate)
        if x.per_step:
            n = np.full(batch.N, batch.T) if batch.lengths is None else batch.lengths
            mask = mask[np.arange(batch.T) < n[:, None]]
        device = self.arrays.hardware
        device_mask = device.upload(np.ascontiguousarray(mask, dtype_name(x.values.dtype)))
        output = _apply_mask(device, x, device_mask)
        return LayerResult(output, tape=MaskTape(x, device_mask))

    def backward(
        self, tape: LayerTape, d_output: PackedSequences | Array, *, d_logits: bool = False
    ) -> LayerGradients[DeviceArray, PackedSequences]:
        """`d_output` times the mask of the forward pass."""
        recorded = own_tape(tape, MaskTape)
        d = self.arrays.pack_like(recorded.x, d_output, per_step=recorded.x.per_step)
        mask = recorded.mask
        return LayerGradients(d if mask is None else _apply_mask(self.arrays.hardware, d, mask))


def _apply_mask(device: Device, x: PackedSequences, mask: DeviceArray) -> PackedSequences:
    out = device.empty(x.values.shape, dtype_name(x.values.dtype))
    evaluate(device, _MASK_PRODUCT, {"x": x.values, "m": mask}, {"y": out})
    return PackedSequences(x.batch, out, x.per_step)


@dataclass(frozen=True)
class Flatten:
    """A layer from (N, T, F) to (N, steps * F), padded with zeros."""

    spec: FlattenSpec
    arrays: DeviceArrays

    def forward(
        self,
        x: PackedSequences,
        lengths: Array | None = None,
        state: State[DeviceArray | Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[DeviceArray, PackedSequences]:
        """The steps of each sequence, one after another."""
        values = pad_steps(self.arrays.hardware, x, self.spec.steps)
        return LayerResult(PackedSequences(x.batch, values, per_step=False), tape=MaskTape(x))

    def backward(
        self, tape: LayerTape, d_output: PackedSequences | Array, *, d_logits: bool = False
    ) -> LayerGradients[DeviceArray, PackedSequences]:
        """Derivative (N, steps * F) of the flattened values, back to the valid steps."""
        x = own_tape(tape, MaskTape).x
        d = self.arrays.pack_like(x, d_output, per_step=False)
        values = unpad_steps(self.arrays.hardware, x.batch, d.values, self.spec.steps)
        return LayerGradients(PackedSequences(x.batch, values))


def make_layer(
    spec: LayerSpec,
    weights: Mapping[str, DeviceArray],
    arrays: DeviceArrays,
    kernels: RecurrenceKernels,
) -> Layer[DeviceArray, PackedSequences]:
    """The layer of a specification, with its tensors on the device by stored name."""
    match spec:
        case RecurrentSpec():
            return Recurrent(spec, weights, arrays, kernels)
        case DenseSpec():
            return Dense(spec, weights, arrays)
        case DropoutSpec():
            return Dropout(spec, arrays)
        case FlattenSpec():
            return Flatten(spec, arrays)
        case _:
            assert_never(spec)
