"""Training steps: forward, loss, backward and Adam's update of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.bench.agreement import FirstStep, agreement, gradient_agreement, update_agreement
from lstm_cli.bench.contest import (
    OURS,
    PADDED,
    Batch,
    Contestant,
    our_title,
)
from lstm_cli.bench.draws import random_inputs, random_targets, random_weights
from lstm_cli.bench.peers import Lesson, Peer, Trainee
from lstm_cli.bench.residence import (
    clock_of,
    numpy_dtype,
    resident,
    setting_of,
    weight_bytes,
)
from lstm_cli.bench.results import Agreement
from lstm_cli.bench.rounding import ROUNDED, rounded_gradients
from lstm_cli.bench.sizes import Size, describe, recurrent_reads, training_flops
from lstm_cli.engines.types import Array, DropoutSpec, Engine, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import ConfigError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion, loss_for
from lstm_cli.training.optimizers import AdamOptimizer
from lstm_cli.training.schedules import ConstantRate
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

TOLERANCES: Mapping[str, float] = {"float32": 2e-4, "float64": 1e-10}
"""By dtype, the largest difference at which losses and gradients count as equal."""

UPDATE_TOLERANCES: Mapping[str, float] = {"float32": 1e-6, "float64": 1e-12}
"""By dtype, how far weights may be from the update's equation: a thousandth of Adam's first
step in float32, which is some roundings of a weight near 1."""


class TrainingContest:
    """Steps on one batch, again and again.

    Dropout is left out, for no two frameworks draw the same masks. The loss is a mean over all
    valid rows, without class weights or smoothing.

    Parameters
    ----------
    loss
        None: the one that suits the last layer.

    Raises
    ------
    ConfigError
        The layers have no weights.
    """

    def __init__(
        self,
        layers: Layers,
        size: Size,
        engine: Engine,
        seed: int,
        loss: str | None = None,
        *,
        ragged: bool = False,
    ) -> None:
        loss = loss or loss_for(layers)
        if not any(spec.parameters() for spec in layers):
            raise ConfigError(
                f"there is nothing to train in {describe(layers)}",
                expected="a layer with weights",
                hint="bench --mode forward measures layers without weights",
            )
        layers, dtype = without_dropout(layers), numpy_dtype(engine)
        self.batch = batch = Batch.drawn(size, seed, ragged=ragged)
        self.words = f"{batch.words(layers)}, {loss}"
        self.flops = training_flops(layers, size, batch.positions)
        self.padded_flops = training_flops(layers, size)
        # Forwards, and backwards.
        self.reads = recurrent_reads(layers, 2 * batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        weights = random_weights(layers, seed, dtype)
        self._lesson = Lesson(layers, weights, loss, AdamOptimizer(), batch.lengths)
        self._x = random_inputs(layers, size, seed, dtype)
        self._targets = random_targets(layers, size, loss, seed, dtype)

    def ours(self) -> Contestant:
        """This program."""
        return self._own(OURS, our_title(self._engine), self._lesson)

    def padded(self) -> Contestant:
        """This program, on full-length sequences."""
        lesson = replace(self._lesson, lengths=None)
        return self._own(PADDED, our_title(self._engine, PADDED), lesson)

    def _own(self, name: str, title: str, lesson: Lesson) -> Contestant:
        return self._contestant(name, title, OwnTrainee(lesson, self._engine))

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer with the same weights, inputs, targets, loss and optimiser."""
        setting = setting_of(self._engine)
        trainee = stack.enter_context(peer.prepare_training(self._lesson, self._size, setting))

        def exact() -> FirstStep:
            weights = {name: w.astype(np.float64) for name, w in self._lesson.weights.items()}
            lesson, other = replace(self._lesson, weights=weights), setting_of(engine, "float64")
            with peer.prepare_training(lesson, self._size, other) as trainee:
                return self._first(trainee, "float64")

        engine = self._engine
        made = self._contestant(peer.name, peer.title, trainee)
        return replace(made, exact=exact) if engine.dtype in ROUNDED else made

    def compare(self, expected: FirstStep, found: FirstStep, exact: Any = None) -> Agreement:
        """By the loss and the gradients of the first step, and by both sides' updates."""
        dtype, lesson = self._engine.dtype, self._lesson
        close = TOLERANCES.get(dtype, 0.0)
        rounded = UPDATE_TOLERANCES.get(dtype, UPDATE_TOLERANCES["float32"])
        if exact is None:
            gradients = gradient_agreement(expected.gradients, found.gradients, close)
            parts = [agreement(expected.loss, found.loss, close, "loss"), gradients]
        else:
            parts = rounded_gradients(expected, found, exact, dtype)
            gradients = parts[-1]
        parts += [
            update_agreement(lesson.weights, step, lesson.optimizer, rounded)
            for step in (found, expected)
        ]
        return next((part for part in parts if not part.ok), gradients)

    def _contestant(self, name: str, title: str, trainee: Trainee) -> Contestant:
        x, targets = trainee.place(self._x, self._targets)

        def call() -> float:
            return trainee.step(x, targets)

        return Contestant(name, title, trainee.clock, call, lambda: self._first(trainee))

    def _first(self, trainee: Trainee, dtype: str | None = None) -> FirstStep:
        """The first step, in the engine's dtype or in another."""
        x, targets = self._x, self._targets
        if dtype is not None:
            x = x.astype(dtype)
            targets = targets.astype(dtype) if targets.dtype.kind == "f" else targets
        loss = trainee.step(*trainee.place(x, targets))
        return FirstStep(loss, _copied(trainee.gradients()), _copied(trainee.weights()))


def without_dropout(layers: Layers) -> tuple[LayerSpec, ...]:
    """The layers that are left when nothing is dropped."""
    return tuple(
        replace(spec, dropout=0.0, recurrent_dropout=0.0)
        if isinstance(spec, RecurrentSpec)
        else spec
        for spec in layers
        if not isinstance(spec, DropoutSpec)
    )


class OwnTrainee:
    """This program's network, as it learns."""

    def __init__(self, lesson: Lesson, engine: Engine) -> None:
        self._engine, self.clock = engine, clock_of(engine)
        network = Network(lesson.layers, lesson.weights, engine)
        targets = TargetFormat(
            lesson.loss, network.returns_sequences, network.output_size, "random targets"
        )
        updates = Updates(lesson.optimizer, ConstantRate())
        self._learner = TrainStep(network, Criterion(targets), updates)
        self._lengths = lesson.lengths
        self._gradients: Mapping[str, Array] = {}

    def place(self, x: Array, targets: Array) -> tuple[Any, Any]:
        """Where the engine computes."""
        return resident(self._engine, x), resident(self._engine, targets)

    def step(self, x: Any, targets: Any) -> float:
        """One update; a step that makes none is no training, and its time would flatter."""
        report = self._learner.step(x, targets, self._lengths)
        if not (report.updates and report.updates[0].finite):
            raise TrainingError(
                "a loss or a gradient of the measured network is not finite",
                found=f"a loss of {report.loss:g}",
                hint="--seed 1 draws other weights, --dtype float64 holds larger numbers",
            )
        self._gradients = report.gradients.weights
        return report.loss

    def gradients(self) -> Mapping[str, Array]:
        """Of the last step."""
        return {name: self._engine.to_host(g) for name, g in self._gradients.items()}

    def weights(self) -> Mapping[str, Array]:
        """As they are now."""
        return {name: self._engine.to_host(w) for name, w in self._learner.weights.items()}


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What later steps do not change."""
    return {name: np.array(value) for name, value in arrays.items()}
