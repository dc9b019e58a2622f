"""Which element of a layer holds which gate's matrix: by its slot, or by its label.

TMVA keeps all input matrices of a layer in front of all recurrent ones, but writes them under
names that alternate: `InputStateWeights` is the second slot, the forget gate's input matrix. Its
older writer kept them in the order of the names. Where a layer is as wide as its input, the two
cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from lstm_cli.errors import WeightsError
from lstm_cli.formats.model import TmvaOrder
from lstm_cli.formats.tmva.document import Document, Element

ORDERS: tuple[TmvaOrder, ...] = ("slots", "labels")
OLD_TAG = "Candidateeights"
"""Only the older writer spells CandidateWeights so."""

_SPELLINGS = {
    "CandidateWeights": ("CandidateWeights", OLD_TAG),
    "OuputWeights": ("OuputWeights", "OutputWeights"),
}


@dataclass(frozen=True)
class Kind:
    """A kind of recurrent layer.

    Attributes
    ----------
    name, tag
        As a config has it, and as the file has it.
    letters
        Of the gates, in TMVA's order.
    weights, biases
        Names of the elements, in the order they are written.
    """

    name: str
    tag: str
    letters: tuple[str, ...]
    weights: tuple[str, ...]
    biases: tuple[str, ...]

    def held(self, order: TmvaOrder) -> tuple[tuple[str, str], ...]:
        """What each of `weights` holds: ``W`` or ``U``, and the gate's letter."""
        if order == "slots":
            return tuple((matrix, letter) for matrix in "WU" for letter in self.letters)
        return tuple((matrix, letter) for letter in self.letters for matrix in "WU")


def _gated(name: str, tag: str, gates: dict[str, str], weights: Sequence[str]) -> Kind:
    biases = tuple(f"{gate}Biases" for gate in gates.values())
    return Kind(name, tag, tuple(gates), tuple(weights), biases)


