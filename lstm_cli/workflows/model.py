"""Class `Model` of the Python interface, and the functions that make one: `build`, `load`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lstm_cli import config as configs
from lstm_cli.config import Config
from lstm_cli.engines.protocols import Engine, array_dtype
from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import Array
from lstm_cli.errors import (
    ConfigError,
    DeviceMemoryError,
    UsageError,
    counted,
    described,
    nearest,
)
from lstm_cli.formats import unsupported_files
from lstm_cli.formats.interchange import Imported, ReadOptions, TmvaOrder, parse_name_patterns
from lstm_cli.network.initializers import initialize
from lstm_cli.network.network import Network
from lstm_cli.network.results import Result
from lstm_cli.network.state import StateCarry, as_array
from lstm_cli.network.stream import Stream
from lstm_cli.network.weights import make_immutable
from lstm_cli.workflows.shape_check import layer_title, misfit_describer
from lstm_cli.workflows.weights_files import (
    config_of,
    is_weights,
    read_weights,
    renumbered,
    standing_notes,
)

CONFIG = "a path, or the config as a mapping"
"""Expected value of an argument `config`, for messages."""
CONFIG_HINT = "name a config of its layers: lstm_cli.load(path, config=...)"


class Model:
    """A network ready to run; `lstm_cli.build` and `lstm_cli.load` make it.

    Attributes
    ----------
    network
        Layers, weights and engine.
    config
        Config that the network was built from.
    weights_name
        Source of the weights: a file's name, ``given``, or ``random, seed 0``.
    notes
        Assumptions about options that the weights file does not state, and parts of the file
        that were left out because they change no output.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        weights_name: str,
        file_sha256: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        checked_kind(network, Network, "network", "what lstm_cli.build and load make")
        checked_kind(config, Config, "config", "what lstm_cli.build and load make")
        self.network = network
        self.config = config
        self.weights_name = weights_name
        self.notes = notes
        self._file_sha256 = file_sha256
        self._carry = StateCarry(network.recurrent, network.engine.to_host)

    def __repr__(self) -> str:
        kinds = " → ".join(spec.kind for spec in self.network.layers)
        count = f"{counted(self.network.parameter_count, 'parameter', grouped=True)}"
        return f"<Model {self.config.name}: {kinds}, {count}, weights {self.weights_name}>"

    @property
    def weights(self) -> Mapping[str, Array]:
        """Tensors by native name, with the normalization of the inputs; read-only."""
        return self.network.tensors

    @property
    def weights_are_random(self) -> bool:
        """True if the weights were drawn at random, neither read from a file nor given."""
        return self.weights_name.startswith("random")

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file; without a file, SHA-256 of names and values."""
        if self._file_sha256 is not None:
            return self._file_sha256
        digest = sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()

    @property
    def stateful(self) -> bool:
        """True if any layer continues from one batch to the next."""
        return self._carry.active

    @property
    def carries_state(self) -> bool:
        """True if a batch ran since the last `reset_state`; the next batch continues its states."""
        return self._carry.has_states

    def run(
        self,
        x: Any,
        lengths: Any = None,
        state: Sequence[Any] | None = None,
        *,
        keep: bool = False,
    ) -> Result:
        """Forward pass over a batch.

        Parameters
        ----------
        x
            Sequences (N, T, D). Values past a sequence's length do not matter.
        lengths
            (N,) valid steps of each sequence; None: all T.
        state
            Initial states, as `Result.state` gives them. None: zeros; a stateful layer starts
            from the final states of the batch before.
        keep
            Keep every gate and state of every step in `Result.kept`.

        Raises
        ------
        DataError
            Shapes do not fit the network.
        """
        keep = _checked_flag(keep, "keep")
        start = state
        if self.stateful:
            x, lengths = self.network.check_arrays(x, lengths)
            start = self._carry.start(state, x.shape[0])
        result = self.network.run(x, lengths, start, keep=keep)
        if self.stateful:
            self._carry.store(result.state)
        return result

    def stream(self, batch: int = 1) -> Stream:
        """The network step by step, as inputs come; see `lstm_cli.network.stream.Stream`.

        Parameters
        ----------
        batch
            Number of sequences that run side by side.

        Raises
        ------
        ConfigError
            A layer needs steps that are yet to come.
        """
        return Stream(self.network, batch)

    def reset_state(self) -> None:
        """Make stateful layers start from zeros again, as at the beginning of a file."""
        self._carry.reset()

    def save(self, path: str | Path) -> None:
        """Write the weights as a native file that carries the config.

        Raises
        ------
        LstmCliError
            The file cannot be written.
        """
        from lstm_cli.formats import native

        _checked_path(path, "path")
        native.write(path, self.weights, self.config.to_yaml())


WeightsSource: TypeAlias = str | Path | Mapping[str, Any] | Imported
"""The path of a weights file, imported weights, or tensors by native name."""


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
    """Build a model from a config.

    Parameters
    ----------
    config
        A YAML file, a weights file that describes its layers, or the config as a mapping.
    device, engine
        Device and engine that compute; ``auto`` takes the fastest usable one.
    dtype
        ``float32`` or ``float64``, as text or as NumPy's type; engines may offer more.
    threads
        Largest number of threads, 1 to 1,024; None: the cgroup's limit, else the physical cores.
    weights
        A weights file of any format, or tensors by native name; overrides the weights that the
        config names. Without weights, `model.init` initializes them.
    seed
        Overrides every seed in the config.

    Raises
    ------
    ConfigError, WeightsError, DeviceError, UsageError
        A config, weights, device or argument is wrong; the error lists every problem.
    """
    weights = _checked_weights(weights)
    chosen_engine = create_engine(engine, device, dtype, threads)
    source = read_if_weights(_checked_config(config))
    resolved = read_config(source, seed=_checked_seed(seed))
    imported = source if isinstance(source, Imported) else None
    return assemble(resolved, chosen_engine, imported if weights is None else weights)


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
    """Build a model from a weights file of any format.

    Without `config`, the file's own config is used. `Model.notes` lists the assumptions about
    options that the file does not state.

    Parameters
    ----------
    config
        Config for a file that does not describe its layers completely.
    format
        ``native``, ``pytorch``, ``keras``, ``onnx`` or ``tmva``; None: detected from the content.
    prefix
        Read only the tensors below this prefix of a state dict's names.
    tmva_order
        Read the elements of an ambiguous TMVA file by their ``slots`` or by their ``labels``.
    only, ignore
        Patterns of a state dict's names, ``"lstm.*,fc.*"`` or a sequence of them. Take only the
        tensors that `only` matches, and none that `ignore` matches. Names are the stored ones,
        with any prefix.

    Raises
    ------
    WeightsError
        The file cannot be read or does not fit the config, or there is no config.
    """
    options = ReadOptions(
        _checked_text(format, "format"),
        _checked_text(prefix, "prefix"),
        _checked_text(tmva_order, "tmva_order", ("slots", "labels")),
        only=parse_name_patterns(only, "only"),
        ignore=parse_name_patterns(ignore, "ignore"),
    )
    chosen_engine = create_engine(engine, device, dtype, threads)
    path = _checked_path(path, "path", "the path of a weights file")
    config = _checked_config(config, optional=True)
    resolved = None if config is None else read_config(config)
    imported = read_weights(path, options, layers=None if resolved is None else resolved.specs)
    if resolved is None:
        resolved = config_of(imported, hint=CONFIG_HINT)
    return assemble(resolved, chosen_engine, imported)


def read_if_weights(
    config: str | Path | Mapping[str, Any] | Imported, options: ReadOptions | None = None
) -> str | Path | Mapping[str, Any] | Imported:
    """Read a config argument if it is a weights file, else return it unchanged.

    The caller shares the result between `read_config` and `assemble`: the file is read once.
    """
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
    """Read the config of a YAML file, a mapping, or a weights file that describes its layers."""
    config = read_if_weights(config)
    if isinstance(config, Imported):
        return config_of(config, overrides, seed)
    if isinstance(config, Mapping):
        return configs.from_mapping(config, overrides, seed)
    return configs.load(config, overrides, seed)


def assemble(
    config: Config,
    engine: Engine,
    weights: WeightsSource | None = None,
    options: ReadOptions | None = None,
) -> Model:
    """Build a model from a resolved config and an engine; see `build`.

    Parameters
    ----------
    options
        Options for reading, if `weights` is the path of a file.
    """
    check_memory(config, engine)
    source = config.weights if weights is None else weights
    if source is None:
        random = initialize(config.specs, config.init_scheme, config.init_seed, array_dtype(engine))
        make_immutable(random)
        name = f"random, seed {config.init_seed}"
        return Model(Network(config.specs, random, engine), config, name)
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(value) for name, value in source.items()}
        describe = misfit_describer(config, None)
        return Model(Network(config.specs, arrays, engine, describe), config, "given")
    if not isinstance(source, Imported):
        named_at = config.where("weights") if weights is None else None
        source = read_weights(source, options, named_at, config.specs)
    describe = misfit_describer(config, str(source.path), in_config=weights is None)
    file = renumbered(source, config.specs)
    network = Network(config.specs, file.tensors, engine, describe)
    network.zero_states = file.zero_states
    notes = standing_notes(source, config)
    return Model(network, config, str(source.path), source.sha256, notes)


def check_memory(config: Config, engine: Engine) -> None:
    """Check that the weights alone fit the memory of this machine and its GPU.

    Raises
    ------
    ConfigError
        The memory of this machine is too small.
    DeviceMemoryError
        The memory of the GPU is too small.
    """
    size = np.dtype(array_dtype(engine)).itemsize
    counts = {
        spec.index: sum(math.prod(parameter.shape) for parameter in spec.parameters().values())
        for spec in config.specs
    }
    # Up to three copies exist: drawn or read, cast, and prepared by the engine.
    needed, available = 3 * size * sum(counts.values()), _machine_bytes()
    _check_gpu_memory(engine, needed * 2 // 3)  # a GPU holds two copies: plain and packed
    if available is None or needed <= available:
        return
    largest = config.specs[max(counts, key=lambda k: counts[k])]
    raise ConfigError(
        f"the weights of this network need {needed / 1e9:.0f} GB while it is built",
        expected=f"less than the {available / 1e9:.0f} GB of this machine",
        found=f"{counted(counts[largest.index], 'parameter', grouped=True)} in "
        f"layer {largest.index} ({layer_title(largest)})",
        where=config.where("model", "layers", largest.index),
        hint=f"fewer units in layer {largest.index}",
    )


def _check_gpu_memory(engine: Engine, needed: int) -> None:
    if engine.accelerator is None:
        return
    free, total = engine.accelerator.memory()
    if needed > total:
        raise DeviceMemoryError(
            needed,
            free,
            total,
            purpose="this network's weights alone",
            hint="fewer units, or --device cpu",
        )


def _machine_bytes() -> int | None:
    """Bytes of memory of this machine; None if the system does not report them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def checked_kind(value: Any, kind: type, name: str, expected: str) -> None:
    """Raise UsageError unless an argument is an instance of a class."""
    if not isinstance(value, kind):
        raise _wrong(name, expected, value)


