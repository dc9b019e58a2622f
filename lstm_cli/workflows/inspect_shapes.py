"""Shapes of a network, gate by gate, compared with a weights file and data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.config import Config
from lstm_cli.data import DataOptions, open_data
from lstm_cli.engines.types import (
    DIRECTIONS,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import DataError, LstmCliError, Problem, WeightsError, counted
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization
from lstm_cli.network.weights import Misfit, merge_biases, misfits
from lstm_cli.workflows.shape_check import (
    cell_options,
    data_problems,
    layer_title,
    misfit_describer,
)
from lstm_cli.workflows.weights_files import (
    read_weights,
    renumbered,
    standing_notes,
    stored_places,
)

ROLES = {"W": "from x", "U": "from h", "b": "bias", "b_h": "bias of h", "p": "peephole"}
"""Role of a gate's block in messages, by the symbol of its parameter."""


Shape = tuple[int | str, ...]
"""A shape, in which the letters N and T stand for an unknown batch size and number of steps."""


@dataclass(frozen=True)
class GateBlock:
    """One matrix or vector of one gate, and its places in files.

    Attributes
    ----------
    symbol
        Name of the block in the equations: ``W_i``.
    role, formula, shape, parameters, bytes
        Role in words, shape as a formula such as ``(H, D)``, and sizes.
    stored
        Native tensor and rows: ``layers.0.weight_ih[0:100]``.
    found
        Shape in the compared weights file; None: the file lacks the block.
    mark
        Short name of the misfit in the weights file; None: the block fits.
    places
        Tensors that hold the block in a file of another format, under its own names.
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
    """Shapes of one gate: input matrix W, recurrent matrix U, bias b, and value per step."""

    letter: str
    name: str
    W: tuple[int, ...]
    U: tuple[int, ...]
    b: tuple[int, ...] | None
    activation: str
    per_step: Shape


@dataclass(frozen=True)
class ValueShapes:
    """Shapes of a value that the forward pass computes, at one step and over a batch.

    Attributes
    ----------
    bytes
        Bytes of the value over a batch; None where N or T is not known.
    """

    name: str
    per_step: Shape
    per_batch: Shape
    bytes: int | None


@dataclass(frozen=True)
class DirectionShapes:
    """Shapes of one direction of a recurrent layer: gates, states, and options as notes."""

    direction: str
    gates: tuple[GateShapes, ...]
    states: Mapping[str, Shape]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LayerShapes:
    """Shapes of one layer: title such as ``lstm 12 → 100``, tensors and values."""

    index: int
    kind: str
    title: str
    parameters: int
    bytes: int
    directions: tuple[DirectionShapes, ...]
    blocks: tuple[GateBlock, ...]
    flows: tuple[ValueShapes, ...]


def network_shapes(
    config: Config,
    itemsize: int = 4,
    *,
    batch: int | None = None,
    steps: int | None = None,
    file_shapes: Mapping[str, tuple[int, ...]] | None = None,
    places: Mapping[tuple[str, str], tuple[TensorSource, ...]] = MappingProxyType({}),
) -> tuple[LayerShapes, ...]:
    """Return the shapes of every layer.

    Parameters
    ----------
    itemsize
        Bytes of a number.
    batch, steps
        N and T; None: the shapes have the letters.
    file_shapes
        Shapes of a weights file's tensors, by native name, to compare with the config's.
    places
        Places in a file of another format, by native tensor and gate.
    """
    wrong = (
        {m.name: m for m in misfits(config.specs, file_shapes)} if file_shapes is not None else {}
    )
    N: int | str = batch if batch is not None else "N"
    T: int | str = steps if steps is not None else "T"
    layers = []
    for spec in config.specs:
        blocks = tuple(_blocks(spec, itemsize, file_shapes, wrong, places))
        parameters = sum(block.parameters for block in blocks)
        flows = tuple(_value_shapes(spec, N, T, itemsize))
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
        yield DirectionShapes(DIRECTIONS[d], gates, states, tuple(cell_options(cell)))


def _gate_function(cell: Cell, letter: str) -> str:
    if letter == "f" and not getattr(cell, "use_forget_gate", True):
        return "unused"
    if letter == "f" and getattr(cell, "coupled_input_forget", False):
        return "1 - i"
    return str(cell.gate_activation(letter))


def _blocks(
    spec: LayerSpec,
    itemsize: int,
    file_shapes: Mapping[str, tuple[int, ...]] | None,
    wrong: Mapping[str, Misfit],
    places: Mapping[tuple[str, str], tuple[TensorSource, ...]],
) -> Iterator[GateBlock]:
    gates = spec.cells[0].gates if isinstance(spec, RecurrentSpec) else ()
    names = {gate.letter: gate.name for gate in gates}
    for stored, parameter in spec.parameters().items():
        letters = parameter.blocks or ("",)
        rows = parameter.shape[0] // len(letters)
        file_shape = None if file_shapes is None else file_shapes.get(stored)
        mark = wrong[stored].mark if stored in wrong else None
        for k, letter in enumerate(letters):
            shape = (rows, *parameter.shape[1:])
            size = math.prod(shape)
            yield GateBlock(
                f"{parameter.symbol}_{letter}" if letter else parameter.symbol,
                f"{names[letter]}, {ROLES[parameter.symbol]}" if letter else parameter.role,
                parameter.formula.replace(f"{len(letters)}H", "H"),
                shape,
                size,
                size * itemsize,
                f"{stored}[{k * rows}:{(k + 1) * rows}]" if letter else stored,
                _block_shape(file_shape, len(letters), mark),
                mark,
                places.get((stored, letter), places.get((stored, ""), ())),
            )


def _block_shape(
    file_shape: tuple[int, ...] | None, gates: int, mark: str | None
) -> tuple[int, ...] | None:
    """Return a block's shape in a file; the tensor's if its rows do not divide by the gates."""
    if file_shape is None or not file_shape:
        return file_shape
    if mark is not None and (mark[0] not in "HDP" or file_shape[0] % gates):
        return file_shape
    return (file_shape[0] // gates, *file_shape[1:])


def _value_shapes(
    spec: LayerSpec, N: int | str, T: int | str, itemsize: int
) -> Iterator[ValueShapes]:
    def flow(name: str, *features: int, steps: int | str = T) -> ValueShapes:
        per_batch = (N, steps, *features) if steps != 0 else (N, *features)
        sizes = [size for size in per_batch if isinstance(size, int)]
        nbytes = math.prod(sizes) * itemsize if len(sizes) == len(per_batch) else None
        return ValueShapes(name, (N, *features), per_batch, nbytes)

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


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Attributes
    ----------
    name, config
        Name and file of the config.
    weights
        Path of the compared weights file; None: no file was compared.
    data, data_paths
        Description of the data, and their paths; None and empty without data.
    layers
        Shapes of every layer.
    parameters, bytes
        Parameters of the whole network, and their bytes.
    weights_problems, data_problems
        Misfits between the config and the weights, and between the config and the data.
    notes
        Assumptions about options that the weights file does not state.
    format
        Title of the weights file's format; None for a native one.
    normalization
        Mean and scale of the inputs, (D,) each, where the weights file has them.
    """

    name: str
    config: str
    weights: str | None
    data: str | None
    data_paths: tuple[str, ...]
    layers: tuple[LayerShapes, ...]
    parameters: int
    bytes: int
    weights_problems: tuple[Problem, ...]
    data_problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    format: str | None = None
    normalization: Mapping[str, list[float]] | None = None

    def error(self) -> LstmCliError | None:
        """Return all misfits as one error; None without a misfit.

        The error is a WeightsError if the weights have misfits, else a DataError.
        """
        problems = (*self.weights_problems, *self.data_problems)
        if not problems:
            return None
        sources = [self.weights] if self.weights_problems else []
        sources += [", ".join(self.data_paths)] if self.data_problems else []
        count = counted(len(problems), "misfit")
        headline = f"{count} between {self.config} and {' and '.join(filter(None, sources))}"
        kind = WeightsError if self.weights_problems else DataError
        return kind(problems, headline=headline)


