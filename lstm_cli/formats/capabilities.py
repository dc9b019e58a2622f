"""Table of what each format can store: the layers that it knows, and its limits by option.

A format without a row for an option stores every value of the option. Tables of activations are
beside each format's own names for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

from lstm_cli.cells import CELLS, Activation, Cell
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.engines.types import (
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import Problem, WeightsError

StorableLayer: TypeAlias = RecurrentSpec | DenseSpec | DropoutSpec | FlattenSpec
"""Layers that the formats know. Each writer has a branch for each of them."""


def storable_layers(layers: Layers) -> tuple[StorableLayer, ...]:
    """The layers, each of a kind that the formats know."""
    return tuple(map(storable_layer, layers))


def storable_layer(spec: LayerSpec) -> StorableLayer:
    """The layer, if the formats know its kind; mypy reports a kind without a branch here."""
    match spec:
        case RecurrentSpec() | DenseSpec() | DropoutSpec() | FlattenSpec():
            return spec
        case _:
            assert_never(spec)


FOREIGN_CELLS = ("lstm", "gru", "rnn")
"""Cells that other formats than lstm-cli's own have; a writer for another cell adds it here."""


def check_cells(title: str, layers: Layers) -> None:
    """Check that a format of other programs has the cells of a network.

    Raises
    ------
    WeightsError
        The error names the first layer of a cell that the format does not have.
    """
    for spec in layers:
        if isinstance(spec, RecurrentSpec) and spec.kind not in FOREIGN_CELLS:
            raise WeightsError(
                f"{title} has no {spec.kind}: layer {spec.index} cannot be written",
                expected=", ".join(FOREIGN_CELLS),
                found=spec.kind,
                hint="a native file keeps it: name a DST that ends in .safetensors",
            )


@dataclass(frozen=True)
class Limit:
    """Values that a format stores of one option of a recurrent layer.

    Attributes
    ----------
    key
        Key in the config.
    allows
        Whether the format stores a value in a cell.
    stored
        Stored values in words: ``expected`` of the error. ``{H}`` is the number of units.
    option
        Option in words, for errors. None: key and value.
    kinds
        Kinds of layers that the limit is for.
    reason
        Further line of the error.
    change
        Key and value that the format can store, for the hint. ``{k}`` is the index of the layer.
    table
        Stored values in the table of ``docs/formats/README.md``.
    """

    key: str
    allows: Callable[[Any, Cell], bool]
    stored: str | None = None
    option: str | None = None
    kinds: tuple[str, ...] = tuple(CELLS)
    reason: str | None = None
    change: str | None = None
    table: str = "no"


def _only(*values: Any) -> Callable[[Any, Cell], bool]:
    return lambda value, cell: value in values


def _always(function: Activation, key: str) -> Limit:
    """Limit of an activation that TMVA's layers have built in."""
    return Limit(key, _only(function), f"{key}: {function}, which TMVA's layer always has")


LIMITS: Mapping[str, tuple[Limit, ...]] = {
    "native": (),
    "pytorch": (
        Limit("clip", _only(None), "none", "a clip"),
        Limit("activation", _only(TANH), "tanh", "another activation", ("lstm", "gru")),
        Limit(
            "activation",
            _only(TANH, Activation("relu")),
            "tanh or relu",
            "another activation",
            ("rnn",),
        ),
        Limit("recurrent_activation", _only(SIGMOID), "sigmoid", "another activation"),
        Limit("cell_activation", _only(TANH), "tanh", "another activation"),
        Limit("peepholes", _only(False), "none", "peepholes"),
        Limit("coupled_input_forget", _only(False), "a forget gate of its own", "coupled gates"),
        Limit(
            "projection_size",
            lambda size, cell: size is None or size < cell.hidden_size,
            "fewer features than {H}",
            "a wide projection",
            table="smaller than `hidden_size`",
        ),
        Limit("reset_after", _only(True), "reset_after: true", "another reset", table="`true`"),
    ),
    "keras": (
        Limit(
            "stateful",
            _only(False),
            reason="Keras's stateful layers are for one size of batch, which a model here does "
            "not fix",
            change="layers.{k}.stateful=false",
        ),
        Limit("clip", _only(None)),
        Limit("peepholes", _only(False)),
        Limit("projection_size", _only(None)),
        Limit("coupled_input_forget", _only(False)),
        Limit(
            "cell_activation",
            lambda function, cell: function == cell.activation,
            option="cell_activation: {cell.cell_activation} beside activation: {cell.activation}",
        ),
    ),
    "onnx": (),
    "tmva": (
        Limit("bidirectional", _only(False), "one direction"),
        Limit("clip", _only(None), "no clip"),
        _always(TANH, "activation"),
        _always(SIGMOID, "recurrent_activation"),
        _always(TANH, "cell_activation"),
        Limit("peepholes", _only(False), "gates that see x and h alone"),
        Limit("projection_size", _only(None), "h as wide as c"),
        Limit("coupled_input_forget", _only(False), "a forget gate of its own"),
    ),
}
"""Limits of each format, in the order of its errors."""

