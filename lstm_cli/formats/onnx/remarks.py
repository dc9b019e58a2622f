"""What to know about a written model: what was left out, and what a run of it expects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lstm_cli.engines.types import DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.formats.interchange import Export, WriteOptions
from lstm_cli.formats.onnx.operands import forgets


def remarks(export: Export, options: WriteOptions) -> Iterator[str]:
    """Sentences, those about the whole model first."""
    if any(np.asarray(value).dtype == np.float64 for value in export.tensors.values()):
        yield (
            "the weights are rounded from float64 to float32: ONNX Runtime has no recurrent "
            "operators in float64"
        )
    for spec in export.layers:
        if isinstance(spec, DropoutSpec):
            yield f"layer {spec.index} (dropout) is left out: it acts in training only"
        elif isinstance(spec, FlattenSpec):
            yield from _of_flatten(spec, options)
        elif isinstance(spec, RecurrentSpec):
            yield from _of_recurrent(spec, options)


def _of_flatten(spec: FlattenSpec, options: WriteOptions) -> Iterator[str]:
    shorter = (
        "shorter ones are padded to it, with their length in `lengths`"
        if options.lengths
        else "shorter ones need the model with --lengths"
    )
    yield f"layer {spec.index} (flatten) fixes sequences at {spec.steps} steps: {shorter}"


def _of_recurrent(spec: RecurrentSpec, options: WriteOptions) -> Iterator[str]:
    name, cell = f"layer {spec.index} ({spec.kind})", spec.cells[0]
    if spec.dropout or spec.recurrent_dropout:
        yield f"{name}: its dropout is left out: it acts in training only"
    if spec.stateful:
        how = "feed them from run to run" if options.states else "--states makes them inputs"
        yield f"{name} is stateful, but a run begins with the states it is given, or 0: {how}"
    if cell.projects:
        yield (
            f"{name}: ONNX has no projection, so it is multiplied into the recurrent matrix and "
            "into the output; the model takes no initial states for it"
        )
    if not forgets(cell):
        yield f"{name}: its forget gate, absent here, is held at exactly 1 by its bias"
