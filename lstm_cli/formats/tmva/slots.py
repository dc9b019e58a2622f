"""Gate matrices in the elements of a TMVA layer: by slot (today's ROOT) or by label (older ROOT).

Today's ROOT stores all input matrices before all recurrent ones, but its element names alternate:
`InputStateWeights` is the second slot, the forget gate's input matrix. An older ROOT stored them as
the names say. If H equals D, shapes do not distinguish the two orders.
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
"""Spelling of CandidateWeights by the older writer only."""

_SPELLINGS = {
    "CandidateWeights": ("CandidateWeights", OLD_CANDIDATE_TAG),
    "OuputWeights": ("OuputWeights", "OutputWeights"),
}


@dataclass(frozen=True)
class TmvaLayerKind:
    """Kind of recurrent layer in TMVA.

    Attributes
    ----------
    name, tag
        Name in a config, and name of the XML element.
    letters
        Letters of the gates, in TMVA's order.
    weights, biases
        Names of the elements, in the order of the file.
    """

    name: str
    tag: str
    letters: tuple[str, ...]
    weights: tuple[str, ...]
    biases: tuple[str, ...]

    def slot_contents(self, order: TmvaOrder) -> tuple[tuple[str, str], ...]:
        """Matrix (``W`` or ``U``) and gate letter in each element of `weights`."""
        if order == "slots":
            return tuple((matrix, letter) for matrix in "WU" for letter in self.letters)
        return tuple((matrix, letter) for letter in self.letters for matrix in "WU")


def _gated_kind(
    name: str, tag: str, gates: dict[str, str], weights: Sequence[str]
) -> TmvaLayerKind:
    biases = tuple(f"{gate}Biases" for gate in gates.values())
    return TmvaLayerKind(name, tag, tuple(gates), tuple(weights), biases)


LAYER_KINDS = {
    kind.tag: kind
    for kind in (
        _gated_kind(
            "lstm",
            "LSTMLayer",
            {"i": "Input", "f": "Forget", "g": "Candidate", "o": "Output"},
            (
                "InputWeights", "InputStateWeights", "ForgetWeights", "ForgetStateWeights",
                "CandidateWeights", "CandidateStateWeights", "OuputWeights", "OutputStateWeights",
            ),
        ),
        _gated_kind(
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
    """Elements of one recurrent layer, complete and with values.

    Attributes
    ----------
    position
        Index of the layer in the file, from 0.
    weights, biases
        Elements in the order of the kind's names.
    """

    kind: TmvaLayerKind
    layer: XmlElement
    position: int
    weights: tuple[XmlElement, ...]
    biases: tuple[XmlElement, ...]

    @property
    def name(self) -> str:
        """Element and index of the layer, for messages: ``LSTMLayer[0]``."""
        return f"{self.kind.tag}[{self.position}]"

    @property
    def possible_orders(self) -> list[TmvaOrder]:
        """Orders that the numbers of columns allow."""
        H, D = self.sizes
        columns = [_shape(element)[1] for element in self.weights]
        wanted = {"W": D, "U": H}
        return [o for o in ORDERS if columns == [wanted[m] for m, _ in self.kind.slot_contents(o)]]

    @property
    def sizes(self) -> tuple[int, int]:
        """H and D, from the first matrix, which is an input matrix in both orders."""
        return _shape(self.weights[0])

    @property
    def is_of_old_writer(self) -> bool:
        return any(element.name == OLD_CANDIDATE_TAG for element in self.weights)


def recurrent_elements(
    document: TmvaDocument, layer: XmlElement, position: int
) -> RecurrentElements:
    """Elements of a recurrent layer.

    Raises
    ------
    WeightsError
        An element is missing, or differs in its number of rows.
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
    """Child element with a matrix.

    Raises
    ------
    WeightsError
        The child is missing, or has no matrix.
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
    requested: TmvaOrder | None,
    writer: TmvaOrder | None = None,
) -> tuple[list[TmvaOrder], str | None]:
    """Order of each recurrent layer, and a note on its source.

    A file has one writer, so a layer that allows only one order decides for the others.

    Parameters
    ----------
    requested
        Order that the user requests; None without a request.
    writer
        Order by the program that wrote the file, if it is known.

    Raises
    ------
    WeightsError
        The matrices fit neither order, or not the requested one, or both without a further
        hint.
    """
    gated = [layer for layer in layers if layer.kind.name != "rnn"]
    decided = {layer.position: _decided_order(document, layer, requested) for layer in gated}
    decided_orders = {order for order in decided.values() if order is not None}
    if requested is None:
        requested = decided_orders.pop() if len(decided_orders) == 1 else writer
    unknown = [layer for layer in gated if decided[layer.position] is None]
    if unknown and requested is None:
        _refuse_ambiguous(document, unknown[0])
    layer_orders = [decided.get(layer.position) or requested or "slots" for layer in layers]
    return layer_orders, _note(
        set(decided.values()) - {None} or {requested}, bool(unknown)
    ) if gated else None


def _decided_order(
    document: TmvaDocument, layer: RecurrentElements, requested: TmvaOrder | None
) -> TmvaOrder | None:
    """Only order that a layer allows; None if it allows both."""
    possible_orders = layer.possible_orders
    if layer.is_of_old_writer:
        possible_orders = [order for order in possible_orders if order == "labels"]
    if not possible_orders:
        _refuse_shapes(document, layer)
    if requested is not None and requested not in possible_orders:
        raise WeightsError(
            f"{layer.name} cannot be read in the order {requested}",
            expected=f"--tmva-order {possible_orders[0]}, which its matrices fit",
            found=f"--tmva-order {requested}",
            where=document.where(layer.layer),
            hint="leave --tmva-order out",
        )
    return possible_orders[0] if len(possible_orders) == 1 else None


def _refuse_shapes(document: TmvaDocument, layer: RecurrentElements) -> NoReturn:
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


def _refuse_ambiguous(document: TmvaDocument, layer: RecurrentElements) -> NoReturn:
    H, _ = layer.sizes
    raise WeightsError(
        f"{layer.name} can be read in two ways: it is as wide as its input, so its matrices, "
        f"all {H} x {H}, do not show which of TMVA's two writers wrote them",
        expected="--tmva-order slots (today's ROOT, whose labels are misleading) or "
        "--tmva-order labels (an older ROOT)",
        where=document.where(layer.layer),
        hint="--tmva-order slots, unless the file is old; to be sure, --check compares with "
        "outputs of TMVA",
    )


_WRITERS = {
    "slots": "today's writer: each matrix is read by its slot, not by its label",
    "labels": "the older writer: each matrix is read by its label",
}


def _note(layer_orders: set[TmvaOrder | None], unknown: bool) -> str:
    writer = " and ".join(_WRITERS[order] for order in ORDERS if order in layer_orders)
    return writer + (" (layers as wide as their input were read alike)" if unknown else "")


def _shape(element: XmlElement) -> tuple[int, int]:
    rows, columns = (0, 0) if element.values is None else element.values.shape
    return rows, columns
