"""Workloads at one size: forward passes and training steps, by this program and by peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Array, DropoutSpec, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import ConfigError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion, loss_for
from lstm_cli.training.optimizers import AdamOptimizer
from lstm_cli.training.schedules import ConstantSchedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates
from lstm_cli.workflows.bench.agreement import (
    ROUNDING_TOLERANCES,
    FirstStep,
    gradient_agreement,
    output_agreement,
    rounded_agreement,
    rounded_gradients,
    update_agreement,
)
from lstm_cli.workflows.bench.peers import (
    ComputeSetting,
    Peer,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
)
from lstm_cli.workflows.bench.protocol import WALL, Clock, DeviceClock
from lstm_cli.workflows.bench.results import PeerAgreement
from lstm_cli.workflows.bench.sizes import (
    GridSize,
    describe,
    flops,
    random_inputs,
    random_lengths,
    random_targets,
    random_weights,
    recurrent_reads,
    training_flops,
)

LSTM_CLI, PADDED = "lstm-cli", "padded"
"""Names of this program's candidates, on the batch as it is and on full-length sequences."""

OUTPUT_TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-10}
"""Largest difference of equal outputs by dtype (see `PeerAgreement`).

`lstm_cli.workflows.bench.agreement.ROUNDING_TOLERANCES` has the dtypes that round operands."""

GRADIENT_TOLERANCES: Mapping[str, float] = {"float32": 2e-4, "float64": 1e-10}
"""Largest difference of equal losses and gradients by dtype."""

UPDATE_TOLERANCES: Mapping[str, float] = {"float32": 1e-6, "float64": 1e-12}
"""Largest distance of updated weights from the optimizer's equation, by dtype.

In float32 this is a thousandth of Adam's first step: some roundings of a weight near 1."""


@dataclass(frozen=True)
class Candidate:
    """One program at one size: a call to time and the results to compare.

    Attributes
    ----------
    name, title
        Those of `Timing`.
    call
        The function that is timed.
    clock
        The clock that times `call`.
    compute
        Returns the results to compare; called once, before timing.
    compute_exact
        Returns the same results in float64, to tell roundings from mistakes; None: not needed.
    """

    name: str
    title: str
    clock: Clock
    call: Callable[[], Any]
    compute: Callable[[], Any]
    compute_exact: Callable[[], Any] | None = None


@dataclass(frozen=True)
class WorkloadBatch:
    """Lengths and valid steps of the sequences in one call.

    Attributes
    ----------
    lengths
        (N,) of a ragged batch; None: every sequence has T steps.
    positions
        Valid steps of all sequences together.
    longest
        Valid steps of the longest sequence.
    """

    lengths: Array | None
    positions: int
    longest: int

    @classmethod
    def random(cls, size: GridSize, seed: int, *, ragged: bool) -> WorkloadBatch:
        """A batch of full-length sequences, or of random lengths if `ragged`."""
        if not ragged:
            return cls(None, size.batch * size.steps, size.steps)
        lengths = random_lengths(size, seed)
        return cls(lengths, int(lengths.sum()), int(lengths.max()))

    def describe(self, layers: Layers) -> str:
        """Name the layers, and whether the batch is ragged."""
        return describe(layers) + ("" if self.lengths is None else ", ragged")

    def valid(self, y: Array) -> Array:
        """Outputs to compare: the valid steps of (N, T, F), all of (N, F)."""
        if self.lengths is None or y.ndim != 3:
            return y
        return np.asarray(y[np.arange(y.shape[1]) < self.lengths[:, None]])


