"""Passes of the reference engine that round the operands of products to a narrow dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
from cuda_host.device import rounded_tf32

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import Stage
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.reference import layers
from lstm_cli.engines.reference.backward import BackwardPass, DirectionGradients, DirectionTape
from lstm_cli.engines.reference.forward import ForwardPass
from lstm_cli.engines.reference.step import NumpyStep, TrainingStep
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import Array


def rounded(values: Array, precision: str) -> Array:
    """Numbers as a precision multiplies them."""
    if precision == "float16":
        return values.astype(np.float16).astype(np.float32)
    if precision == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return (even << np.uint32(16)).view(np.float32)
    return rounded_tf32(values) if precision == "tf32" else values


def rounded_weights(weights: DirectionWeights, precision: str) -> DirectionWeights:
    """Matrices rounded, biases and peepholes as they are."""
    hr = weights.weight_hr
    return replace(
        weights,
        weight_ih=rounded(weights.weight_ih, precision),
        weight_hh=rounded(weights.weight_hh, precision),
        weight_hr=None if hr is None else rounded(hr, precision),
    )


class _Step(TrainingStep):
    """A step that rounds what products read."""

    round: Callable[[Array], Array]

    def recurrent(self, vector: Array, gates: tuple[str, ...]) -> Mapping[str, Array]:
        vector = self.round(vector if self.mask is None else vector * self.mask)
        self.reads.append(vector)
        parts = NumpyStep.recurrent(self, vector, gates)
        self._parts |= {f"h_{gate}": part for gate, part in parts.items()}
        return parts

    def project(self, vector: Array) -> Array:
        return super().project(self.round(vector))


class RoundedPass(ForwardPass):
    """A forward pass in a precision."""

    def __init__(self, precision: str, cell: Cell, weights: DirectionWeights, *given, **options):
        super().__init__(cell, rounded_weights(weights, precision), *given, **options)
        self.round = lambda values: rounded(values, precision)

    def _project(self, part: Array) -> Array:
        return super()._project(self.round(part))

    def _step(self, z: Array, padding: Array | None, history: object) -> NumpyStep:
        step = _Step(self.weights, z, padding, history, self.seconds, mask=self.mask)
        step.round = self.round
        if self.tape is not None:
            self.tape.steps.append(step)
        return step


class RoundedBackwardPass(BackwardPass):
    """A backward pass in what a precision's derivatives are multiplied in."""

    def __init__(self, precision: str, cell: Cell, weights: DirectionWeights, tape: DirectionTape):
        back = PRECISIONS[precision].backward_name
        super().__init__(cell, rounded_weights(weights, back), tape)
        self.round = lambda values: rounded(values, back)

    def run(self, d_output: Array | None, d_last: Array | None) -> DirectionGradients:
        found = super().run(d_output, d_last)
        T, N, D = self.tape.xt.shape
        dx = self.round(self.dz.reshape(T * N, -1)) @ self.weights.weight_ih
        return replace(found, x=dx.reshape(T, N, D))

    def _stage(
        self, t: int, stage: Stage, step: TrainingStep, read: int, adjoints: dict[str, Array]
    ) -> Array:
        super()._stage(t, stage, step, read, dict(adjoints))
        if stage.matrix == "weight_hr":
            adjoints.pop("projected")
            return self.round(self.projected[t]) @ self.weights.weight_hr
        for gate in stage.gates:
            adjoints.pop(f"h_{gate}", None)
        rows = self.weights.rows(stage.gates)
        reads = self.round(self.du[t][:, rows]) @ self.weights.weight_hh[rows]
        return reads if step.mask is None else reads * step.mask

    def _tensors(self) -> dict[str, Array]:
        """Sums of biases from derivatives as they are, products from rounded ones."""
        plain = super()._tensors()
        kept = self.dz, self.du, self.projected, self.tape.xt
        self.dz, self.du = self.round(self.dz), self.round(self.du)
        self.projected = [self.round(each) for each in self.projected]
        self.tape.xt = self.round(self.tape.xt)
        found = super()._tensors()
        self.dz, self.du, self.projected, self.tape.xt = kept
        return found | {n: v for n, v in plain.items() if n.startswith(("bias", "peephole"))}


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """The reference engine rounds as a precision does."""
    with (
        patch.object(layers, "ForwardPass", partial(RoundedPass, precision)),
        patch.object(layers, "BackwardPass", partial(RoundedBackwardPass, precision)),
    ):
        yield
