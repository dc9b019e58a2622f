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
from lstm_cli.formats.interchange import TmvaOrder
from lstm_cli.formats.tmva.document import TmvaDocument, XmlElement

ORDERS: tuple[TmvaOrder, ...] = ("slots", "labels")
OLD_CANDIDATE_TAG = "Candidateeights"
"""Only the older writer spells CandidateWeights so."""

_SPELLINGS = {
    "CandidateWeights": ("CandidateWeights", OLD_CANDIDATE_TAG),
    "OuputWeights": ("OuputWeights", "OutputWeights"),
}


@dataclass(frozen=True)
class TmvaLayerKind:
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

    def slot_contents(self, order: TmvaOrder) -> tuple[tuple[str, str], ...]:
        """What each of `weights` holds: ``W`` or ``U``, and the gate's letter."""
        if order == "slots":
            return tuple((matrix, letter) for matrix in "WU" for letter in self.letters)
        return tuple((matrix, letter) for letter in self.letters for matrix in "WU")


def _gated(name: str, tag: str, gates: dict[str, str], weights: Sequence[str]) -> TmvaLayerKind:
    biases = tuple(f"{gate}Biases" for gate in gates.values())
    return TmvaLayerKind(name, tag, tuple(gates), tuple(weights), biases)


LAYER_KINDS = {
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
        TmvaLayerKind("rnn", "RNNLayer", ("h",), ("InputWeights", "StateWeights"), ("Biases",)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class RecurrentElements:
    """The elements of one recurrent layer, each there and with values.

    Attributes
    ----------
    position
        Of the layer among the file's, from 0.
    weights, biases
        In the order of the kind's names.
    """

    kind: TmvaLayerKind
    layer: XmlElement
    position: int
    weights: tuple[XmlElement, ...]
    biases: tuple[XmlElement, ...]

    @property
    def name(self) -> str:
        """The layer's place in the file: ``LSTMLayer[0]``."""
        return f"{self.kind.tag}[{self.position}]"

    @property
    def possible_orders(self) -> list[TmvaOrder]:
        """The orders that the numbers of columns allow."""
        H, D = self.sizes
        columns = [_shape(element)[1] for element in self.weights]
        wanted = {"W": D, "U": H}
        return [o for o in ORDERS if columns == [wanted[m] for m, _ in self.kind.slot_contents(o)]]

    @property
    def sizes(self) -> tuple[int, int]:
        """(H, D) of the first matrix, an input matrix for either writer."""
        return _shape(self.weights[0])

    @property
    def is_of_old_writer(self) -> bool:
        return any(element.name == OLD_CANDIDATE_TAG for element in self.weights)


def recurrent_elements(
    document: TmvaDocument, layer: XmlElement, position: int
) -> RecurrentElements:
    """A recurrent layer's elements.

    Raises
    ------
    WeightsError
        One is missing, or has another number of rows than the others.
    """
    kind = LAYER_KINDS[layer.name]
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
    return RecurrentElements(kind, layer, position, weights, biases)


def matrix(document: TmvaDocument, layer: XmlElement, position: int, name: str) -> XmlElement:
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


def find_orders(
    document: TmvaDocument,
    layers: Sequence[RecurrentElements],
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


def _told(
    document: TmvaDocument, layer: RecurrentElements, asked: TmvaOrder | None
) -> TmvaOrder | None:
    """The only order that this layer can have, or None."""
    possible_orders = layer.possible_orders
    if layer.is_of_old_writer:
        possible_orders = [order for order in possible_orders if order == "labels"]
    if not possible_orders:
        _misshapen(document, layer)
    if asked is not None and asked not in possible_orders:
        raise WeightsError(
            f"{layer.name} cannot be read by its {asked}",
            expected=f"--tmva-order {possible_orders[0]}, which its matrices fit",
            found=f"--tmva-order {asked}",
            where=document.where(layer.layer),
            hint="leave --tmva-order out",
        )
    return possible_orders[0] if len(possible_orders) == 1 else None


def _misshapen(document: TmvaDocument, layer: RecurrentElements) -> NoReturn:
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


def _ambiguous(document: TmvaDocument, layer: RecurrentElements) -> NoReturn:
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


def _shape(element: XmlElement) -> tuple[int, int]:
    rows, columns = (0, 0) if element.values is None else element.values.shape
    return rows, columns
