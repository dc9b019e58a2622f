"""Sources of all GPU kernels, for the gate that compiles them.

The engine itself requests them: every cell runs inference, inspection, and both passes of training
on a device that only records sources. So a new kernel needs no line here; a cell or a size that it
needs does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from cuda_cells import CELLS, LARGE
from cuda_host.recorder import Recorder
from networks import random_weights

from lstm_cli.cells import Activation, Cell
from lstm_cli.cells.activations import FORMULAS
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.kernels import NO_PERSISTENT_KERNEL, GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.stacks import PipelineOptions
from lstm_cli.engines.types import (
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DeviceError
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion
from lstm_cli.training.optimizers import OPTIMIZERS, make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

KERNELS = {"general": GeneralKernels, "persistent": PersistentKernels}

DEVICES = {
    "clusters": {"multiprocessors": 132, "shared_bytes": 232448, "largest_cluster": 16},
    "no clusters": {"multiprocessors": 108, "shared_bytes": 166912, "largest_cluster": 1},
    "less memory": {"multiprocessors": 84, "shared_bytes": 101376, "largest_cluster": 1},
    "small clusters": {"multiprocessors": 170, "shared_bytes": 101376, "largest_cluster": 8},
}
"""Limits of an H200, an A100, and large GPUs of compute capability 8.6 and 12.0."""

BATCHES = (1, 5, 40)
"""Batch sizes that together need every tile."""

BOTH, DROPPED = (5,), (40,)
"""Batch sizes with two directions and lengths, and those with recurrent dropout."""

D, T = 3, 4


@dataclass(frozen=True)
class Source:
    """A source and the cases that need it.

    Attributes
    ----------
    group
        Cell, precision, kernels and purpose. Sources of one group differ in their tiles.
    devices
        Names of `DEVICES` that need the source.
    """

    group: str
    text: str
    devices: frozenset[str]


def _layer(
    engine: CudaEngine, spec: LayerSpec, N: int, lengths: np.ndarray | None
) -> Iterator[str]:
    """Run a layer for every purpose; yields the purpose before each run."""
    real = engine.precision.accumulator
    layer = engine.layer(spec, random_weights([spec]))
    x = engine.from_padded(np.zeros((N, T, spec.input_size), real), lengths)
    yield "inference"
    layer.forward(x, lengths)
    yield "inspection"
    layer.forward(x, lengths, return_gates=True)
    yield "training"
    result = layer.forward(x, lengths, training=TrainingPass())
    layer.backward(result.tape, engine.to_device(np.zeros(result.output.shape, real)))
    yield "end"


def _recorded(
    cell: Cell, precision: str, kernels: str, N: int, device: Recorder, **layer: float
) -> Iterator[tuple[str, str]]:
    """Sources of a recurrent layer, each with its purpose; none if the kernels cannot run it."""
    directions = 2 if N in BOTH else 1
    spec = RecurrentSpec(0, D, (cell,) * directions, **layer)
    lengths = np.minimum(np.arange(N) + 1, T) if directions == 2 else None
    before, purpose = 0, ""
    try:
        engine = CudaEngine(precision, device)
        engine.kernels = KERNELS[kernels](device, engine.precision)
        for following in _layer(engine, spec, N, lengths):
            for source in list(device.sources)[before:]:
                yield purpose, source
            before, purpose = len(device.sources), following
    except DeviceError as error:
        if NO_PERSISTENT_KERNEL not in str(error):
            raise


def _cells() -> Iterator[Source]:
    """Sources of recurrent layers."""
    small = [(*item, BATCHES, list(KERNELS)) for item in CELLS.items()]
    large = [(name, cell, sizes, ["persistent"]) for name, cell, sizes in LARGE]
    for name, cell, batches, possible in small + large:
        for precision in PRECISIONS:
            for kernels in possible:
                for N in batches:
                    for kind, device in DEVICES.items():
                        dropout = {"recurrent_dropout": 0.5} if N in DROPPED else {}
                        recorder = Recorder(**device)
                        recorded = _recorded(cell, precision, kernels, N, recorder, **dropout)
                        for purpose, text in recorded:
                            group = f"{name} {precision} {kernels} {purpose}"
                            yield Source(group, text, frozenset({kind}))


def _pipelined(precision: str, recorder: Recorder) -> None:
    """Run a pipelined stack, forward and backward, with lengths and without."""
    cell, lengths = CELLS["lstm"], np.array([T, 1, 2])
    specs = (RecurrentSpec(0, D, (cell,)), RecurrentSpec(1, cell.hidden_size, (cell,)))
    engine = CudaEngine(precision, recorder, "auto", PipelineOptions("always", 2))
    network = Network(specs, random_weights(specs), engine)
    x = np.zeros((3, T, D), engine.precision.accumulator)
    for n in (lengths, None):
        tape = backpropagation.forward(network, x, n, None, TrainingPass())
        d = np.zeros(tape.outputs.shape, engine.precision.accumulator)
        backpropagation.backward(network, tape, d, d_logits=False)


def _others() -> Iterator[Source]:
    """Sources of the other layers, losses and optimizers."""
    cell = CELLS["lstm"]
    for precision in PRECISIONS:
        recorder = Recorder()
        engine = CudaEngine(precision, recorder)
        for name in [*FORMULAS, None]:
            spec = DenseSpec(0, D, 6, None if name is None else Activation(name))
            for _ in _layer(engine, spec, 5, None):
                pass
        _pipelined(precision, recorder)
        losses = ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy")
        for k, optimizer in enumerate(OPTIMIZERS):
            loss = losses[k % len(losses)]
            last = {"cross_entropy": None, "binary_cross_entropy": Activation("sigmoid")}
            specs = (
                RecurrentSpec(0, D, (cell,)),
                DropoutSpec(1, 7, 0.5),
                FlattenSpec(2, 7, T),
                DenseSpec(3, 7 * T, 2, last.get(loss, Activation("identity"))),
            )
            network = Network(specs, random_weights(specs), engine)
            updates = Updates(
                make_optimizer({"type": optimizer}),
                make_schedule({"type": "constant"}, epochs=1),
                clip_norm=1.0,
                clip_value=1.0,
            )
            learner = TrainStep(
                network, Criterion(TargetFormat(loss, False, 2, "targets")), updates
            )
            x = np.zeros((5, T, D), engine.precision.accumulator)
            learner.step(x, np.zeros((5, 2), engine.precision.accumulator), None)
        for k, (text, names) in enumerate(recorder.sources.items()):
            yield Source(f"others {precision} {names[0]} {k}", text, frozenset(DEVICES))


@functools.cache
def sources() -> tuple[Source, ...]:
    """Every source once, under the first group that needs it."""
    unique: dict[str, Source] = {}
    for source in (*_cells(), *_others()):
        first = unique.setdefault(source.text, source)
        unique[source.text] = replace(first, devices=first.devices | source.devices)
    return tuple(unique.values())
