"""Config, weights and data side by side: all shapes, and every misfit at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstm_cli.api.fit import data_problems, weights_problems
from lstm_cli.api.shapes import LayerShapes, network_shapes
from lstm_cli.api.weights_files import (
    read_weights,
    standing_notes,
    stored_places,
    tensors_for,
)
from lstm_cli.config import Config
from lstm_cli.data import DataOptions, open_data
from lstm_cli.errors import DataError, LstmCliError, Problem, WeightsError, counted
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.network.normalization import STORED, Normalization
from lstm_cli.network.weights import merge_biases


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes
    ----------
    name, config
        The config's name and file.
    weights, data, data_paths
        The weights file that was compared, what the data holds and where it is, if any.
    layers
        Shapes of every layer.
    parameters, bytes
        Of the whole network.
    weights_problems, data_problems
        What does not fit.
    notes
        What had to be assumed because the weights file does not say it.
    format
        Of the weights file, in words; None for a native one.
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
        """The misfits as an error: of the weights if they have any, else of the data."""
        problems = (*self.weights_problems, *self.data_problems)
        if not problems:
            return None
        sides = [self.weights] if self.weights_problems else []
        sides += [", ".join(self.data_paths)] if self.data_problems else []
        count = counted(len(problems), "misfit")
        headline = f"{count} between {self.config} and {' and '.join(filter(None, sides))}"
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
    """Shapes of a config, compared with a weights file and data where they are given.

    Parameters
    ----------
    reading
        How to read a weights file that is yet to be read.

    Raises
    ------
    WeightsError, DataError
        A file cannot be read at all; a misfit is no exception but part of the result.
    """
    found, wrong_weights, file, scaling = None, [], None, None
    if weights is not None:
        file = (
            weights
            if isinstance(weights, Imported)
            else read_weights(weights, reading, layers=config.specs)
        )
        tensors = tensors_for(config.specs, file)
        wrong_weights = weights_problems(
            config, tensors, str(file.path), named=weights is config.weights
        )
        merged = merge_biases(config.specs, tensors)
        if not any(name in problem.what for problem in wrong_weights for name in STORED):
            scaling = Normalization.stored(tensors)
        found = {name: value.shape for name, value in merged.items()}
    description, steps, wrong_data = None, config.model.steps, []
    if data:
        with open_data(data, options) as dataset:
            wrong_data = data_problems(config, dataset)
            description = dataset.description
            batch, steps = min(batch, dataset.count), dataset.max_steps
    places = {} if file is None else stored_places(config.specs, file)
    layers = network_shapes(config, itemsize, batch=batch, steps=steps, found=found, places=places)
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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a weights file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def stored_tensors(file: Imported) -> tuple[StoredTensor, ...]:
    """The tensors of a weights file under its own names and in its own shapes."""
    whole = {place.name: place for place in file.sources}
    return tuple(
        StoredTensor(name, place.shape, place.dtype, _nbytes(place))
        for name, place in sorted(whole.items())
    )


def _nbytes(place: TensorSource) -> int:
    """Bytes as stored; 0 for a dtype that NumPy does not know by this name."""
    sizes = {"bfloat16": 2}
    try:
        size = sizes.get(place.dtype) or np.dtype(place.dtype).itemsize
    except TypeError:
        size = 0
    return math.prod(place.shape) * size
