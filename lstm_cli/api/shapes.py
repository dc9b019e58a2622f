"""Every shape of a network, gate by gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lstm_cli.cells import Cell
from lstm_cli.config import Config
from lstm_cli.engines.types import (
    DIRECTIONS,
    DenseSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import counted
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.weights import Misfit, misfits

Shape = tuple[int | str, ...]
"""A shape in which the batch N and the steps T may stay letters."""


PARTS = {"W": "from x", "U": "from h", "b": "bias", "b_h": "bias of h", "p": "peephole"}
"""A parameter's symbol to what its block of one gate is called."""


@dataclass(frozen=True)
class Block:
    """One matrix or vector of one gate, and where it is stored.

    `symbol` is its letter in the equations (``W_i``), `stored` the tensor and rows that hold it,
    `found` its shape in a weights file that was compared, `mark` what is wrong there, `places`
    where a file of another format has it, under its own names.
    """

    symbol: str
    role: str
    formula: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    stored: str
    found: tuple[int, ...] | None = None
    mark: str | None = None
    places: tuple[TensorSource, ...] = ()


@dataclass(frozen=True)
class GateShapes:
    """One gate: input matrix W, recurrent matrix U, bias b if it has one, activation, and value."""

    letter: str
    name: str
    W: tuple[int, ...]
    U: tuple[int, ...]
    b: tuple[int, ...] | None
    activation: str
    per_step: Shape


@dataclass(frozen=True)
class Flow:
    """A value that the forward pass makes: its shape at one step and over a batch.

    `bytes` are those of the batch; None where N or T is not known.
    """

    name: str
    per_step: Shape
    per_batch: Shape
    bytes: int | None


@dataclass(frozen=True)
class DirectionShapes:
    """One direction of a recurrent layer."""

    direction: str
    gates: tuple[GateShapes, ...]
    states: Mapping[str, Shape]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LayerShapes:
    """One layer: title such as ``lstm 12 → 100``, and all its tensors and values."""

    index: int
    kind: str
    title: str
    parameters: int
    bytes: int
    directions: tuple[DirectionShapes, ...]
    blocks: tuple[Block, ...]
    flows: tuple[Flow, ...]


def layer_title(spec: LayerSpec) -> str:
    """A layer in a few words: ``lstm 12 → 100, both directions``."""
    words = f"{spec.kind} {spec.input_size} → {spec.output_size}"
    if isinstance(spec, DenseSpec) and spec.activation_name != "identity":
        words += f", {spec.activation_name}"
    if isinstance(spec, DenseSpec) and not spec.bias:
        words += ", no bias"
    if isinstance(spec, RecurrentSpec):
        words += "".join(f", {option}" for option in _options(spec))
    return words


def _options(spec: RecurrentSpec) -> Iterator[str]:
    cell = spec.cells[0]
    if spec.directions == 2:
        yield "both directions"
    if not spec.return_sequences:
        yield "last step"
    if spec.stateful:
        yield "stateful"
    yield from _cell_options(cell)


def _cell_options(cell: Cell) -> Iterator[str]:
    if cell.projects:
        yield f"{counted(cell.hidden_size, 'unit')} projected to {cell.output_size}"
    if not cell.bias:
        yield "no biases"
    if cell.peephole_gates:
        yield "peepholes"
    if getattr(cell, "coupled_input_forget", False):
        yield "f = 1 - i"
    if not getattr(cell, "use_forget_gate", True):
        yield "no forget gate"
    if not getattr(cell, "reset_after", True):
        yield "reset before"
    if cell.clip is not None:
        yield f"clip {cell.clip:g}"


def network_shapes(
    config: Config,
    itemsize: int = 4,
    *,
    batch: int | None = None,
    steps: int | None = None,
    found: Mapping[str, tuple[int, ...]] | None = None,
    places: Mapping[tuple[str, str], tuple[TensorSource, ...]] = MappingProxyType({}),
) -> tuple[LayerShapes, ...]:
    """Shapes of every layer.

    Parameters
    ----------
    itemsize
        Bytes of a number.
    batch, steps
        N and T, where they are known; else they stay letters.
    found
        Shapes of the tensors of a weights file to set beside the config's.
    places
        Native tensor and gate to where a file of another format has it.
    """
    wrong = {m.name: m for m in misfits(config.specs, found)} if found is not None else {}
    N: int | str = batch if batch is not None else "N"
    T: int | str = steps if steps is not None else "T"
    layers = []
    for spec in config.specs:
        blocks = tuple(_blocks(spec, itemsize, found, wrong, places))
        parameters = sum(block.parameters for block in blocks)
        flows = tuple(_flows(spec, N, T, itemsize))
        directions = tuple(_directions(spec)) if isinstance(spec, RecurrentSpec) else ()
        title = layer_title(spec)
        nbytes = parameters * itemsize
        layers.append(
            LayerShapes(spec.index, spec.kind, title, parameters, nbytes, directions, blocks, flows)
        )
        if ends_sequence(spec):
            T = 0
    return tuple(layers)