class Workload(Protocol):
    """The work that is measured at one size.

    Attributes
    ----------
    description
        The layers in a few words; equal descriptions mean equal work.
    flops
        Floating-point operations of one call.
    padded_flops
        Floating-point operations of one call on full-length sequences.
    reads
        Number of reads of recurrent matrices in a call, by bytes of a matrix.
    batch
        The steps of one call.
    """

    description: str
    flops: float
    padded_flops: float
    reads: Mapping[int, int]
    batch: WorkloadBatch

    def lstm_cli_candidate(self) -> Candidate:
        """This program."""

    def padded_candidate(self) -> Candidate:
        """This program on the same inputs, with all steps of every sequence valid."""

    def peer_candidate(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer that is usable until `stack` closes.

        Raises any exception of the peer's framework if it cannot do this work.
        """

    def compare(self, expected: Any, actual: Any, exact: Any = None) -> PeerAgreement:
        """Compare this program's results with a peer's; `exact` is `Candidate.compute_exact`'s."""


class ForwardWorkload:
    """Forward passes over a batch.

    Inputs are on a candidate's device before timing begins, and outputs stay there. On a CPU
    that is NumPy's memory: a peer's copies from it and to it are timed.
    """

    def __init__(
        self, layers: Layers, size: GridSize, engine: Engine, seed: int, *, ragged: bool = False
    ) -> None:
        dtype = numpy_dtype(engine)
        self.batch = WorkloadBatch.random(size, seed, ragged=ragged)
        self.description = self.batch.describe(layers)
        self.flops = flops(layers, size, self.batch.positions)
        self.padded_flops = flops(layers, size)
        self.reads = recurrent_reads(layers, self.batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        self._network = Network(layers, random_weights(layers, seed, dtype), engine)
        self._x = random_inputs(layers, size, seed, dtype)

    def lstm_cli_candidate(self) -> Candidate:
        """This program."""
        return self._candidate(LSTM_CLI, lstm_cli_title(self._engine), self.batch.lengths)

    def padded_candidate(self) -> Candidate:
        """This program on full-length sequences."""
        return self._candidate(PADDED, lstm_cli_title(self._engine, PADDED), None)

    def _candidate(self, name: str, title: str, lengths: Array | None) -> Candidate:
        engine, network = self._engine, self._network
        x = engine.feed().place(self._x)

        def call() -> Any:
            return network.run(x, lengths).outputs

        return Candidate(name, title, engine_clock(engine), call, lambda: engine.to_host(call()))

    def peer_candidate(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer with the same weights and inputs."""
        net = stack.enter_context(self._peer_network(peer))
        x = net.to_device(self._x)

        def call() -> Any:
            return net.call(x)

        def compute_exact() -> Array:
            with self._peer_network(peer, "float64") as exact_net:
                return exact_net(self._x.astype(np.float64))

        return Candidate(
            peer.name,
            peer.title,
            net.clock,
            call,
            lambda: net.to_host(call()),
            compute_exact if self._engine.dtype in ROUNDING_TOLERANCES else None,
        )

    def _peer_network(
        self, peer: Peer, dtype: str | None = None
    ) -> AbstractContextManager[PeerNetwork]:
        net, setting = self._network, peer_setting(self._engine, dtype)
        return peer.prepare(net.layers, net.weights, self._size, setting, self.batch.lengths)

    def compare(self, expected: Any, actual: Any, exact: Any = None) -> PeerAgreement:
        """Compare the outputs of valid steps."""
        dtype = self._engine.dtype
        tolerance = OUTPUT_TOLERANCES.get(dtype, 0.0)
        if np.shape(expected) != np.shape(actual):
            return output_agreement(expected, actual, tolerance)
        valid = self.batch.valid
        if exact is not None:
            return rounded_agreement(valid(expected), valid(actual), valid(exact), dtype)
        return output_agreement(valid(expected), valid(actual), tolerance)


def lstm_cli_title(engine: Engine, *more: str) -> str:
    """``lstm-cli (reference, float32)``."""
    return f"{LSTM_CLI} ({', '.join((engine.name, engine.dtype, *more))})"


class TrainingWorkload:
    """Training steps on one batch: forward, loss, backward and Adam's update.

    Dropout is left out, since two frameworks never draw the same masks. The loss is a mean over
    all valid rows, without class weights or smoothing.

    Parameters
    ----------
    loss
        None: the loss that suits the last layer.

    Raises
    ------
    ConfigError
        The layers have no weights.
    """

    def __init__(
        self,
        layers: Layers,
        size: GridSize,
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
        self.batch = batch = WorkloadBatch.random(size, seed, ragged=ragged)
        self.description = f"{batch.describe(layers)}, {loss}"
        self.flops = training_flops(layers, size, batch.positions)
        self.padded_flops = training_flops(layers, size)
        # The forward pass and the backward pass each read the weights.
        self.reads = recurrent_reads(layers, 2 * batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        weights = random_weights(layers, seed, dtype)
        self._task = TrainingTask(layers, weights, loss, AdamOptimizer(), batch.lengths)
        self._x = random_inputs(layers, size, seed, dtype)
        self._targets = random_targets(layers, size, loss, seed, dtype)

    def lstm_cli_candidate(self) -> Candidate:
        """This program."""
        network = LstmCliTrainable(self._task, self._engine)
        return self._candidate(LSTM_CLI, lstm_cli_title(self._engine), network)

    def padded_candidate(self) -> Candidate:
        """This program on full-length sequences."""
        network = LstmCliTrainable(replace(self._task, lengths=None), self._engine)
        return self._candidate(PADDED, lstm_cli_title(self._engine, PADDED), network)

    def peer_candidate(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer with the same weights, inputs, targets, loss and optimizer."""
        engine = self._engine
        setting = peer_setting(engine)
        network = stack.enter_context(peer.prepare_training(self._task, self._size, setting))

        def compute_exact() -> FirstStep:
            weights = {name: w.astype(np.float64) for name, w in self._task.weights.items()}
            task, double = replace(self._task, weights=weights), peer_setting(engine, "float64")
            with peer.prepare_training(task, self._size, double) as exact_network:
                return self._first_step(exact_network, "float64")

        candidate = self._candidate(peer.name, peer.title, network)
        if engine.dtype in ROUNDING_TOLERANCES:
            return replace(candidate, compute_exact=compute_exact)
        return candidate

    def compare(
        self, expected: FirstStep, actual: FirstStep, exact: FirstStep | None = None
    ) -> PeerAgreement:
        """Compare loss and gradients of the first step, and the updates of both sides."""
        dtype, task = self._engine.dtype, self._task
        tolerance = GRADIENT_TOLERANCES.get(dtype, 0.0)
        if exact is None:
            gradients = gradient_agreement(expected.gradients, actual.gradients, tolerance)
            parts = [output_agreement(expected.loss, actual.loss, tolerance, "loss"), gradients]
        else:
            parts = rounded_gradients(expected, actual, exact, dtype)
            gradients = parts[-1]
        update_tolerance = UPDATE_TOLERANCES.get(dtype, UPDATE_TOLERANCES["float32"])
        parts += [
            update_agreement(task.weights, step, task.optimizer, update_tolerance)
            for step in (actual, expected)
        ]
        return next((part for part in parts if not part.ok), gradients)

    def _candidate(self, name: str, title: str, network: TrainableNetwork) -> Candidate:
        x, targets = network.to_device(self._x, self._targets)

        def call() -> float:
            return network.step(x, targets)

        return Candidate(name, title, network.clock, call, lambda: self._first_step(network))

    def _first_step(self, network: TrainableNetwork, dtype: str | None = None) -> FirstStep:
        x, targets = self._x, self._targets
        if dtype is not None:
            x = x.astype(dtype)
            targets = targets.astype(dtype) if targets.dtype.kind == "f" else targets
        loss = network.step(*network.to_device(x, targets))
        return FirstStep(loss, _copied(network.gradients()), _copied(network.weights()))


def without_dropout(layers: Layers) -> tuple[LayerSpec, ...]:
    """The layers without dropout layers and without dropout inside recurrent layers."""
    return tuple(
        replace(spec, dropout=0.0, recurrent_dropout=0.0)
        if isinstance(spec, RecurrentSpec)
        else spec
        for spec in layers
        if not isinstance(spec, DropoutSpec)
    )


class LstmCliTrainable:
    """This program's network in training, as a `TrainableNetwork`."""

    def __init__(self, task: TrainingTask, engine: Engine) -> None:
        self._engine, self.clock = engine, engine_clock(engine)
        network = Network(task.layers, task.weights, engine)
        targets = TargetFormat(
            task.loss, network.returns_sequences, network.output_size, "random targets"
        )
        updates = Updates(task.optimizer, ConstantSchedule())
        self._train_step = TrainStep(network, Criterion(targets), updates)
        self._lengths = task.lengths
        self._gradients: Mapping[str, Array] = {}

    def to_device(self, x: Array, targets: Array) -> tuple[Any, Any]:
        """Inputs and targets in the engine's memory."""
        feed = self._engine.feed()
        return feed.place(x), feed.place(targets)

    def step(self, x: Any, targets: Any) -> float:
        """Make one update and return the loss before it.

        Raises
        ------
        TrainingError
            The loss or a gradient is not finite. Such a step makes no update, and its time
            would be too short.
        """
        report = self._train_step.step(x, targets, self._lengths)
        if not (report.updates and report.updates[0].finite):
            raise TrainingError(
                "a loss or a gradient of the measured network is not finite",
                found=f"a loss of {report.loss:g}",
                hint="--seed 1 draws other weights, --dtype float64 holds larger numbers",
            )
        self._gradients = report.gradients.weights
        return report.loss

    def gradients(self) -> Mapping[str, Array]:
        """Gradients of the last step by stored name."""
        return {name: self._engine.to_host(g) for name, g in self._gradients.items()}

    def weights(self) -> Mapping[str, Array]:
        """Current weights by stored name."""
        return {name: self._engine.to_host(w) for name, w in self._train_step.weights.items()}


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    # Later steps overwrite the arrays.
    return {name: np.array(value) for name, value in arrays.items()}


def engine_clock(engine: Engine) -> Clock:
    """The clock that times the engine's work."""
    return WALL if engine.accelerator is None else DeviceClock(engine.accelerator)


def peer_setting(engine: Engine, dtype: str | None = None) -> ComputeSetting:
    """The engine's device, threads and dtype for a peer; `dtype` replaces the engine's."""
    # Tests run GPU kernels on the device `host`, which is the CPU to peers.
    device = engine.device if engine.device.startswith("cuda") else "cpu"
    return ComputeSetting(engine.threads or default_threads(), device, dtype or engine.dtype)


def numpy_dtype(engine: Engine) -> str:
    """The dtype in which NumPy holds the engine's numbers: ``float64`` or ``float32``."""
    return "float64" if engine.dtype == "float64" else "float32"


def weight_bytes(engine: Engine) -> int:
    """Bytes per number of a recurrent matrix, as the engine stores it."""
    return 2 if engine.dtype in ("bfloat16", "float16") else np.dtype(numpy_dtype(engine)).itemsize