def _checked_path(value: Any, name: str, expected: str = "a path") -> Any:
    """Return a path unchanged, if a file can have that name."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise _wrong(name, expected, value)
    return value


def _checked_config(value: Any, *, optional: bool = False) -> Any:
    if (optional and value is None) or isinstance(value, Mapping | Imported):
        return value
    return _checked_path(value, "config", CONFIG + (", or None" if optional else ""))


def _checked_weights(value: Any) -> Any:
    if value is None or isinstance(value, Imported):
        return value
    if not isinstance(value, Mapping):
        return _checked_path(value, "weights", "a path, a mapping of names to arrays, or None")
    return {_tensor_name(key): _tensor(key, tensor) for key, tensor in value.items()}


def _tensor_name(key: Any) -> str:
    if not isinstance(key, str):
        raise _wrong("a name in weights", "a text such as layers.0.weight_ih", key)
    return key


def _tensor(key: str, tensor: Any) -> Array:
    array = as_array(tensor, key, "real numbers")
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise _wrong(f"weights[{key!r}]", "an array of real numbers", tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _checked_text(value: Any, name: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a text or None; the text is one of `choices` if there are any."""
    if value is None or (isinstance(value, str) and (not choices or value in choices)):
        return value
    guess = nearest(value, choices) if isinstance(value, str) else None
    expected = f"{', '.join(choices) or 'a text'}, or None"
    raise _wrong(name, expected, value, f"did you mean `{guess}`?" if guess else None)


def _checked_seed(value: Any) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and value >= 0:
        return int(value)
    raise _wrong("seed", "a whole number, at least 0, or None", value)


def _checked_flag(value: Any, name: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _wrong(name, "True or False", value)


def _wrong(name: str, expected: str, value: Any, hint: str | None = None) -> UsageError:
    what = f"{name} cannot be used as given"
    return UsageError(what, expected=expected, found=described(value), hint=hint)