def _directions(spec: RecurrentSpec) -> Iterator[DirectionShapes]:
    for d, cell in enumerate(spec.cells):
        H, P = cell.hidden_size, cell.output_size
        gates = tuple(
            GateShapes(
                gate.letter,
                gate.name,
                (H, spec.input_size),
                (H, P),
                (H,) if cell.bias else None,
                _gate_function(cell, gate.letter),
                ("N", H),
            )
            for gate in cell.gates
        )
        sizes = zip(cell.states, cell.state_sizes, strict=True)
        states: dict[str, Shape] = {name: ("N", size) for name, size in sizes}
        yield DirectionShapes(DIRECTIONS[d], gates, states, tuple(_cell_options(cell)))


def _gate_function(cell: Cell, letter: str) -> str:
    if letter == "f" and not getattr(cell, "use_forget_gate", True):
        return "unused"
    if letter == "f" and getattr(cell, "coupled_input_forget", False):
        return "1 - i"
    return str(cell.gate_activation(letter))


def _blocks(
    spec: LayerSpec,
    itemsize: int,
    found: Mapping[str, tuple[int, ...]] | None,
    wrong: Mapping[str, Misfit],
    places: Mapping[tuple[str, str], tuple[TensorSource, ...]],
) -> Iterator[Block]:
    gates = spec.cells[0].gates if isinstance(spec, RecurrentSpec) else ()
    names = {gate.letter: gate.name for gate in gates}
    for stored, parameter in spec.parameters().items():
        pieces = parameter.blocks or ("",)
        rows = parameter.shape[0] // len(pieces)
        there = None if found is None else found.get(stored)
        mark = wrong[stored].mark if stored in wrong else None
        for k, letter in enumerate(pieces):
            shape = (rows, *parameter.shape[1:])
            size = _product(shape)
            yield Block(
                f"{parameter.symbol}_{letter}" if letter else parameter.symbol,
                f"{names[letter]}, {PARTS[parameter.symbol]}" if letter else parameter.role,
                parameter.formula.replace(f"{len(pieces)}H", "H"),
                shape,
                size,
                size * itemsize,
                f"{stored}[{k * rows}:{(k + 1) * rows}]" if letter else stored,
                _piece(there, len(pieces), mark),
                mark,
                places.get((stored, letter), places.get((stored, ""), ())),
            )


def _piece(there: tuple[int, ...] | None, pieces: int, mark: str | None) -> tuple[int, ...] | None:
    """What a weights file has for one gate: a block if its rows divide, else the whole."""
    if there is None or not there:
        return there
    if mark is not None and (mark[0] not in "HDP" or there[0] % pieces):
        return there
    return (there[0] // pieces, *there[1:])


def _flows(spec: LayerSpec, N: int | str, T: int | str, itemsize: int) -> Iterator[Flow]:
    def flow(name: str, *features: int, steps: int | str = T) -> Flow:
        over = (N, steps, *features) if steps != 0 else (N, *features)
        known = [size for size in over if isinstance(size, int)]
        size = _product(tuple(known)) * itemsize if len(known) == len(over) else None
        return Flow(name, (N, *features), over, size)

    yield flow("input", spec.input_size)
    if isinstance(spec, RecurrentSpec):
        cell = spec.cells[0]
        each = ", each direction" if spec.directions > 1 else ""
        for gate in cell.gates:
            if _gate_function(cell, gate.letter) != "unused":
                yield flow(f"{gate.name} {gate.letter}{each}", cell.hidden_size)
        for name, size in zip(cell.states, cell.state_sizes, strict=True):
            yield flow(f"state {name}{each}", size)
    steps = 0 if ends_sequence(spec) else T
    yield flow("output", spec.output_size, steps=steps)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
