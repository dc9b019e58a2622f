"""Dropout and flatten on the device: forward beside backward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstm_cli.cells.expression import symbol
from lstm_cli.engines.cuda.batch import Sequences
from lstm_cli.engines.cuda.copies import padded, repack
from lstm_cli.engines.cuda.device import Device, DeviceArray, dtype_name
from lstm_cli.engines.cuda.elementwise import evaluate
from lstm_cli.engines.types import (
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    TrainingPass,
)

PRODUCT = {"y": symbol("x") * symbol("m")}


@dataclass(frozen=True)
class ReshapingTape:
    """What a backward pass needs: the values that came in, and of dropout its mask, if any."""

    x: Sequences
    mask: DeviceArray | None = None


def dropout(
    device: Device, spec: DropoutSpec, x: Sequences, training: TrainingPass | None
) -> LayerResult:
    """Some values 0 and the rest larger, in training; else the identity."""
    if training is None:
        return LayerResult(x)
    if spec.rate == 0:
        return LayerResult(x, tape=ReshapingTape(x))
    batch = x.batch
    mask = training.mask(spec, 0, x.shape, spec.rate)
    if x.per_step:
        n = np.full(batch.N, batch.T) if batch.lengths is None else batch.lengths
        mask = mask[np.arange(batch.T) < n[:, None]]
    own = device.upload(np.ascontiguousarray(mask, dtype_name(x.real.dtype)))
    tape = ReshapingTape(x, own)
    return LayerResult(_times(device, x, own), tape=tape)


def dropout_backward(device: Device, tape: ReshapingTape, d: Sequences) -> LayerGradients:
    """The derivative for the values before dropout."""
    return LayerGradients(d if tape.mask is None else _times(device, d, tape.mask))


def _times(device: Device, x: Sequences, mask: DeviceArray) -> Sequences:
    out = device.empty(x.real.shape, dtype_name(x.real.dtype))
    evaluate(device, PRODUCT, {"x": x.real, "m": mask}, {"y": out})
    return Sequences(x.batch, out, x.per_step)


def flatten(device: Device, spec: FlattenSpec, x: Sequences) -> LayerResult:
    """(N, T, F) to (N, steps * F), padded with zeros."""
    y = Sequences(x.batch, padded(device, x, spec.steps), per_step=False)
    return LayerResult(y, tape=ReshapingTape(x))


def flatten_backward(
    device: Device, spec: FlattenSpec, tape: ReshapingTape, d: Sequences
) -> LayerGradients:
    """(N, steps * F) back to the steps that there are."""
    return LayerGradients(Sequences(tape.x.batch, repack(device, tape.x.batch, d.real, spec.steps)))
