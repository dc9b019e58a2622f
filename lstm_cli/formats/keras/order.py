"""The order of layers whose file does not list it: where they stand in it, or their sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.architecture import Layer
from lstm_cli.formats.keras.words import shown

MOST_TRIALS = 20_000
MOST_PIECES = 100
HARMLESS = (
    "InputLayer",
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Masking",
)
"""Layers whose place does not matter."""


@dataclass(frozen=True)
class Piece:
    """A layer without its place in the chain.

    Attributes
    ----------
    path
        Where it is in the file.
    stem
        The class in the path; Keras counts the layers of each class in order.
    reads, gives
        Features; None where it gives what it reads.
    """

    layer: Layer
    path: str
    stem: str
    reads: int | None
    gives: int | None


def ordered(pieces: Sequence[Piece], addresses: Mapping[str, int]) -> tuple[list[Layer], list[str]]:
    """The layers, input to output, and what was assumed.

    Parameters
    ----------
    addresses
        Where the objects stand in the file; empty if that says nothing of the order.

    Raises
    ------
    WeightsError
        No order fits, or several do.
    """
    if _as_written(addresses):
        last = _last(pieces, addresses)
        found = sorted(pieces, key=lambda piece: last[piece.path])
        if _fits(found):
            return [piece.layer for piece in found], [
                "the order of the layers is that in which they were written, which the file keeps"
            ]
    weighted = [piece for piece in pieces if piece.reads is not None]
    if len(weighted) > MOST_PIECES:
        raise _ambiguous(pieces, "too many layers to try their orders")
    chains = []
    for chain in _chains(weighted, bool(addresses), _Trials()):
        chains.append(chain)
        if len(chains) > 1:
            break
    flattened = any(piece.layer.kind == "Flatten" for piece in pieces)
    rest = [p for p in pieces if p.reads is None and p.layer.kind not in HARMLESS]
    if len(chains) != 1 or flattened or rest:
        raise _ambiguous(pieces, "several orders fit" if chains else "no order fits")
    return [piece.layer for piece in chains[0]], [
        "the order of the layers is the only one that fits"
    ]


def _as_written(addresses: Mapping[str, int]) -> bool:
    """Whether objects stand in the order in which Keras made them.

    It makes the model's own ``vars`` before ``layers``. Tools that copy a file go by the
    alphabet.
    """
    own, layers = addresses.get("vars"), addresses.get("layers")
    return own is not None and layers is not None and own < layers


def _last(pieces: Sequence[Piece], addresses: Mapping[str, int]) -> dict[str, int]:
    """Where the last object of each layer stands.

    HDF5 puts an object at the end of the file, or into a gap before it: the last one tells best.
    """
    found: dict[str, int] = {}
    paths = {piece.path for piece in pieces}
    for name, at in addresses.items():
        parts = name.split("/")
        for k in range(1, len(parts) + 1):
            path = "/".join(parts[:k])
            if path in paths:
                found[path] = max(at, found.get(path, at))
    return found


def _fits(chain: Sequence[Piece]) -> bool:
    """Whether each layer reads what the one before it gives, and each class counts up."""
    width: int | None = None
    numbers: dict[str, int] = {}
    for piece in chain:
        if numbers.get(piece.stem, -1) >= _number(piece):
            return False
        numbers[piece.stem] = _number(piece)
        if piece.layer.kind == "Flatten":
            width = None
        if piece.reads is not None and width not in (None, piece.reads):
            return False
        width = width if piece.gives is None else piece.gives
    return True


class _Trials:
    """How many more steps the search may take."""

    left = MOST_TRIALS

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _ambiguous((), "too many orders to try")


def _chains(pieces: Sequence[Piece], counted: bool, trials: _Trials) -> Iterator[list[Piece]]:
    """All orders in which every layer reads what the one before it gives.

    Parameters
    ----------
    counted
        The layers of one class are in the order of their numbers.
    """
    todo: list[list[Piece]] = [[]]
    while todo:
        chain = todo.pop()
        trials.step()
        if len(chain) == len(pieces):
            yield chain
            continue
        rest = [piece for piece in pieces if piece not in chain]
        if counted:
            rest = list({p.stem: p for p in sorted(rest, key=_number, reverse=True)}.values())
        width = chain[-1].gives if chain else None
        todo += [[*chain, piece] for piece in rest if width in (None, piece.reads)]


def _number(piece: Piece) -> int:
    match = re.search(r"_(\d{1,9})$", piece.path)
    return int(match.group(1)) if match else 0


def _ambiguous(pieces: Sequence[Piece], why: str) -> WeightsError:
    names = ", ".join(shown(piece.path) for piece in pieces[:20])
    return WeightsError(
        "the file does not say in which order its layers are",
        expected="one order in which each layer reads what the one before it gives",
        found=f"{why}: {names}" if names else why,
        hint="save the whole model, which says it: model.save('model.keras')",
    )