def inspect(
    config: Config,
    weights: str | Path | Imported | None,
    data: Sequence[str],
    options: DataOptions,
    *,
    itemsize: int = 4,
    batch: int = 64,
    reading: ReadOptions | None = None,
) -> Inspection:
    """Return the shapes of a config, compared with a weights file and data if there are any.

    A misfit raises no error: it is part of the result.

    Parameters
    ----------
    itemsize
        Bytes of a number.
    batch
        Sequences of a batch; fewer where the data hold fewer.
    reading
        Options for reading, if `weights` is a path.

    Raises
    ------
    WeightsError, DataError
        A file cannot be read.
    """
    wrong_weights: list[Problem] = []
    file, file_shapes, scaling = None, None, None
    if weights is not None:
        in_config = weights is config.weights
        if not isinstance(weights, Imported):
            weights = read_weights(weights, reading, layers=config.specs)
        file = weights
        wrong_weights, file_shapes, scaling = _compare_weights(config, file, in_config=in_config)
    description, steps, wrong_data = None, config.model.steps, []
    if data:
        with open_data(data, options) as dataset:
            wrong_data = data_problems(config, dataset)
            description = dataset.description
            batch, steps = min(batch, dataset.count), dataset.max_steps
    places = {} if file is None else stored_places(renumbered(file, config.specs))
    layers = network_shapes(
        config, itemsize, batch=batch, steps=steps, file_shapes=file_shapes, places=places
    )
    return Inspection(
        config.name,
        config.source,
        None if file is None else str(file.path),
        description,
        tuple(data),
        layers,
        sum(layer.parameters for layer in layers),
        sum(layer.bytes for layer in layers),
        tuple(wrong_weights),
        tuple(wrong_data),
        () if file is None else standing_notes(file, config),
        None if file is None or file.format == "native" else file.title,
        None if scaling is None else scaling.numbers,
    )


def _compare_weights(
    config: Config, file: Imported, *, in_config: bool
) -> tuple[list[Problem], dict[str, tuple[int, ...]], Normalization | None]:
    """Return a file's misfits, the shapes of its tensors, and its normalization if that fits."""
    tensors = renumbered(file, config.specs).tensors
    shapes = {name: value.shape for name, value in merge_biases(config.specs, tensors).items()}
    describe = misfit_describer(config, str(file.path), in_config=in_config)
    problems = describe(misfits(config.specs, shapes))
    misfit = any(name in problem.what for problem in problems for name in TENSOR_NAMES)
    return problems, shapes, None if misfit else Normalization.from_tensors(tensors)


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a weights file under its stored name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def file_tensors(file: Imported) -> tuple[FileTensor, ...]:
    """List the tensors of a weights file under its own names and in its own shapes."""
    sources = {source.name: source for source in file.sources}
    return tuple(
        FileTensor(name, source.shape, source.dtype, _nbytes(source))
        for name, source in sorted(sources.items())
    )


def _nbytes(source: TensorSource) -> int:
    """Return the bytes of a tensor as stored; 0 for a dtype whose name NumPy does not know."""
    sizes = {"bfloat16": 2}
    try:
        size = sizes.get(source.dtype) or np.dtype(source.dtype).itemsize
    except TypeError:
        size = 0
    return math.prod(source.shape) * size
