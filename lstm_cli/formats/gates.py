"""Gate orders: blocks of a stacked tensor, from one framework's order to another's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.model import Stored

NATIVE = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}
"""Letters of the gates in native order, by kind of layer."""


def reorder(stacked: Array, order: Sequence[str], wanted: Sequence[str]) -> Array:
    """A tensor whose first axis stacks the gates `order`, stacked as `wanted` instead.

    Parameters
    ----------
    stacked
        (G * H, ...) with G gates.
    """
    blocks = dict(zip(order, np.split(np.asarray(stacked), len(order)), strict=True))
    return np.concatenate([blocks[letter] for letter in wanted])


def part(start: int, stop: int, axis: int = 0, leading: Iterable[int] = ()) -> str:
    """An index as it is written: ``[0:100]``, ``[:, 100:200]``, ``[1, 0:100]``."""
    places = [*map(str, leading), *[":"] * axis, f"{start}:{stop}"]
    return f"[{', '.join(places)}]"


def stored_blocks(
    name: str,
    stored: Array,
    native: str,
    order: Sequence[str],
    *,
    axis: int = 0,
    leading: tuple[int, ...] = (),
    offset: int = 0,
    size: int | None = None,
    change: str = "",
) -> list[Stored]:
    """One `Stored` a gate, for a tensor that stacks the gates `order` (native letters).

    Parameters
    ----------
    axis
        That stacks the gates, not counting those that `leading` indexes.
    leading
        Indices of the first axes, such as ONNX's direction.
    offset, size
        Where the first gate begins along `axis`, and how much of it each one takes; None:
        an equal share of what follows `offset`.
    """
    if size is None:
        size = (stored.shape[len(leading) + axis] - offset) // len(order)
    starts = [offset + k * size for k in range(len(order))]
    return [
        Stored(
            name,
            tuple(stored.shape),
            str(stored.dtype),
            part(start, start + size, axis, leading),
            native,
            letter,
            change,
        )
        for letter, start in zip(order, starts, strict=True)
    ]
