"""Steps from a stream of bytes, and the outputs of a network as they come: ``run --stream``.

A step is a line of numbers (`csv`) or D little-endian float32 numbers (`f32`). So is its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, counted
from lstm_cli.workflows.model import Model

FORMATS = ("csv", "f32")
"""Values of ``--stream``."""

_SHOWN = 40
"""Most characters of a line that an error repeats."""


def run_stream(model: Model, format: str, source: BinaryIO, target: BinaryIO) -> int:
    """Read every step of `source`, and write its outputs to `target` before the next is read.

    Returns
    -------
    Number of steps.

    Raises
    ------
    ConfigError
        The network needs steps that are yet to come.
    DataError
        The source holds something else.
    """
    stream, count = model.stream(), 0
    out = np.empty(model.network.output_size, model.network.dtype)
    steps = _lines if format == "csv" else _frames
    for x in steps(source, model.network.input_size):
        stream.step(x, out)
        if format == "csv":
            target.write(",".join(map(str, out)).encode() + b"\n")
        else:
            target.write(out.astype("<f4").tobytes())
        target.flush()
        count += 1
    return count


def _lines(source: BinaryIO, features: int) -> Iterator[Array]:
    """The numbers of every line that is not empty."""
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            values = np.array([float(part) for part in line.split(b",")])
        except ValueError:
            values = np.empty(0)
        if len(values) != features:
            text = line.decode(errors="replace").strip()
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise DataError(
                f"line {number} of the stream is not a step",
                expected=f"{counted(features, 'number')}, separated by commas",
                found=f"{counted(len(values), 'number')}: {shown}" if len(values) else shown,
            )
        yield values


def _frames(source: BinaryIO, features: int) -> Iterator[Array]:
    """Every frame of D little-endian float32 numbers."""
    size, count = 4 * features, 0
    while frame := source.read(size):
        if len(frame) < size:
            raise DataError(
                f"the stream ends within step {count}",
                expected=f"frames of {counted(size, 'byte')}: {counted(features, 'number')} in "
                "float32",
                found=counted(len(frame), "byte"),
            )
        yield np.frombuffer(frame, "<f4")
        count += 1