HOLDING_FORMAT = "ONNX holds it: --to onnx"


def unsupported_options(
    format: str, spec: RecurrentSpec, cell: Cell
) -> Iterator[tuple[Limit, Any]]:
    """Options of one direction that a format cannot store, with their values."""
    options = _options(spec, cell)
    for limit in LIMITS[format]:
        if spec.kind in limit.kinds and limit.key in options:
            value = options[limit.key]
            if not limit.allows(value, cell):
                yield limit, value


def _options(spec: RecurrentSpec, cell: Cell) -> dict[str, Any]:
    """Values of the options that a layer of this kind has, by key."""
    options = {"bidirectional": spec.directions > 1, "stateful": spec.stateful, **vars(cell)}
    if spec.kind == "rnn":  # its one gate has no other activation
        del options["recurrent_activation"]
    return options


def check_cell(format: str, spec: RecurrentSpec, cell: Cell) -> None:
    """Check that a format can store all options of one direction of a layer.

    Raises
    ------
    WeightsError
        The error names the first option that the format cannot store.
    """
    for limit, value in unsupported_options(format, spec, cell):
        raise WeightsError([_PROBLEMS[format](spec, cell, limit, value)])


def problems(format: str, layers: Layers) -> list[Problem]:
    """A problem for each option of the layers that a format cannot store."""
    result = []
    for spec in layers:
        if not isinstance(spec, RecurrentSpec):
            continue
        for cell in dict.fromkeys(spec.cells):
            for limit, value in unsupported_options(format, spec, cell):
                result.append(_PROBLEMS[format](spec, cell, limit, value))
        if format == "pytorch" and len({cell.activation for cell in spec.cells}) > 1:
            functions = ", ".join(str(cell.activation) for cell in spec.cells)
            limit = Limit("activation", _only(), "one for both directions", "two activations")
            result.append(_pytorch_problem(spec, spec.cells[0], limit, functions))
    return result


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pytorch_problem(spec: RecurrentSpec, cell: Cell, limit: Limit, value: Any) -> Problem:
    module = {"lstm": "nn.LSTM", "gru": "nn.GRU", "rnn": "nn.RNN"}[spec.kind]
    return Problem(
        f"{module} cannot hold layer {spec.index} ({spec.kind}): it has {limit.option}",
        expected=None if limit.stored is None else limit.stored.format(H=cell.hidden_size),
        found=f"{limit.key}: {_text(value)}",
        hint=HOLDING_FORMAT,
    )


def _keras_problem(spec: RecurrentSpec, cell: Cell, limit: Limit, value: Any) -> Problem:
    option = limit.option or f"{limit.key}: {str(value).lower()}"
    return Problem(
        f"layer {spec.index} ({spec.kind}) has {option.format(cell=cell)}, which Keras's files "
        "cannot hold",
        found=limit.reason,
        hint=None if limit.change is None else f"--set model.{limit.change.format(k=spec.index)}",
    )


def _tmva_problem(spec: RecurrentSpec, cell: Cell, limit: Limit, value: Any) -> Problem:
    return Problem(
        f"TMVA cannot represent layer {spec.index} ({spec.kind}): it has "
        f"{limit.key}: {_text(value)}",
        expected=limit.stored,
        where=(f"layers.{spec.index}",),
    )


_PROBLEMS = {"pytorch": _pytorch_problem, "keras": _keras_problem, "tmva": _tmva_problem}
