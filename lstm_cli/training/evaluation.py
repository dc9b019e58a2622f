"""Metrics of a network on data that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lstm_cli.errors import LstmCliError, TrainingError
from lstm_cli.network.carry import StateCarry
from lstm_cli.network.network import Network
from lstm_cli.training.forensics import bad_data, place_of, trace
from lstm_cli.training.learner import Piece
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.surroundings import LearningBatch, Places


def evaluate(
    network: Network,
    batches: Iterable[LearningBatch],
    metrics: Metrics,
    places: Places,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Run a network over batches as they stand in the data.

    Parameters
    ----------
    metrics
        Empty ones, to be filled.
    places
        Names of places in the data, for errors.
    stop
        Asked after every batch whether to give up.

    Returns
    -------
    Metrics by name; None if `stop` said so.

    Raises
    ------
    DataError
        An input or target is not finite.
    TrainingError
        An output is not.
    """
    carry, file = StateCarry(network.recurrent), None
    for batch in batches:
        if batch.file != file:
            carry.reset()
            file = batch.file
        state = carry.start(None, len(batch.x))
        result = network.run(batch.x, batch.lengths, state)
        if not (np.isfinite(result.outputs).all() and np.isfinite(batch.targets).all()):
            error = _not_finite(network, batch, state, places)
            if error is not None:
                raise error
        metrics.update(result.outputs, result.logits, batch.targets, batch.lengths, network.engine)
        if carry.active:
            carry.keep(result.state)
        if stop():
            return None
    return metrics.result()


def _not_finite(
    network: Network, batch: LearningBatch, state: Any, places: Places
) -> LstmCliError | None:
    """The error for what is not finite in a batch; None if nothing of it counts."""
    whole = Piece(batch.x, batch.targets, batch.lengths)
    stopped = "training stopped in validation"
    data = bad_data(whole, network.returns_sequences, batch.numbers, places, stopped)
    if data is not None:
        return data
    found = trace(network, batch.x, batch.lengths, state)
    if found is None:
        return None
    return TrainingError(
        "validation came upon a value that is not finite",
        found=found.what,
        where=place_of(found, whole, batch.numbers, places),
        hint="the weights have become too large: train slower, or limit train.clip_norm",
    )
