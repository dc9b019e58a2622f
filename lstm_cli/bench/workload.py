"""What contestants do at one size: forward passes, or training steps in `training`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lstm_cli.bench.agreement import (
    ROUNDING_TOLERANCES,
    FirstStep,
    gradient_agreement,
    output_agreement,
    rounded_agreement,
    rounded_gradients,
    update_agreement,
)
from lstm_cli.bench.peers import ComputeSetting, Peer, PeerNetwork, TrainableNetwork, TrainingTask
from lstm_cli.bench.protocol import WALL, Clock, DeviceClock
from lstm_cli.bench.results import PeerAgreement
from lstm_cli.bench.sizes import (
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
from lstm_cli.engines.cuda.device import Device
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Array, DropoutSpec, Engine, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import ConfigError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.training.criterion import Criterion
from lstm_cli.training.learner import Learner
from lstm_cli.training.losses import loss_for
from lstm_cli.training.optimisers import Adam
from lstm_cli.training.schedules import Constant
from lstm_cli.training.targets import Targets
from lstm_cli.training.updates import Updates

OURS, PADDED = "lstm-cli", "padded"

OUTPUT_TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-10}
"""By dtype, the largest difference at which outputs count as equal; see `PeerAgreement`. Of the others
see `lstm_cli.bench.agreement`."""


@dataclass(frozen=True)
class Candidate:
    """Who is measured.

    Attributes
    ----------
    name, title
        As `Timing` has them.
    call
        What is timed.
    clock
        What takes the time of `call`.
    shown
        Called once before: gives what is compared.
    exact
        The same in float64, where roundings are to be told from mistakes; None: not needed.
    """

    name: str
    title: str
    clock: Clock
    call: Callable[[], Any]
    shown: Callable[[], Any]
    exact: Callable[[], Any] | None = None


@dataclass(frozen=True)
class WorkloadBatch:
    """How much a call computes on.

    Attributes
    ----------
    lengths
        (N,) of a ragged batch; None: all T.
    positions, longest
        Valid steps of all sequences together, and of the longest one.
    """

    lengths: Array | None
    positions: int
    longest: int

    @classmethod
    def drawn(cls, size: GridSize, seed: int, *, ragged: bool) -> WorkloadBatch:
        """With random lengths if it is ragged."""
        if not ragged:
            return cls(None, size.batch * size.steps, size.steps)
        lengths = random_lengths(size, seed)
        return cls(lengths, int(lengths.sum()), int(lengths.max()))

    def words(self, layers: Layers) -> str:
        """The layers, and whether the batch is ragged."""
        return describe(layers) + ("" if self.lengths is None else ", ragged")

    def valid(self, y: Array) -> Array:
        """The outputs that count: of (N, T, F) the valid steps, of (N, F) all."""
        if self.lengths is None or y.ndim != 3:
            return y
        return np.asarray(y[np.arange(y.shape[1]) < self.lengths[:, None]])


class Workload(Protocol):
    """What is measured at a size.

    Attributes
    ----------
    words
        The layers in a few words; equal words are equal work.
    flops, padded_flops
        Of one call; of one on full-length sequences.
    reads
        By bytes of a recurrent matrix, how many times a call cannot but read it.
    batch
        What it computes on.
    """

    words: str
    flops: float
    padded_flops: float
    reads: Mapping[int, int]
    batch: WorkloadBatch

    def ours(self) -> Candidate:
        """This program."""

    def padded(self) -> Candidate:
        """This program, on the same inputs as if every sequence had all steps."""

    def theirs(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer, until the stack closes; raises whatever it raises if it cannot take part."""

    def compare(self, expected: Any, found: Any, exact: Any = None) -> PeerAgreement:
        """Whether what a peer showed is what we showed; `exact` as `Contestant` has it."""


