"""A dense layer: its product with kernels of our own, the rest as the reference engine does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.cells.expression import symbol
from lstm_cli.engines.jit.gradients import WeightGradient, gradient_kernel, run_gradient
from lstm_cli.engines.jit.machine import Machine
from lstm_cli.engines.jit.memory import Stock, Workspaces
from lstm_cli.engines.jit.packing import Packed
from lstm_cli.engines.jit.products import (
    Lines,
    Product,
    packed,
    product_kernel,
    run_product,
)
from lstm_cli.engines.reference.layers import DenseTape, softmax, through_activation
from lstm_cli.engines.setup_time import total_setup_seconds
from lstm_cli.engines.types import Array, DenseSpec, LayerGradients, LayerResult


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A dense layer's weights, packed for this machine.

    Attributes
    ----------
    weight, bias
        (units, D) and (units,), as stored, without gaps.
    stock
        Where the memory of panels and of gradients comes from.
    """

    spec: DenseSpec
    weight: Array
    bias: Array
    machine: Machine
    stock: Stock
    _packed: dict[str, Packed] = field(default_factory=dict)

    def forward(self, x: Array, lengths: Array | None, threads: int) -> LayerResult:
        """Every step of every sequence; past its end 0."""
        begun, prepared = perf_counter(), total_setup_seconds()
        spec, M = self.spec, x.size // self.spec.input_size
        flat = np.ascontiguousarray(x).reshape(M, spec.input_size)
        logits = np.empty((M, spec.units), x.dtype)
        y = logits if spec.activation is None else np.empty_like(logits)
        weights = self._of("forward", self.weight, self.bias, threads)
        root = None if spec.activation is None else spec.activation(symbol("a"))
        kernel = product_kernel(weights.columns.split, root, self.machine)
        before = None if root is None else Lines.of(logits)
        run_product(kernel, Product(M, Lines.of(flat), weights, Lines.of(y), before), threads)
        if spec.activation is None:
            y = softmax(logits)
        shape = (*x.shape[:-1], spec.units)
        logits, y = logits.reshape(shape), y.reshape(shape)
        if lengths is not None and y.ndim == 3:
            ended = np.arange(x.shape[1]) >= lengths[:, None]
            y = np.where(ended[:, :, None], np.zeros((), y.dtype), y)
        seconds = {"product": perf_counter() - begun - (total_setup_seconds() - prepared)}
        return LayerResult(y, logits=logits, seconds=seconds, tape=DenseTape(x, logits, y))

    def backward(
        self, tape: DenseTape, d_output: Array, spaces: Workspaces, threads: int, *, d_logits: bool
    ) -> LayerGradients:
        """Derivatives for input, weight and bias; `d_output` is 0 past a sequence's end."""
        spec = self.spec
        d = d_output if d_logits else through_activation(spec, tape, d_output)
        flat = np.ascontiguousarray(d, tape.x.dtype).reshape(-1, spec.units)
        x = np.ascontiguousarray(tape.x).reshape(-1, spec.input_size)
        dx = self.stock.shaped(x.shape, x.dtype)
        weights = self._of("backward", self.weight.T, None, threads)
        kernel = product_kernel(weights.columns.split, machine=self.machine)
        run_product(kernel, Product(len(x), Lines.of(flat), weights, Lines.of(dx)), threads)
        weight, bias = self.stock.like(self.weight), self.stock.like(self.bias)
        element = "float" if x.itemsize == 4 else "double"
        made = gradient_kernel(spec.input_size, element, self.machine)
        start = np.zeros(1, np.int64)
        given = WeightGradient(len(x), Lines.of(flat), start, spec.units, Lines.of(x), weight, bias)
        space = spaces.take("dense")
        run_gradient(made, given, space, threads)
        spaces.give("dense", space)
        prefix = f"layers.{spec.index}."
        found: dict[str, Any] = {prefix + "weight": weight, prefix + "bias": bias}
        return LayerGradients(dx.reshape(tape.x.shape), found)

    def _of(self, which: str, matrix: Array, init: Array | None, threads: int) -> Packed:
        if which not in self._packed:
            self._packed[which] = packed(matrix, init, self.machine, threads, self.stock)
        return self._packed[which]
