"""Training from Python, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_cli.api.arguments import checked_kind
from lstm_cli.api.class_weights import given_weights
from lstm_cli.api.model import Model
from lstm_cli.api.resuming import train_section
from lstm_cli.engines.types import Array
from lstm_cli.errors import ConfigError, DataError, nearest
from lstm_cli.network.state import StateCarry, as_array
from lstm_cli.training.losses import Criterion
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import Chunk, TrainStep
from lstm_cli.training.updates import Updates

OPTIONS = (
    "clip_norm",
    "clip_value",
    "class_weights",
    "label_smoothing",
    "schedule",
    "seed",
    "truncate",
)
"""Keys of the config's section `train` that concern a single batch."""


class Trainer:
    """Updates a model's weights, batch by batch.

    Parameters
    ----------
    net
        What is trained: its weights change with every step.
    loss
        ``cross_entropy``, ``binary_cross_entropy``, ``mse``, ``mae`` or ``huber``.
    optimizer
        A name, or a mapping with ``type``, ``learning_rate``, ... as in the config.
    **options
        `OPTIONS`, as in the config's section `train`. A schedule counts each step as an epoch.

    Raises
    ------
    ConfigError
        An option that there is not, or a loss that does not fit the last layer.
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
        given = {name: value for name, value in options.items() if value is not None}
        self._config = net.config.with_train({"loss": loss, "optimizer": optimizer, **given})
        train, network = train_section(self._config), net.network
        targets = TargetFormat(loss, network.returns_sequences, network.output_size, "targets")
        weights = given_weights(self._config, network.output_size)
        updates = Updates(
            make_optimizer(train.optimizer.model_dump()),
            make_schedule(train.schedule.model_dump(exclude_none=True), epochs=train.epochs),
            clip_norm=train.clip_norm,
            clip_value=train.clip_value,
        )
        criterion = Criterion(targets, weights, train.label_smoothing)
        self.net = net
        self._learner = TrainStep(
            network, criterion, updates, seed=train.seed, truncate=train.truncate
        )
        self._carry = StateCarry(network.recurrent)

    def step(self, x: Any, y: Any, lengths: Any = None) -> float:
        """One batch: forward, backward, update. Stateful layers go on where the last one ended.

        Parameters
        ----------
        x
            Sequences (N, T, D).
        y
            TargetFormat: classes (N,), values (N, F), or one for each step.
        lengths
            (N,) valid steps; None: all T.

        Returns
        -------
        The mean loss before the update. If it is not finite, the weights are as they were.

        Raises
        ------
        DataError
            Inputs or targets that do not fit.
        """
        piece = self._piece(x, y, lengths)
        start = self._carry.start(None, piece.x.shape[0])
        report = self._learner.step(piece.x, piece.targets, piece.lengths, start)
        if self._carry.active:
            self._carry.store(report.state)
        if report.updates:
            self._learner.updates.on_epoch_end(report.loss, larger_is_better=False)
        return report.loss

    def gradients(
        self, x: Any, y: Any, lengths: Any = None, state: Sequence[Any] | None = None
    ) -> tuple[float, dict[str, Array]]:
        """The loss and its derivatives, without an update.

        Parameters
        ----------
        x, y, lengths
            As `step` takes them.
        state
            Initial states, as `Result.state` gives them; None: zeros, or for a stateful layer
            where the last `step` ended.

        Returns
        -------
        The mean loss; derivatives by native weight name, and for ``inputs`` (N, T, D), as given,
        ``state.<k>.h`` and ``state.<k>.c`` (N, directions, features) of every recurrent layer.

        Raises
        ------
        DataError
            Inputs, targets or states that do not fit.
        """
        piece = self._piece(x, y, lengths)
        loss, found, _ = self._learner.gradients(piece, self._carry.start(state, piece.x.shape[0]))
        gradients = {**found.weights, "inputs": found.inputs}
        for k, (dh, dc) in sorted(found.state.items()):
            gradients[f"state.{k}.h"] = dh
            if dc is not None:
                gradients[f"state.{k}.c"] = dc
        return loss.value, gradients

    def reset_state(self) -> None:
        """Let stateful layers start from zeros again, as at the beginning of a file."""
        self._carry.reset()

    def _piece(self, x: Any, y: Any, lengths: Any) -> Chunk:
        network = self.net.network
        checked, n = network.check_arrays(x, lengths)
        own, N = network.engine.from_device_array(y), checked.shape[0]
        targets = _numbers(y) if own is None else own
        if targets.ndim == 0 or targets.shape[0] != N:
            raise DataError(
                "the targets do not belong to the inputs",
                expected=f"{N} of them, one for each sequence",
                found=f"shape {targets.shape}",
            )
        return Chunk(checked, targets, n)


def _numbers(y: Any) -> Array:
    """Targets as an array of NumPy."""
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
