"""A dense layer on the device: a product, then bias and activation in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lstm_cli.cells import Activation
from lstm_cli.cells.expression import Expression, symbol
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines.cuda.batch import Sequences
from lstm_cli.engines.cuda.clocks import Spans
from lstm_cli.engines.cuda.copies import TYPES, element_of
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.elementwise import evaluate
from lstm_cli.engines.cuda.launches import LOOP, THREADS, compiled, over
from lstm_cli.engines.cuda.pointwise import emit
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE
from lstm_cli.engines.cuda.reduce import column_sums
from lstm_cli.engines.cuda.rounding import rounded
from lstm_cli.engines.cuda.softmax import softmax, softmax_backward
from lstm_cli.engines.types import DenseSpec, LayerGradients, LayerResult


@dataclass(frozen=True)
class DenseTape:
    """What the backward pass needs."""

    x: Sequences
    logits: DeviceArray
    output: DeviceArray


class DenseLayer:
    """A dense layer with its weights on the device.

    Parameters
    ----------
    weight, bias
        (units, D) and (units,), of the precision's `real`.
    """

    def __init__(
        self,
        spec: DenseSpec,
        weight: DeviceArray,
        bias: DeviceArray,
        device: Device,
        precision: Precision,
    ) -> None:
        self.spec, self.weight, self.bias = spec, weight, bias
        self.device, self.precision = device, precision

    def forward(self, x: Sequences, *, training: bool) -> LayerResult:
        """act(W x + b) for every row that there is."""
        device, precision = self.device, self.precision
        spans = Spans(device)
        spans.begin("product")
        a = device.empty((x.real.shape[0], self.spec.units), precision.real)
        if a.size:
            weight = self._operand(self.weight, precision)
            x_element = element_of(device, precision, x)
            device.multiply(x_element, weight, a, precision.name, transpose_b=True)
        y = self._activated(a)
        spans.end()
        tape = DenseTape(x, a, y) if training else None
        logits = Sequences(x.batch, a, x.per_step)
        return LayerResult(
            Sequences(x.batch, y, x.per_step), logits=logits, seconds=spans, tape=tape
        )

    def backward(self, tape: DenseTape, d_output: DeviceArray, *, d_logits: bool) -> LayerGradients:
        """Derivatives for input, weight and bias from those of the rows that there are."""
        device, spec, precision = self.device, self.spec, self.precision.backward
        d = d_output if d_logits else self._through(tape, d_output)
        dx = device.empty(tape.x.real.shape, precision.real)
        dw = device.zeros(self.weight.shape, precision.real)
        db = column_sums(device, precision, d)
        if dx.size:
            narrow = self._operand(d, precision)
            device.multiply(narrow, self._operand(self.weight, precision), dx, precision.name)
            x = element_of(device, precision, tape.x)
            device.multiply(narrow, x, dw, precision.name, transpose_a=True)
        prefix = f"layers.{spec.index}."
        found = {prefix + "weight": dw, prefix + "bias": db}
        return LayerGradients(Sequences(tape.x.batch, dx, tape.x.per_step), found)

    def _operand(self, values: DeviceArray, precision: Precision) -> DeviceArray:
        return rounded(self.device, precision, values) if precision.narrow else values

    def _activated(self, a: DeviceArray) -> DeviceArray:
        """The activation of logits, to which the bias is added in place."""
        activation = self.spec.activation
        if activation is None:
            return softmax(self.device, a, self.bias)
        plain = str(activation) == "identity"
        y = a if plain else self.device.empty(a.shape, self.precision.real)
        if a.size:
            key = ("dense", activation, self.precision.real)
            kernel = compiled(self.device, key, ["finish"], lambda: self._source(activation))
            kernel["finish"](over(self.device, a.size), a, self.bias, y, self.spec.units, a.size)
        return y

    def _source(self, activation: Activation) -> str:
        """CUDA C++ of the kernel ``finish``."""
        lines, names = emit({"y": activation(symbol("a"))}, {"a": "a"})
        body = "\n    ".join(lines)
        return f"""{PRELUDE}
typedef {TYPES[self.precision.real]} real;
extern "C" __global__ void __launch_bounds__({THREADS}) finish(
    real* logits, const real* bias, real* y, long long F, long long size) {{
  {LOOP} {{
    const real a = logits[k] + bias[k % F];
    {body}
    logits[k] = a;
    y[k] = {names["y"]};
  }}
}}
"""

    def _through(self, tape: DenseTape, d: DeviceArray) -> DeviceArray:
        """The derivative for the logits from the one for the activations."""
        activation = self.spec.activation
        if activation is None:
            return softmax_backward(self.device, tape.output, d)
        if str(activation) == "identity":
            return d
        out = self.device.empty(d.shape, self.precision.real)
        root = _derivative(activation)
        evaluate(self.device, {"a": root}, {"a": tape.logits, "d": d}, {"a": out})
        return out


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Expression:
    return gradient({activation(symbol("a")): symbol("d")})["a"]
