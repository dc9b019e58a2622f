"""From a config, or a weights file that carries one, to a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lstm_cli import config as configs
from lstm_cli.api.arguments import (
    checked_config,
    checked_path,
    checked_seed,
    checked_text,
    checked_weights,
)
from lstm_cli.api.fit import check_memory, check_weights
from lstm_cli.api.model import Model
from lstm_cli.api.weights_files import (
    config_of,
    is_weights,
    read_weights,
    standing_notes,
    tensors_for,
    zero_states_for,
)
from lstm_cli.config import Config
from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import Array, Engine, array_dtype
from lstm_cli.formats import unsupported_files
from lstm_cli.formats.interchange import Imported, ReadOptions, TmvaOrder, parse_name_patterns
from lstm_cli.network.initialisers import initialise
from lstm_cli.network.network import Network

CONFIG_HINT = "name a config of its layers: lstm_cli.load(path, config=...)"

Weights: TypeAlias = str | Path | Mapping[str, Any] | Imported
"""A weights file, one that was read already, or tensors by native name."""


def build(
    config: str | Path | Mapping[str, Any],
    *,
    device: str = "auto",
    engine: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Model:
    """A model from a config.

    Parameters
    ----------
    config
        A YAML file, a weights file that tells its layers, or the config as a mapping.
    device, engine
        What computes; ``auto`` takes the fastest that can be used.
    dtype
        ``float32`` or ``float64``; what else there is depends on the engine. NumPy's types too.
    threads
        1 to 1,024, at most so many; None: what the cgroup grants, else the physical cores.
    weights
        A weights file of any format, or tensors by native name; wins over the config's own.
        Without any, weights are drawn as `model.init` says.
    seed
        Overrides every seed in the config.

    Raises
    ------
    ConfigError, WeightsError, DeviceError, UsageError
        Each names all that is wrong.
    """
    weights = checked_weights(weights)
    made = create_engine(engine, device, dtype, threads)
    source = opened(checked_config(config))
    resolved = read_config(source, seed=checked_seed(seed))
    own = source if isinstance(source, Imported) else None
    return assemble(resolved, made, own if weights is None else weights)


def load(
    path: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    engine: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    format: str | None = None,
    prefix: str | None = None,
    tmva_order: TmvaOrder | None = None,
    only: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
) -> Model:
    """A model from a weights file of any format, with the config it carries or the one given.

    What had to be assumed because the file does not say it stands in `Model.notes`.

    Parameters
    ----------
    config
        What the layers are, where the file does not say it, or not all of it.
    format
        ``native``, ``pytorch``, ``keras``, ``onnx`` or ``tmva``; None: told by what it holds.
    prefix
        Take only what stands below this prefix of a state dict's names.
    tmva_order
        Whether the elements of an ambiguous TMVA file hold what their ``slots`` or their
        ``labels`` say.
    only, ignore
        Patterns of a state dict's names, ``"lstm.*,fc.*"`` or a sequence of them: take only the
        tensors that the first match, and none that the others match. Names are as stored,
        whatever the prefix.

    Raises
    ------
    WeightsError
        The file cannot be read, carries no config and none is given, or does not fit it.
    """
    options = ReadOptions(
        checked_text(format, "format"),
        checked_text(prefix, "prefix"),
        checked_text(tmva_order, "tmva_order", ("slots", "labels")),  # type: ignore[arg-type]
        only=parse_name_patterns(only, "only"),
        ignore=parse_name_patterns(ignore, "ignore"),
    )
    made = create_engine(engine, device, dtype, threads)
    path = checked_path(path, "path", "the path of a weights file")  # type: ignore[assignment]
    config = checked_config(config, optional=True)
    given = None if config is None else read_config(config)
    layers = None if given is None else given.specs
    imported = read_weights(path, options, layers=layers)
    resolved = config_of(imported, hint=CONFIG_HINT) if given is None else given
    return assemble(resolved, made, imported)


def opened(
    config: str | Path | Mapping[str, Any] | Imported, options: ReadOptions | None = None
) -> str | Path | Mapping[str, Any] | Imported:
    """What was given as a config; a weights file is read, for what follows to share."""
    if not isinstance(config, str | Path):
        return config
    unsupported_files.refuse_unsupported_file(config)
    if not is_weights(config):
        return config
    return read_weights(config, options)


def read_config(
    config: str | Path | Mapping[str, Any] | Imported,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> Config:
    """The config of a YAML file, a mapping, or a weights file that tells its layers."""
    config = opened(config)
    if isinstance(config, Imported):
        return config_of(config, overrides, seed)
    if isinstance(config, Mapping):
        return configs.from_mapping(config, overrides, seed)
    return configs.load(config, overrides, seed)


def assemble(
    config: Config,
    engine: Engine,
    weights: Weights | None = None,
    options: ReadOptions | None = None,
) -> Model:
    """A model from a resolved config and an engine; see `build`.

    Parameters
    ----------
    options
        How to read a weights file that is yet to be read.
    """
    check_memory(config, engine)
    source = config.weights if weights is None else weights
    if source is None:
        drawn = initialise(config.specs, config.init_scheme, config.init_seed, array_dtype(engine))
        name = f"random, seed {config.init_seed}"
        return Model(Network(config.specs, drawn, engine), config, name)
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(value) for name, value in source.items()}
        return Model(_network(config, arrays, engine, None), config, "given")
    if not isinstance(source, Imported):
        named_at = config.where("weights") if weights is None else None
        source = read_weights(source, options, named_at, config.specs)
    tensors = tensors_for(config.specs, source)
    network = _network(config, tensors, engine, str(source.path), named=weights is None)
    network.zero_states = zero_states_for(config.specs, source)
    notes = standing_notes(source, config)
    return Model(network, config, str(source.path), source.sha256, notes)


def _network(
    config: Config,
    tensors: Mapping[str, Array],
    engine: Engine,
    file: str | None,
    *,
    named: bool = False,
) -> Network:
    check_weights(config, tensors, file, named=named)
    return Network(config.specs, tensors, engine)
