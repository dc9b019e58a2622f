"""A recurrent layer's masks of dropout, drawn on the host and sent to the device."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.batch import Batch
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.types import RecurrentSpec, TrainingPass


def state_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    d: int,
    N: int,
    training: TrainingPass | None,
) -> DeviceArray | None:
    """Of recurrent dropout in direction d: (N, P); None: there is none."""
    rate = spec.recurrent_dropout
    if training is None or not rate:
        return None
    shape = (N, spec.cells[d].output_size)
    mask = training.mask(spec, 1 + d, shape, rate)
    return device.upload(mask.astype(precision.real))


def input_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    batch: Batch,
    training: TrainingPass,
) -> DeviceArray:
    """Of dropout, for the steps that there are: (Q, D)."""
    shape = (batch.N, batch.T, spec.input_size)
    mask = training.mask(spec, 0, shape, spec.dropout)
    if batch.lengths is None:
        mask = mask.reshape(batch.Q, shape[2])
    else:
        mask = mask[np.arange(batch.T) < batch.lengths[:, None]]
    return device.upload(mask.astype(precision.real))