class ForwardWorkload:
    """Forward passes over a batch.

    Inputs are where a contestant computes before it is timed, and outputs stay there. On the
    processor that is NumPy's memory: what it costs a peer to use that, such as copies, is timed
    with it.
    """

    def __init__(
        self, layers: Layers, size: GridSize, engine: Engine, seed: int, *, ragged: bool = False
    ) -> None:
        dtype = numpy_dtype(engine)
        self.batch = WorkloadBatch.drawn(size, seed, ragged=ragged)
        self.words = self.batch.words(layers)
        self.flops, self.padded_flops = (
            flops(layers, size, self.batch.positions),
            flops(layers, size),
        )
        self.reads = recurrent_reads(layers, self.batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        self._network = Network(layers, random_weights(layers, seed, dtype), engine)
        self._x = random_inputs(layers, size, seed, dtype)

    def ours(self) -> Candidate:
        """This program."""
        return self._own(OURS, our_title(self._engine), self.batch.lengths)

    def padded(self) -> Candidate:
        """This program, on full-length sequences."""
        return self._own(PADDED, our_title(self._engine, PADDED), None)

    def _own(self, name: str, title: str, lengths: Array | None) -> Candidate:
        engine, network = self._engine, self._network
        x = to_device(engine, self._x)

        def call() -> Any:
            return network.run(x, lengths).outputs

        return Candidate(name, title, engine_clock(engine), call, lambda: engine.to_host(call()))

    def theirs(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer with the same weights and inputs."""
        run = stack.enter_context(self._run(peer))
        x = run.place(self._x)

        def call() -> Any:
            return run.call(x)

        def exact() -> Array:
            with self._run(peer, "float64") as run:
                return run(self._x.astype(np.float64))

        dtype = self._engine.dtype
        return Candidate(
            peer.name,
            peer.title,
            run.clock,
            call,
            lambda: run.fetch(call()),
            exact if dtype in ROUNDING_TOLERANCES else None,
        )

    def _run(self, peer: Peer, dtype: str | None = None) -> AbstractContextManager[PeerNetwork]:
        """The peer's network, in the engine's dtype or in another."""
        net, setting = self._network, peer_setting(self._engine, dtype)
        return peer.prepare(net.layers, net.weights, self._size, setting, self.batch.lengths)

    def compare(self, expected: Any, found: Any, exact: Any = None) -> PeerAgreement:
        """By the outputs of valid steps."""
        dtype = self._engine.dtype
        tolerance = OUTPUT_TOLERANCES.get(dtype, 0.0)
        if np.shape(expected) != np.shape(found):
            return output_agreement(expected, found, tolerance)
        valid = self.batch.valid
        if exact is not None:
            return rounded_agreement(valid(expected), valid(found), valid(exact), dtype)
        return output_agreement(valid(expected), valid(found), tolerance)


def our_title(engine: Engine, *more: str) -> str:
    """``lstm-cli (reference, float32)``."""
    return f"{OURS} ({', '.join((engine.name, engine.dtype, *more))})"


GRADIENT_TOLERANCES: Mapping[str, float] = {"float32": 2e-4, "float64": 1e-10}
"""By dtype, the largest difference at which losses and gradients count as equal."""

UPDATE_TOLERANCES: Mapping[str, float] = {"float32": 1e-6, "float64": 1e-12}
"""By dtype, how far weights may be from the update's equation: a thousandth of Adam's first
step in float32, which is some roundings of a weight near 1."""


class TrainingWorkload:
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
        self.batch = batch = WorkloadBatch.drawn(size, seed, ragged=ragged)
        self.words = f"{batch.words(layers)}, {loss}"
        self.flops = training_flops(layers, size, batch.positions)
        self.padded_flops = training_flops(layers, size)
        # Forwards, and backwards.
        self.reads = recurrent_reads(layers, 2 * batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        weights = random_weights(layers, seed, dtype)
        self._lesson = TrainingTask(layers, weights, loss, Adam(), batch.lengths)
        self._x = random_inputs(layers, size, seed, dtype)
        self._targets = random_targets(layers, size, loss, seed, dtype)

    def ours(self) -> Candidate:
        """This program."""
        return self._own(OURS, our_title(self._engine), self._lesson)

    def padded(self) -> Candidate:
        """This program, on full-length sequences."""
        lesson = replace(self._lesson, lengths=None)
        return self._own(PADDED, our_title(self._engine, PADDED), lesson)

    def _own(self, name: str, title: str, lesson: TrainingTask) -> Candidate:
        return self._contestant(name, title, LstmCliTrainable(lesson, self._engine))

    def theirs(self, stack: ExitStack, peer: Peer) -> Candidate:
        """A peer with the same weights, inputs, targets, loss and optimiser."""
        setting = peer_setting(self._engine)
        trainee = stack.enter_context(peer.prepare_training(self._lesson, self._size, setting))

        def exact() -> FirstStep:
            weights = {name: w.astype(np.float64) for name, w in self._lesson.weights.items()}
            lesson, other = replace(self._lesson, weights=weights), peer_setting(engine, "float64")
            with peer.prepare_training(lesson, self._size, other) as trainee:
                return self._first(trainee, "float64")

        engine = self._engine
        made = self._contestant(peer.name, peer.title, trainee)
        return replace(made, exact=exact) if engine.dtype in ROUNDING_TOLERANCES else made

    def compare(self, expected: FirstStep, found: FirstStep, exact: Any = None) -> PeerAgreement:
        """By the loss and the gradients of the first step, and by both sides' updates."""
        dtype, lesson = self._engine.dtype, self._lesson
        close = GRADIENT_TOLERANCES.get(dtype, 0.0)
        rounded = UPDATE_TOLERANCES.get(dtype, UPDATE_TOLERANCES["float32"])
        if exact is None:
            gradients = gradient_agreement(expected.gradients, found.gradients, close)
            parts = [output_agreement(expected.loss, found.loss, close, "loss"), gradients]
        else:
            parts = rounded_gradients(expected, found, exact, dtype)
            gradients = parts[-1]
        parts += [
            update_agreement(lesson.weights, step, lesson.optimiser, rounded)
            for step in (found, expected)
        ]
        return next((part for part in parts if not part.ok), gradients)

    def _contestant(self, name: str, title: str, trainee: TrainableNetwork) -> Candidate:
        x, targets = trainee.place(self._x, self._targets)

        def call() -> float:
            return trainee.step(x, targets)

        return Candidate(name, title, trainee.clock, call, lambda: self._first(trainee))

    def _first(self, trainee: TrainableNetwork, dtype: str | None = None) -> FirstStep:
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


class LstmCliTrainable:
    """This program's network, as it learns."""

    def __init__(self, lesson: TrainingTask, engine: Engine) -> None:
        self._engine, self.clock = engine, engine_clock(engine)
        network = Network(lesson.layers, lesson.weights, engine)
        targets = Targets(
            lesson.loss, network.returns_sequences, network.output_size, "random targets"
        )
        updates = Updates(lesson.optimiser, Constant())
        self._learner = Learner(network, Criterion(targets), updates)
        self._lengths = lesson.lengths
        self._gradients: Mapping[str, Array] = {}

    def place(self, x: Array, targets: Array) -> tuple[Any, Any]:
        """Where the engine computes."""
        return to_device(self._engine, x), to_device(self._engine, targets)

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


@runtime_checkable
class Accelerated(Protocol):
    """An engine whose arrays are in the memory of a device of its own."""

    @property
    def hardware(self) -> Device:
        """The device."""


def to_device(engine: Engine, array: Array) -> Any:
    """The array where the engine computes."""
    return engine.hardware.upload(array) if isinstance(engine, Accelerated) else array


def engine_clock(engine: Engine) -> Clock:
    """What takes the time of the engine's work."""
    return DeviceClock(engine.hardware) if isinstance(engine, Accelerated) else WALL


def peer_setting(engine: Engine, dtype: str | None = None) -> ComputeSetting:
    """The same device, dtype and threads for a peer; the dtype may be another."""
    # Tests run the kernels of a GPU on the processor: there are its peers, too.
    shim = isinstance(engine, Accelerated) and engine.hardware.architecture == "host"
    device = "cpu" if shim else engine.device
    return ComputeSetting(engine.threads or default_threads(), device, dtype or engine.dtype)


def numpy_dtype(engine: Engine) -> str:
    """The engine's dtype as NumPy knows it."""
    return "float64" if engine.dtype == "float64" else "float32"


def weight_bytes(engine: Engine) -> int:
    """Of one number of a recurrent layer's matrices."""
    return 2 if engine.dtype in ("bfloat16", "float16") else np.dtype(numpy_dtype(engine)).itemsize
