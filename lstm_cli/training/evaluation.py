"""Metrics of a network on validation or test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lstm_cli.errors import LstmCliError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.network.state import StateCarry
from lstm_cli.training.interfaces import Places, TrainingBatch
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.nonfinite import first_nonfinite, location, nonfinite_data_error
from lstm_cli.training.train_step import Chunk


def evaluate(
    network: Network,
    batches: Iterable[TrainingBatch],
    metrics: Metrics,
    places: Places,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Run a network over batches in the order of the data.

    Parameters
    ----------
    metrics
        Empty metrics, which the function fills.
    places
        Names of places in the data, for error messages.
    stop
        Function that is called after every batch. True ends the evaluation.

    Returns
    -------
    Metrics by name. None if `stop` returned True.

    Raises
    ------
    DataError
        An input or target is not finite.
    TrainingError
        An output is not finite.
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
            carry.store(result.state)
        if stop():
            return None
    return metrics.result()


def _not_finite(
    network: Network, batch: TrainingBatch, state: Any, places: Places
) -> LstmCliError | None:
    """Error for a value in a batch that is not finite. None if all such values are padding."""
    chunk = Chunk(batch.x, batch.targets, batch.lengths)
    stopped = "training stopped in validation"
    data = nonfinite_data_error(chunk, network.returns_sequences, batch.numbers, places, stopped)
    if data is not None:
        return data
    value = first_nonfinite(network, batch.x, batch.lengths, state)
    if value is None:
        return None
    return TrainingError(
        "a value in validation is not finite",
        found=value.what,
        where=location(value, chunk, batch.numbers, places),
        hint="the weights have become too large: train slower, or limit train.clip_norm",
    )
