"""A config from a file, a text or a mapping, checked and resolved to layers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import ValidationError

from lstm_cli.config.checks import PartialConfig, check_config, check_parameter_count
from lstm_cli.config.overrides import apply_overrides, apply_seed
from lstm_cli.config.problems import ProblemReport, SourceLines, describe_value
from lstm_cli.config.schema import (
    LAYERS,
    ConfigDocument,
    DataSection,
    LayerSection,
    ModelSection,
    Section,
    TrainSection,
)
from lstm_cli.config.validation_errors import report_validation_errors, value_at
from lstm_cli.config.yaml import MAX_DEPTH, MAX_VALUES, Parsed, dump, parse, read_text
from lstm_cli.engines.types import LayerSpec
from lstm_cli.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)
EXAMPLE = "the smallest config: model: {input_size: 12, layers: [{type: lstm, hidden_size: 100}]}"


@dataclass(frozen=True)
class Config:
    """A checked description of a network, its data and its training.

    Two configs are equal if their network, data and training are equal. Files and weights do not
    count.

    Attributes
    ----------
    name
        Name of the model: the file's name without its suffix.
    source
        File name as typed, for messages.
    model, data, train
        The sections with defaults; `train` is None without that section.
    specs
        The resolved layers: sizes, cells, activations per direction.
    weights
        Path of the weights file, relative to the working directory.
    folder
        The folder that relative paths of the config start from; None is the working directory.
        Paths in ``--set`` always start from the working directory.
    source_lines
        Source of each value: a line of the file, or an option.
    """

    name: str
    source: str = field(compare=False)
    model: ModelSection
    data: DataSection
    train: TrainSection | None
    specs: tuple[LayerSpec, ...]
    weights: Path | None = field(compare=False)
    folder: Path | None = field(compare=False)
    source_lines: SourceLines = field(compare=False, repr=False)

    @property
    def init_scheme(self) -> str:
        """Scheme that initializes weights which are not loaded."""
        return self.model.init.scheme

    @property
    def init_seed(self) -> int:
        """Seed of the initial weights."""
        return self.model.init.seed

    @property
    def validation(self) -> float | str | None:
        """``train.validation``: a share, or ``FILE.h5:/group`` as seen from the working directory.

        A path in the config starts from the config's folder, a path in ``--set`` from the working
        directory.
        """
        value = None if self.train is None else self.train.validation
        if not isinstance(value, str):
            return value
        overridden = self.source_lines.is_overridden(("train", "validation"))
        file, colon, group = value.rpartition(":/")
        if len(file) < 2:  # no group, or the colon of a drive
            file, colon, group = value, "", ""
        return f"{relative_to_cwd(None if overridden else self.folder, file)}{colon}{group}"

    def where(self, *path: str | int) -> str:
        """Source of a value, or of its nearest ancestor that has one.

        Returns
        -------
        ``configs/mine.yaml line 9``, ``--set model.steps=10``, or ``config`` for a dict.
        """
        return self.source_lines.where(path)

    def to_yaml(self) -> str:
        """The config with defaults but without `weights`; `from_text` reads an equal config."""
        return dump({name: values for name, values in self._mapping().items() if values})

    def with_train(self, train: Mapping[str, Any]) -> Config:
        """This config with another section `train`.

        Raises
        ------
        ConfigError
            The section does not fit the network; the error lists every problem.
        """
        changed = from_mapping({**self._mapping(), "train": train})
        return replace(self, train=changed.train, source_lines=changed.source_lines)

    def with_biases(self, indices: Collection[int], bias: bool = True) -> Config:
        """This config with, or without, biases in the layers of these indices."""
        layers = [
            layer.model_copy(update={"bias": bias}) if k in indices else layer
            for k, layer in enumerate(self.model.layers)
        ]
        model = self.model.model_copy(update={"layers": layers})
        return replace(self, model=model, specs=model.to_specs())

    def _mapping(self) -> dict[str, Any]:
        sections = {"model": self.model, "data": self.data, "train": self.train}
        return {
            name: section.model_dump(exclude_none=True)
            for name, section in sections.items()
            if section is not None
        }


def load(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Config:
    """Read a YAML config.

    Parameters
    ----------
    overrides
        ``dotted.key=value``, later ones win; a list element is ``model.layers.0.units``, or
        ``model.layers[0].units``. Relative paths start from the working directory.
    seed
        Replaces every seed of the config.

    Raises
    ------
    ConfigError
        The file is no valid config; the error lists every problem.
    """
    path = Path(path)
    return from_text(read_text(path), str(path), path.parent, overrides, seed)


def relative_to_cwd(folder: Path | None, path: str) -> str:
    """A path relative to a folder, as seen from the working directory.

    ``configs/../data`` becomes ``data``. Where a symbolic link makes that another folder, the
    link's target is returned.
    """
    joined = str(path) if folder is None else os.path.join(folder, path)
    normalized = os.path.normpath(joined)
    try:
        real = os.path.realpath(joined)
        if os.path.realpath(normalized) == real:
            return normalized
        return real if os.path.isabs(joined) else os.path.relpath(real)
    except (OSError, ValueError):
        return joined


def from_text(
    text: str,
    name: str,
    folder: Path | None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> Config:
    """Read a config from YAML text, such as the text in a weights file.

    Parameters
    ----------
    name
        Name of the text in messages: a file's name.
    folder
        The folder that relative paths start from; None is the working directory.

    Raises
    ------
    ConfigError
        The text is no valid config; the error lists every problem.
    """
    return _assemble(parse(text, name), Path(name).stem, name, folder, overrides, seed)


def from_mapping(
    mapping: Mapping[str, Any],
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    name: str = "config",
) -> Config:
    """Read a config from a mapping of Python's values.

    Parameters
    ----------
    name
        Name of the mapping in messages: the file it was read from.

    Raises
    ------
    ConfigError
        The mapping is no valid config; the error lists every problem.
    """
    return _assemble(Parsed(plain(mapping)), Path(name).stem, name, None, overrides, seed)


def _assemble(
    parsed: Parsed,
    name: str,
    source: str,
    folder: Path | None,
    overrides: Sequence[str],
    seed: int | None,
) -> Config:
    report = ProblemReport(SourceLines(source, parsed.lines))
    report.extend(parsed.problems)
    raw = _sections(parsed.value, source)
    apply_overrides(raw, overrides, report)
    if seed is not None:
        apply_seed(raw, seed, report)
    document = _validate(raw, report)
    specs = document.model.to_specs()
    check_parameter_count(specs, report)
    _raise_if_any(report)
    weights = None
    if document.weights is not None:
        start = None if report.source_lines.is_overridden(("weights",)) else folder
        weights = Path(relative_to_cwd(start, document.weights))
    return Config(
        name=name,
        source=source,
        model=document.model,
        data=document.data,
        train=document.train,
        specs=specs,
        weights=weights,
        folder=folder,
        source_lines=report.source_lines,
    )


def _sections(value: Any, source: str) -> dict[Any, Any]:
    """The sections of the top level, without empty ones."""
    if not isinstance(value, dict):
        raise ConfigError(
            f"{source} is empty" if value is None else f"{source} is no config",
            expected="a mapping with the key model",
            found=None if value is None else describe_value(value),
            where=source,
            hint=EXAMPLE,
        )
    return {key: section for key, section in value.items() if section is not None}


def _validate(raw: dict[Any, Any], report: ProblemReport) -> ConfigDocument:
    """Check schema and structure; one error lists the problems of both."""
    try:
        document = ConfigDocument.model_validate(raw)
    except ValidationError as error:
        report_validation_errors(error, raw, report)
        check_config(_valid_parts(raw), report)
        raise ConfigError(report.problems) from None
    model = document.model
    check_config(PartialConfig(model.layers, model.steps is not None, document.train), report)
    _raise_if_any(report)
    return document


def _valid_parts(raw: dict[Any, Any]) -> PartialConfig:
    """The parts of a faulty document whose structure can be checked."""
    layers = value_at(raw, ("model", "layers"))
    return PartialConfig(
        [_valid_layer(layer) for layer in layers] if isinstance(layers, list) else [],
        value_at(raw, ("model", "steps")) is not None,
        _valid(TrainSection, raw.get("train")),
    )


def _valid_layer(layer: Any) -> LayerSection | None:
    kind = layer.get("type") if isinstance(layer, dict) else None
    schema = LAYERS.get(kind) if isinstance(kind, str) else None
    return None if schema is None else _valid(schema, layer)


def _valid(schema: type[SectionT], value: Any) -> SectionT | None:
    try:
        return schema.model_validate(value)
    except ValidationError:
        return None


def _raise_if_any(report: ProblemReport) -> None:
    if report.problems:
        raise ConfigError(report.problems)


def plain(value: Any) -> Any:
    """A value with mappings as dict, tuples and arrays as list, paths as text.

    Raises
    ------
    ConfigError
        The value is nested too deeply (or contains itself), or has too many values.
    """
    return _plain(value, 0, count())


def _plain(value: Any, depth: int, values: count[int]) -> Any:
    if next(values) > MAX_VALUES:
        raise ConfigError(
            "config holds too many values",
            expected=f"at most {MAX_VALUES:,}",
            hint="look for a dict that is used many times",
        )
    if depth > MAX_DEPTH:
        raise ConfigError(
            "config is nested too deeply",
            expected=f"at most {MAX_DEPTH} levels",
            hint="look for a dict that contains itself",
        )
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1, values) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    # NumPy's numbers and arrays
    to_list = None if isinstance(value, type) else getattr(value, "tolist", None)
    return _plain(to_list(), depth + 1, values) if callable(to_list) else value


def _key(key: Any) -> str | int:
    number = key.item() if hasattr(key, "item") and not isinstance(key, type) else key
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return str(key)
