"""Training from Python, one batch at a time, and the parts that the section `train` describes.

`Trainer` updates a model's weights. `make_train_step` builds the loss, the optimizer and the class
weights from a config, for `Trainer` and for training runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_cli.config import Config
from lstm_cli.config.schema import TrainSection
from lstm_cli.engines.types import Array
from lstm_cli.errors import ConfigError, DataError, counted, nearest
from lstm_cli.network.network import Network
from lstm_cli.network.state import StateCarry, as_array
from lstm_cli.training.interfaces import Exchange
from lstm_cli.training.losses import Criterion
from lstm_cli.training.micro_batches import ONE_RANK
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import Chunk, TrainStep
from lstm_cli.training.updates import Updates
from lstm_cli.workflows.model import Model, checked_kind

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData

OPTIONS = (
    "clip_norm",
    "clip_value",
    "class_weights",
    "label_smoothing",
    "micro_batches",
    "schedule",
    "seed",
    "truncate",
)
"""Keys of the config's section `train` that apply to a single batch."""


class Trainer:
    """Updates a model's weights, batch by batch.

    Parameters
    ----------
    net
        Model to train: its weights change with every step.
    loss
        ``cross_entropy``, ``binary_cross_entropy``, ``mse``, ``mae`` or ``huber``.
    optimizer
        A name, or a mapping with ``type``, ``learning_rate``, ... as in the config.
    **options
        Keys in `OPTIONS`, as in the config's section `train`. A schedule counts each step as an
        epoch.

    Raises
    ------
    ConfigError
        An option is unknown, or the loss does not fit the last layer.
    """

    def __init__(
        self,
        net: Model,
        loss: str = "mse",
        optimizer: str | Mapping[str, Any] = "adam",
        **options: Any,
    ) -> None:
        checked_kind(net, Model, "net", "a model, as lstm_cli.build and load give it")
        for name in options:
            _check_option(name)
        section = {name: value for name, value in options.items() if value is not None}
        self._config = net.config.with_train({"loss": loss, "optimizer": optimizer, **section})
        network = net.network
        targets = TargetFormat(loss, network.returns_sequences, network.output_size, "targets")
        weights = configured_class_weights(self._config, network.output_size)
        self.net = net
        self._train_step = make_train_step(train_section(self._config), network, targets, weights)
        self._carry = StateCarry(network.recurrent)

    def step(self, x: Any, y: Any, lengths: Any = None) -> float:
        """Run one batch forward and backward, and update the weights.

        Stateful layers continue from the last batch.

        Parameters
        ----------
        x
            Sequences (N, T, D).
        y
            Targets: classes (N,), values (N, F), or one for each step, (N, T) or (N, T, F).
        lengths
            (N,) valid steps; None: all T.

        Returns
        -------
        The mean loss before the update. If it is not finite, the weights do not change.

        Raises
        ------
        DataError
            Inputs or targets do not fit the network.
        """
        chunk = self._chunk(x, y, lengths)
        start = self._carry.start(None, chunk.x.shape[0])
        report = self._train_step.step(chunk.x, chunk.targets, chunk.lengths, start)
        if self._carry.active:
            self._carry.store(report.states())
        if report.updates:
            self._train_step.updates.on_epoch_end(report.loss, larger_is_better=False)
        return report.loss

    def gradients(
        self, x: Any, y: Any, lengths: Any = None, state: Sequence[Any] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """Compute the loss and its derivatives, without an update.

        Parameters
        ----------
        x, y, lengths
            Batch, as `step` takes it.
        state
            Initial states, as `Result.state` gives them. None: zeros; a stateful layer starts
            from the final states of the last `step`.

        Returns
        -------
        The mean loss, and derivatives by name. Names are native weight names, ``inputs``
        (N, T, D), and ``state.<k>.h`` and ``state.<k>.c`` (N, directions, features) of every
        recurrent layer. Derivatives of inputs are those of the inputs as given.

        Raises
        ------
        DataError
            Inputs, targets or states do not fit the network.
        """
        chunk = self._chunk(x, y, lengths)
        start = self._carry.start(state, chunk.x.shape[0])
        loss, derivatives = self._train_step.gradients(chunk, start)
        dx = derivatives.inputs
        missing = chunk.x.shape[1] - dx.shape[1]  # micro-batches end with their longest sequence
        if missing:
            dx = np.pad(dx, ((0, 0), (0, missing), (0, 0)))
        gradients = {**derivatives.weights, "inputs": dx}
        for k, (dh, dc) in sorted(derivatives.state.items()):
            gradients[f"state.{k}.h"] = dh
            if dc is not None:
                gradients[f"state.{k}.c"] = dc
        return loss.value, gradients

    def reset_state(self) -> None:
        """Make stateful layers start from zeros again, as at the beginning of a file."""
        self._carry.reset()

    def _chunk(self, x: Any, y: Any, lengths: Any) -> Chunk:
        network = self.net.network
        inputs, n = network.check_arrays(x, lengths)
        adopted, N = network.engine.from_device_array(y), inputs.shape[0]
        targets = _target_array(y) if adopted is None else adopted
        if targets.ndim == 0 or targets.shape[0] != N:
            raise DataError(
                "the targets do not fit the inputs",
                expected=f"{N} targets, one for each sequence",
                found=f"shape {targets.shape}",
            )
        return Chunk(inputs, targets, n)


def _target_array(y: Any) -> Array:
    targets = as_array(y, "the targets")
    if targets.dtype.kind not in "fiub":
        raise DataError(
            "the targets are no numbers", expected="classes or values", found=str(targets.dtype)
        )
    return targets


def _check_option(name: str) -> None:
    if name not in OPTIONS:
        guess = nearest(name, OPTIONS)
        raise ConfigError(
            f"{name} is no option of Trainer",
            expected=", ".join(OPTIONS),
            hint=f"did you mean `{guess}`?" if guess else "lstm-cli train takes it in its config",
        )


def train_section(config: Config) -> TrainSection:
    """Return the config's section `train`.

    Raises
    ------
    ConfigError
        The config has no such section.
    """
    if config.train is None:
        raise ConfigError(
            f"{config.source} does not say how to train",
            expected="a section train, with at least a loss",
            where=config.source,
            hint="--set train.loss=cross_entropy, or binary_cross_entropy, mse, mae, huber",
        )
    return config.train


def make_train_step(
    train: TrainSection,
    network: Network,
    targets: TargetFormat,
    weights: list[float] | None,
    steps_per_epoch: int = 1,
    exchange: Exchange = ONE_RANK,
) -> TrainStep:
    """Combine a network with the loss, optimizer and schedule of a section `train`.

    Parameters
    ----------
    weights
        A weight for each class; None: all count the same.
    steps_per_epoch
        Updates in an epoch; with 1, the schedule counts each update as an epoch.
    exchange
        Exchange with other ranks.
    """
    updates = Updates(
        make_optimizer(train.optimizer.model_dump()),
        make_schedule(train.schedule.model_dump(exclude_none=True), epochs=train.epochs),
        clip_norm=train.clip_norm,
        clip_value=train.clip_value,
        steps_per_epoch=steps_per_epoch,
    )
    criterion = Criterion(targets, weights, train.label_smoothing)
    return TrainStep(
        network,
        criterion,
        updates,
        seed=train.seed,
        truncate=train.truncate,
        micro_batches=train.micro_batches,
        exchange=exchange,
    )


def class_weights(
    config: Config, units: int, dataset: SequenceData, numbers: Array | None, per_step: bool
) -> list[float] | None:
    """Return a weight for each class, as configured or balanced; None if all count the same.

    Parameters
    ----------
    units
        Units of the last layer.
    numbers
        Indices of the training sequences; None: all.

    Raises
    ------
    ConfigError
        The config has a weight for an unknown class, or the last layer's units are no classes.
    DataError
        A class does not occur in the training data, so it cannot be balanced.
    """
    if config.train is None or config.train.class_weights != "balanced":
        return configured_class_weights(config, units, dataset.class_labels)
    from lstm_cli.data import class_counts

    classes = _class_count(config, units)
    counts = class_counts(dataset, numbers, classes=classes, per_step=per_step)
    return _balanced(counts, dataset)


def configured_class_weights(
    config: Config, units: int, labels: Sequence[str] | None = None
) -> list[float] | None:
    """Return a weight for each class from the config; None if the config has no class weights.

    Raises
    ------
    ConfigError
        The config has a weight for an unknown class, a wrong number of weights, or ``balanced``,
        which needs the data.
    """
    section = None if config.train is None else config.train.class_weights
    if section is None:
        return None
    if section == "balanced":
        raise ConfigError(
            "class_weights: balanced needs all the data, but a Trainer sees one batch at a time",
            expected="a list with a weight for each class, or {class: weight}",
        )
    classes = _class_count(config, units)
    if isinstance(section, Mapping):
        return _named_weights(config, section, classes, labels)
    return _listed_weights(config, [float(weight) for weight in section], classes)


def _class_count(config: Config, units: int) -> int:
    """Return the number of classes that the last layer tells apart: two for one sigmoid unit."""
    if config.train is None or config.train.loss != "binary_cross_entropy":
        return units
    if units > 1:
        raise ConfigError(
            "train.class_weights needs classes that exclude each other",
            expected="one sigmoid unit, or loss: cross_entropy",
            found=f"{units} sigmoid units",
            where=config.where("train", "class_weights"),
            hint="remove train.class_weights",
        )
    return 2


def _listed_weights(config: Config, weights: list[float], classes: int) -> list[float]:
    if len(weights) != classes:
        raise ConfigError(
            "train.class_weights does not weight every class",
            expected=f"{counted(classes, 'weight')}",
            found=str(len(weights)),
            where=config.where("train", "class_weights"),
        )
    return weights


def _named_weights(
    config: Config,
    by_name: Mapping[str | int, float],
    classes: int,
    labels: Sequence[str] | None,
) -> list[float]:
    """Return weights by class index or label; a class that is not named has weight 1."""
    weights = [1.0] * classes
    names = {label: k for k, label in enumerate((labels or ())[:classes])}
    names |= {str(k): k for k in range(classes) if str(k) not in names}
    for name, weight in by_name.items():
        if str(name) not in names:
            guess = nearest(str(name), names)
            raise ConfigError(
                f"train.class_weights names an unknown class: {name}",
                expected=", ".join(names),
                where=config.where("train", "class_weights", name),
                hint=f"did you mean `{guess}`?" if guess else None,
            )
        weights[names[str(name)]] = float(weight)
    return weights


def _balanced(counts: Array, dataset: SequenceData) -> list[float]:
    """Return weights that give every class the same total, with a mean of 1 over all rows."""
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        raise DataError(
            f"class {missing[0]} does not occur in the training data, so it cannot be balanced",
            found=", ".join(f"{n} of class {k}" for k, n in enumerate(counts.tolist())),
            where=dataset.input_names,
            hint="train.class_weights also takes a weight for each class",
        )
    weights: list[float] = (counts.sum() / (len(counts) * counts)).tolist()
    return weights
