"""One update at a time: forward, loss, backward, new weights; truncated if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, EngineArray, State, TrainingPass, array_dtype
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients, Tape
from lstm_cli.network.network import Network
from lstm_cli.network.results import hosted
from lstm_cli.training.criterion import Criterion, LossValue
from lstm_cli.training.updates import UpdateReport, Updates


@dataclass(frozen=True)
class Piece:
    """A batch, or the part of one that errors travel through.

    Attributes
    ----------
    x, targets, lengths
        As of a batch.
    before
        Steps of the batch that came before the piece: for all sequences, or (N,).
    """

    x: EngineArray
    targets: EngineArray
    lengths: Array | None
    before: int | Array = 0


@dataclass(frozen=True)
class Moment:
    """A piece as it was learned from.

    Attributes
    ----------
    piece, state
        What went in; `state` None is zeros.
    number
        Updates made before: what its dropout was drawn from.
    loss, tape, gradients
        What came out.
    update
        None if nothing of the piece counts, or the loss is not finite.
    """

    piece: Piece
    state: Sequence[Any] | None
    number: int
    loss: LossValue
    tape: Tape
    gradients: Gradients
    update: UpdateReport | None


@dataclass(frozen=True)
class StepReport:
    """What one batch did.

    Attributes
    ----------
    loss
        Mean over what counts.
    weight
        What it is a mean over: rows, or the sum of their class weights.
    updates
        The updates made: one, or one a piece where steps are truncated.
    tape
        The last forward pass.
    gradients
        The last derivatives.
    """

    loss: float
    weight: float
    updates: tuple[UpdateReport, ...]
    tape: Tape
    gradients: Gradients

    @cached_property
    def state(self) -> list[State]:
        """Final states of every recurrent layer, in NumPy's memory."""
        to_host = self.tape.network.engine.to_host
        return [hosted(state, to_host) for state in self.tape.state]


class Learner:
    """A network with what is minimised and how.

    Parameters
    ----------
    network
        Its weights change with every step.
    criterion, updates
        The loss, and how weights follow from its derivatives.
    seed
        Of dropout.
    truncate
        Errors travel back at most so many steps; None: all.
    """

    def __init__(
        self,
        network: Network,
        criterion: Criterion,
        updates: Updates,
        *,
        seed: int = 0,
        truncate: int | None = None,
    ) -> None:
        self.network, self.criterion, self.updates = network, criterion, updates
        self.seed, self.truncate = seed, truncate
        self.own_weights: dict[str, EngineArray] = {
            name: network.engine.copy(value) for name, value in network.weights.items()
        }
        network.set_weights(self.own_weights)

    @property
    def weights(self) -> dict[str, Array]:
        """Tensors by stored name in NumPy's memory; on the CPU those that updates change."""
        return {name: self.network.engine.to_host(v) for name, v in self.own_weights.items()}

    @property
    def tensors(self) -> dict[str, Array]:
        """`weights`, and the normalization of the inputs, which no update changes."""
        scaling = self.network.normalization
        return self.weights if scaling is None else self.weights | scaling.tensors

    @property
    def finite(self) -> bool:
        """Whether all weights are."""
        return self.network.engine.all_finite(list(self.own_weights.values()))

    def gradients(
        self, piece: Piece, state: Sequence[Any] | None = None
    ) -> tuple[LossValue, Gradients, Tape]:
        """Loss and derivatives, with the dropout of the update that would come next."""
        training = TrainingPass(self.seed, self.updates.count)
        tape = backpropagation.forward(self.network, piece.x, piece.lengths, state, training)
        loss = self.criterion(
            tape.values, tape.logit_values, piece.targets, tape.lengths, self.network.engine
        )
        found = backpropagation.backward(
            self.network, tape, loss.gradient, d_logits=self.criterion.fused
        )
        return loss, found, tape

    def step(
        self,
        x: EngineArray,
        targets: EngineArray,
        lengths: Array | None,
        state: Sequence[Any] | None = None,
        *,
        watch: Callable[[Moment], None] | None = None,
    ) -> StepReport:
        """One batch: an update, or where steps are truncated an update a piece.

        A loss or gradient that is not finite changes no weights.

        Parameters
        ----------
        watch
            Called after every piece.

        Raises
        ------
        DataError
            Inputs or targets that do not fit.
        """
        total, weight = 0.0, 0.0
        updates: list[UpdateReport] = []
        for piece in self._pieces(x, targets, lengths):
            if isinstance(piece, _Prefix):
                state = self.network.run(piece.x, piece.lengths, state).state
                continue
            number = self.updates.count
            loss, found, tape = self.gradients(piece, state)
            update = self._update(loss, found)
            total, weight = total + loss.value * loss.weight, weight + loss.weight
            if update is not None:
                updates.append(update)
            if watch is not None:
                watch(Moment(piece, state, number, loss, tape, found, update))
            state = tape.state
        mean = total / weight if weight else 0.0
        return StepReport(mean, weight, tuple(updates), tape, found)

    def _update(self, loss: LossValue, found: Gradients) -> UpdateReport | None:
        """New weights, unless nothing counts or the loss is not finite."""
        if not loss.weight:
            return None
        engine, weights = self.network.engine, self.own_weights
        # Asked for before the loss is waited for: an engine then waits for both at once.
        norm = self.updates.norm(weights, found.tensors, engine)
        if not math.isfinite(loss.value):
            return None
        update = self.updates.apply(weights, found.tensors, engine, norm)
        self.network.set_weights(weights)
        return update

    def load_weights(self, weights: dict[str, Array]) -> None:
        """Go on from these weights."""
        engine = self.network.engine
        dtype = array_dtype(engine)
        self.own_weights = {
            name: engine.copy(np.asarray(weights[name], dtype)) for name in self.own_weights
        }
        self.network.set_weights(self.own_weights)

    def _pieces(
        self, x: EngineArray, targets: EngineArray, lengths: Array | None
    ) -> Iterator[Piece | _Prefix]:
        k, T = self.truncate, x.shape[1]
        if k is None or k >= T:
            yield Piece(x, targets, lengths)
            return
        x, targets = (self.network.engine.to_host(values) for values in (x, targets))
        n = np.full(len(x), T) if lengths is None else np.asarray(lengths)
        if self.criterion.targets.per_step:
            for first in range(0, max(int(n.max(initial=1)), 1), k):
                own = np.clip(n - first, 0, k)
                part = slice(first, first + k)
                yield Piece(x[:, part], targets[:, part], own, first)
        else:
            # The target stands at the end, so errors travel through each sequence's last steps.
            before = np.maximum(n - k, 0)
            yield _Prefix(x[:, : int(before.max(initial=0))], before)
            at = np.minimum(before[:, None] + np.arange(k), T - 1)
            yield Piece(x[np.arange(len(x))[:, None], at], targets, n - before, before)


@dataclass(frozen=True)
class _Prefix:
    """Steps that only carry the state forward."""

    x: Array
    lengths: Array
