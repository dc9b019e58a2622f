"""Notes on lost digits of data, and on states carried between windows that do not adjoin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_cli.engines.protocols import array_dtype
from lstm_cli.engines.types import Array, RecurrentSpec
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import Normalization, Rounding

if TYPE_CHECKING:
    from lstm_cli.data import Batch, SequenceData

SAMPLE_SEQUENCES, SAMPLE_BYTES = 64, 8 << 20
"""Most sequences, and most bytes, that are searched for lost digits."""
SAMPLE_LOSS = 0.05
"""Largest rounding step without a note, as a share of a feature's deviation."""
LISTED = 8
"""Most features that a message names; others are counted."""


def input_dtype(network: Network, data: SequenceData) -> str:
    """Return the dtype in which inputs are read.

    A network that normalizes its inputs needs a dtype that holds the stored values.
    """
    dtype = array_dtype(network.engine)
    return dtype if network.normalization is None else data.dtype_for_inputs(dtype)


def misplaced_state_note(
    network: Network, data: SequenceData, batch_size: int, numbers: Array | None = None
) -> str | None:
    """Describe a window that starts from the final state of a window not directly before it.

    Parameters
    ----------
    numbers
        The windows that are run; None: all.

    Returns
    -------
    None if no layer is stateful, or each window follows directly on the one whose state it gets.
    """
    stateful = next((spec for spec in network.recurrent if spec.stateful), None)
    if stateful is None or not data.windowed:
        return None
    windows = np.arange(data.count) if numbers is None else np.sort(numbers)
    files, sequences = data.files.file_of(windows), data.files.sequences(windows)
    begin, length = data.files.step_ranges(windows)[0], data.max_steps
    for file in np.unique(files):
        of_file = np.flatnonzero(files == file)
        before, after = of_file[:-batch_size], of_file[batch_size:]
        wrong = (sequences[before] != sequences[after]) | (begin[after] != begin[before] + length)
        if wrong.any():
            k = int(np.argmax(wrong))
            one, other = (int(windows[at[k]]) for at in (after, before))
            return (
                f"layer {stateful.index} is stateful, but {data.sequence(one)} continues "
                f"{data.sequence(other)}, which does not end where it begins; "
                f"--set model.layers.{stateful.index}.stateful=false begins every window anew"
            )
    return None


def lost_digits_note(network: Network, data: SequenceData) -> str | None:
    """List the inputs whose digits the engine's dtype loses, judged by the first sequences.

    Returns
    -------
    None if the dtype holds all that is stored, or the network normalizes the inputs first.
    """
    engine, reader = network.engine, next((s for s in network.layers if s.parameters()), None)
    # An engine in bfloat16 rounds the inputs of a recurrent layer's matrix product.
    dtype = engine.dtype if isinstance(reader, RecurrentSpec) else array_dtype(engine)
    exact = dtype == array_dtype(engine) == data.dtype_for_inputs(array_dtype(engine))
    if exact or network.normalization is not None:
        return None
    batch = _sample(data, None)
    lost = [] if batch is None else _roundings(_valid_rows(batch, batch.x), dtype, "feature")
    return f"digits of the inputs are lost in {dtype}: {itemize(lost)}" if lost else None


def lost_target_digits(network: Network, data: SequenceData) -> list[Rounding]:
    """List targets that outputs in the engine's dtype cannot tell apart."""
    dtype, info = array_dtype(network.engine), data.targets
    if info is None or info.kind != "values" or data.dtype_for_targets(dtype) == dtype:
        return []
    batch = _sample(data, network.returns_sequences)
    if batch is None or batch.targets is None:
        return []
    y, per_step = batch.targets, network.returns_sequences
    rows = y if info.per_step is False or not per_step else _valid_rows(batch, y)
    return _roundings(rows.reshape(len(rows), -1), dtype, "target")


def itemize(lost: Sequence[Rounding]) -> str:
    """Join features that lose digits into one text; a long list ends in a count."""
    more = f", and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return ", ".join(map(str, lost[:LISTED])) + more


def _sample(data: SequenceData, per_step: bool | None) -> Batch | None:
    """Read the first sequences in float64; None where they are too large to read for a note."""
    if not data.total_steps or data.max_steps * data.features > SAMPLE_BYTES:
        return None
    batches = data.batches(
        SAMPLE_SEQUENCES,
        np.float64,
        targets=per_step is not None,
        per_step=per_step,
        max_bytes=SAMPLE_BYTES,
    )
    return next(batches)


def _valid_rows(batch: Batch, values: Array) -> Array:
    n = np.full(batch.count, batch.x.shape[1]) if batch.lengths is None else batch.lengths
    return np.asarray(values[np.arange(batch.x.shape[1]) < n[:, None]])  # (sum of lengths, F)


def _roundings(rows: Array, dtype: str, noun: str) -> list[Rounding]:
    """List the columns whose digits a dtype loses, relative to their deviation."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return []
    shifted = rows - rows[0]
    deviation = shifted.std(axis=0)
    varies = deviation > 0
    mean = np.where(varies, rows[0] + shifted.mean(axis=0), 0.0)
    scaling = Normalization(mean, np.where(varies, deviation, 1.0))
    return scaling.roundings(dtype, SAMPLE_LOSS, noun)
