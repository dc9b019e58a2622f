"""From a config, or a weights file that carries one, to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli import config as configs
from lstm_cli.api.fit import check_memory, check_weights
from lstm_cli.api.model import Model
from lstm_cli.config import Config
from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import Array, Engine, array_dtype
from lstm_cli.errors import WeightsError
from lstm_cli.formats import native
from lstm_cli.network.initialisers import initialise
from lstm_cli.network.network import Network


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
        A YAML file, a weights file that carries its config, or the config as a mapping.
    device, engine
        What computes; ``auto`` takes the fastest that can be used.
    dtype
        ``float32`` or ``float64``; what else there is depends on the engine.
    threads
        At most so many; None: what the cgroup grants, else the physical cores.
    weights
        A native weights file, or tensors by native name; wins over the config's own. Without
        any, weights are drawn as `model.init` says.
    seed
        Overrides every seed in the config.

    Raises
    ------
    ConfigError, WeightsError, DeviceError, UsageError
        Each names all that is wrong.
    """
    resolved = read_config(config, seed=seed)
    if weights is None and _carries_config(config):
        weights = config
    return assemble(resolved, create_engine(engine, device, dtype, threads), weights)


def load(
    path: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    engine: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> Model:
    """A model from a weights file, with the config it carries or the one given.

    Raises
    ------
    WeightsError
        The file cannot be read, carries no config and none is given, or does not fit it.
    """
    resolved = config_of_weights(path) if config is None else read_config(config)
    return assemble(resolved, create_engine(engine, device, dtype, threads), path)


def _carries_config(config: str | Path | Mapping[str, Any]) -> bool:
    return not isinstance(config, Mapping) and native.is_native(config)


def read_config(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> Config:
    """The config of a YAML file, a mapping, or a weights file that carries one."""
    if isinstance(config, Mapping):
        return configs.from_mapping(config, overrides, seed)
    if native.is_native(config):
        return config_of_weights(config, overrides, seed)
    return configs.load(config, overrides, seed)


def config_of_weights(
    path: str | Path, overrides: Sequence[str] = (), seed: int | None = None
) -> Config:
    """The config that a weights file carries; WeightsError if it carries none."""
    text = native.read(path).config
    if text is None:
        raise WeightsError(
            f"{path} carries no config",
            expected="a config in the file's metadata, as lstm-cli writes it",
            hint="name a YAML config, and the weights with --weights",
        )
    return configs.from_text(text, str(path), Path(path).parent, overrides, seed)


def assemble(
    config: Config, engine: Engine, weights: str | Path | Mapping[str, Any] | None = None
) -> Model:
    """A model from a resolved config and an engine; see `build`."""
    check_memory(config, engine)
    source = config.weights if weights is None else weights
    if source is None:
        drawn = initialise(config.specs, config.init_scheme, config.init_seed, array_dtype(engine))
        name = f"random, seed {config.init_seed}"
        return Model(Network(config.specs, drawn, engine), config, name)
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(value) for name, value in source.items()}
        return Model(_network(config, arrays, engine, None), config, "given")
    file = native.read(source, config.where("weights") if weights is None else None)
    network = _network(config, file.tensors, engine, str(source))
    return Model(network, config, str(source), file.sha256)


def _network(
    config: Config, tensors: Mapping[str, Array], engine: Engine, file: str | None
) -> Network:
    check_weights(config, tensors, file)
    return Network(config.specs, tensors, engine)