KINDS = {
    kind.tag: kind
    for kind in (
        _gated(
            "lstm",
            "LSTMLayer",
            {"i": "Input", "f": "Forget", "g": "Candidate", "o": "Output"},
            (
                "InputWeights", "InputStateWeights", "ForgetWeights", "ForgetStateWeights",
                "CandidateWeights", "CandidateStateWeights", "OuputWeights", "OutputStateWeights",
            ),
        ),
        _gated(
            "gru",
            "GRULayer",
            {"r": "Reset", "z": "Update", "n": "Candidate"},
            (
                "ResetWeights", "ResetStateWeights", "UpdateWeights", "UpdateStateWeights",
                "CandidateWeights", "CandidateStateWeights",
            ),
        ),
        Kind("rnn", "RNNLayer", ("h",), ("InputWeights", "StateWeights"), ("Biases",)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The elements of one recurrent layer, each there and with values.

    Attributes
    ----------
    position
        Of the layer among the file's, from 0.
    weights, biases
        In the order of the kind's names.
    """

    kind: Kind
    layer: Element
    position: int
    weights: tuple[Element, ...]
    biases: tuple[Element, ...]

    @property
    def name(self) -> str:
        """The layer's place in the file: ``LSTMLayer[0]``."""
        return f"{self.kind.tag}[{self.position}]"

    @property
    def fitting(self) -> list[TmvaOrder]:
        """The orders that the numbers of columns allow."""
        H, D = self.sizes
        columns = [_shape(element)[1] for element in self.weights]
        wanted = {"W": D, "U": H}
        return [o for o in ORDERS if columns == [wanted[m] for m, _ in self.kind.held(o)]]

    @property
    def sizes(self) -> tuple[int, int]:
        """(H, D) of the first matrix, an input matrix for either writer."""
        return _shape(self.weights[0])

    @property
    def is_old(self) -> bool:
        return any(element.name == OLD_TAG for element in self.weights)


def parts(document: Document, layer: Element, position: int) -> Parts:
    """A recurrent layer's elements.

    Raises
    ------
    WeightsError
        One is missing, or has another number of rows than the others.
    """
    kind = KINDS[layer.name]
    weights, biases = (
        tuple(matrix(document, layer, position, name) for name in names)
        for names in (kind.weights, kind.biases)
    )
    rows = _shape(weights[0])[0]
    for element in (*weights, *biases):
        shape = _shape(element)
        if shape[0] != rows and not (element in biases and shape == (1, rows)):
            raise WeightsError(
                f"{element.name} of {layer.name}[{position}] has another number of units",
                expected=f"{rows} rows, as {weights[0].name} has",
                found=f"{shape[0]} x {shape[1]}",
                where=document.where(element),
            )
    return Parts(kind, layer, position, weights, biases)


def matrix(document: Document, layer: Element, position: int, name: str) -> Element:
    """A child that holds numbers.

    Raises
    ------
    WeightsError
        It is not there.
    """
    element = layer.child(*_SPELLINGS.get(name, (name,)))
    if element is None or element.values is None:
        raise WeightsError(
            f"{layer.name}[{position}] has no matrix {name}",
            expected=f"an element {name} with Rows and Columns",
            where=document.where(layer),
        )
    return element


def orders(
    document: Document,
    layers: Sequence[Parts],
    asked: TmvaOrder | None,
    writer: TmvaOrder | None = None,
) -> tuple[list[TmvaOrder], str | None]:
    """The order of each recurrent layer, and a note on how it was found.

    A file has one writer: a layer that can be read in one way only decides for the others.

    Parameters
    ----------
    asked
        What the user says.
    writer
        What the program that wrote the file does, where that is known.

    Raises
    ------
    WeightsError
        The matrices fit neither order, or not the one that is asked for; or both, and nothing
        says which.
    """
    gated = [layer for layer in layers if layer.kind.name != "rnn"]
    told = {layer.position: _told(document, layer, asked) for layer in gated}
    known = {order for order in told.values() if order is not None}
    if asked is None:
        asked = known.pop() if len(known) == 1 else writer
    unknown = [layer for layer in gated if told[layer.position] is None]
    if unknown and asked is None:
        _ambiguous(document, unknown[0])
    found = [told.get(layer.position) or asked or "slots" for layer in layers]
    return found, _note(set(told.values()) - {None} or {asked}, bool(unknown)) if gated else None


def _told(document: Document, layer: Parts, asked: TmvaOrder | None) -> TmvaOrder | None:
    """The only order that this layer can have, or None."""
    fitting = layer.fitting
    if layer.is_old:
        fitting = [order for order in fitting if order == "labels"]
    if not fitting:
        _misshapen(document, layer)
    if asked is not None and asked not in fitting:
        raise WeightsError(
            f"{layer.name} cannot be read by its {asked}",
            expected=f"--tmva-order {fitting[0]}, which its matrices fit",
            found=f"--tmva-order {asked}",
            where=document.where(layer.layer),
            hint="leave --tmva-order out",
        )
    return fitting[0] if len(fitting) == 1 else None


def _misshapen(document: Document, layer: Parts) -> NoReturn:
    H, D = layer.sizes
    listed = ", ".join(
        f"{element.name} {rows} x {columns}"
        for element in layer.weights
        for rows, columns in [_shape(element)]
    )
    raise WeightsError(
        f"the matrices of {layer.name} fit neither of TMVA's two writers",
        expected=f"as many of {H} x {D} (input) as of {H} x {H} (recurrent), in either order",
        found=listed,
        where=document.where(layer.layer),
    )


def _ambiguous(document: Document, layer: Parts) -> NoReturn:
    H, _ = layer.sizes
    raise WeightsError(
        f"{layer.name} can be read in two ways: it is as wide as its input, so its matrices, "
        f"all {H} x {H}, do not say which of TMVA's two writers wrote them",
        expected="--tmva-order slots (today's ROOT, whose labels do not say what they hold) or "
        "--tmva-order labels (an older ROOT)",
        where=document.where(layer.layer),
        hint="--tmva-order slots, unless the file is old; outputs of TMVA decide, with --check",
    )


_WRITERS = {
    "slots": "today's writer: matrices were taken by their slot, not by their label",
    "labels": "the older writer: each matrix is what its label says",
}


def _note(found: set[TmvaOrder | None], unknown: bool) -> str:
    writer = " and ".join(_WRITERS[order] for order in ORDERS if order in found)
    return writer + (" (layers as wide as their input were read alike)" if unknown else "")


def _shape(element: Element) -> tuple[int, int]:
    rows, columns = (0, 0) if element.values is None else element.values.shape
    return rows, columns
