"""A config, from a file, a text or a mapping, checked whole and resolved to layers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import ValidationError

from lstm_cli.config.checks import PartialConfig, check_config
from lstm_cli.config.overrides import apply_overrides, apply_seed
from lstm_cli.config.problems import ProblemReport, SourceLines, describe_value
from lstm_cli.config.resolve import check_parameter_count, resolve
from lstm_cli.config.schema import (
    LAYERS,
    ConfigDocument,
    DataSection,
    Layer,
    ModelSection,
    Section,
    TrainSection,
)
from lstm_cli.config.validation_errors import report_validation_errors, value_at
from lstm_cli.config.yaml import MAX_DEPTH, MAX_VALUES, Parsed, dump, parse, read_text
from lstm_cli.engines.types import LayerSpec
from lstm_cli.errors import ConfigError

Sound = TypeVar("Sound", bound=Section)
EXAMPLE = "the smallest config: model: {input_size: 12, layers: [{type: lstm, hidden_size: 100}]}"


@dataclass(frozen=True)
class Config:
    """A network and all that is said about its data and training, checked.

    Two configs are equal if they describe the same thing, wherever they were written and
    whatever weights they name.

    Attributes
    ----------
    name
        Stem of the file: what the model is called.
    source
        File name as given, for messages.
    model, data, train
        The sections as written, with defaults; `train` is None if there is none.
    specs
        The layers, resolved: sizes, cells, activations per direction.
    weights
        Path of the weights as seen from the working directory.
    folder
        What relative paths of the config begin from; None is the working directory. Those of
        ``--set`` begin there anyway.
    """

    name: str
    source: str = field(compare=False)
    model: ModelSection
    data: DataSection
    train: TrainSection | None
    specs: tuple[LayerSpec, ...]
    weights: Path | None = field(compare=False)
    folder: Path | None = field(compare=False)
    places: SourceLines = field(compare=False, repr=False)

    @property
    def init_scheme(self) -> str:
        """Name of the initialisation of weights that are not loaded."""
        return self.model.init.scheme

    @property
    def init_seed(self) -> int:
        """Seed of that initialisation."""
        return self.model.init.seed

    @property
    def validation(self) -> float | str | None:
        """``train.validation``: a share, or ``FILE.h5:/group`` as seen from the working directory.

        One from the config begins at its folder, one from ``--set`` where it was typed.
        """
        found = None if self.train is None else self.train.validation
        if not isinstance(found, str):
            return found
        typed = self.places.is_typed(("train", "validation"))
        file, colon, group = found.rpartition(":/")
        if len(file) < 2:  # no group, or the colon of a drive
            file, colon, group = found, "", ""
        return f"{relative_to_cwd(None if typed else self.folder, file)}{colon}{group}"

    def where(self, *path: str | int) -> str:
        """Where a value, or its nearest ancestor that is written, stands.

        Returns
        -------
        ``configs/mine.yaml line 9``, ``--set model.steps=10``, or ``config`` for a dict.
        """
        return self.places.where(path)

    def to_yaml(self) -> str:
        """The config as resolved, without `weights`; `from_text` reads it back as an equal one."""
        return dump({name: values for name, values in self._written().items() if values})

    def with_train(self, train: Mapping[str, Any]) -> Config:
        """The same network, with another section `train`, checked against it.

        Raises
        ------
        ConfigError
            With every problem at once.
        """
        changed = from_mapping({**self._written(), "train": train})
        return replace(self, train=changed.train, places=changed.places)

    def with_biases(self, indices: Collection[int], bias: bool = True) -> Config:
        """This network, with biases in these layers, or without."""
        layers = [
            layer.model_copy(update={"bias": bias}) if k in indices else layer
            for k, layer in enumerate(self.model.layers)
        ]
        model = self.model.model_copy(update={"layers": layers})
        return replace(self, model=model, specs=resolve(model))

    def _written(self) -> dict[str, Any]:
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
        ``model.layers[0].units``. Relative paths begin from the working directory.
    seed
        Replaces every seed of the config.

    Raises
    ------
    ConfigError
        With every problem at once.
    """
    path = Path(path)
    return from_text(read_text(path), str(path), path.parent, overrides, seed)


def relative_to_cwd(folder: Path | None, path: str) -> str:
    """A path relative to a folder as seen from the working directory, without detours.

    ``configs/../data`` becomes ``data``; where a link makes that another folder, what it leads to.
    """
    joined = str(path) if folder is None else os.path.join(folder, path)
    plain = os.path.normpath(joined)
    try:
        real = os.path.realpath(joined)
        if os.path.realpath(plain) == real:
            return plain
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
    """Read a config from YAML text, such as a weights file carries.

    Parameters
    ----------
    name
        What errors call the text: a file's name.
    folder
        What relative paths begin from; None is the working directory.

    Raises
    ------
    ConfigError
        With every problem at once.
    """
    return _assemble(parse(text, name), Path(name).stem, name, folder, overrides, seed)


def from_mapping(
    mapping: Mapping[str, Any],
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    name: str = "config",
) -> Config:
    """Read a config from a mapping, as the Python interface takes.

    Parameters
    ----------
    name
        What errors call the mapping: the file it was made from.

    Raises
    ------
    ConfigError
        With every problem at once.
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
    specs = resolve(document.model)
    check_parameter_count(specs, report)
    _raise_if_any(report)
    weights = None
    if document.weights is not None:
        begin = None if report.places.is_typed(("weights",)) else folder
        weights = Path(relative_to_cwd(begin, document.weights))
    return Config(
        name=name,
        source=source,
        model=document.model,
        data=document.data,
        train=document.train,
        specs=specs,
        weights=weights,
        folder=folder,
        places=report.places,
    )


def _sections(value: Any, source: str) -> dict[Any, Any]:
    """The top level; a section with nothing in it counts as left out."""
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
    """The document, or an error with all that the schema and the structure have against it."""
    try:
        document = ConfigDocument.model_validate(raw)
    except ValidationError as error:
        report_validation_errors(error, raw, report)
        check_config(_salvage(raw), report)
        raise ConfigError(report.problems) from None
    model = document.model
    check_config(PartialConfig(model.layers, model.steps is not None, document.train), report)
    _raise_if_any(report)
    return document


def _salvage(raw: dict[Any, Any]) -> PartialConfig:
    """What of a faulty document is sound enough for its structure to be checked."""
    layers = value_at(raw, ("model", "layers"))
    return PartialConfig(
        [_sound_layer(layer) for layer in layers] if isinstance(layers, list) else [],
        value_at(raw, ("model", "steps")) is not None,
        _sound(TrainSection, raw.get("train")),
    )


def _sound_layer(layer: Any) -> Layer | None:
    kind = layer.get("type") if isinstance(layer, dict) else None
    schema = LAYERS.get(kind) if isinstance(kind, str) else None
    return None if schema is None else _sound(schema, layer)


def _sound(schema: type[Sound], value: Any) -> Sound | None:
    try:
        return schema.model_validate(value)
    except ValidationError:
        return None


def _raise_if_any(report: ProblemReport) -> None:
    if report.problems:
        raise ConfigError(report.problems)


def plain(value: Any) -> Any:
    """The value with mappings as dict, tuples and arrays as list, paths as text.

    Raises
    ------
    ConfigError
        Nested too deeply, as what contains itself is, or too many values.
    """
    return _plain(value, 0, count())


def _plain(value: Any, depth: int, values: count[int]) -> Any:
    if next(values) > MAX_VALUES:
        raise ConfigError(
            "config holds too many values",
            expected=f"at most {MAX_VALUES:,}",
            hint="look for a dict that stands in many places",
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
    # NumPy's numbers and arrays know how to become Python's.
    listed = None if isinstance(value, type) else getattr(value, "tolist", None)
    return _plain(listed(), depth + 1, values) if callable(listed) else value


def _key(key: Any) -> str | int:
    """A key as YAML would give it: a whole number, else text."""
    number = key.item() if hasattr(key, "item") and not isinstance(key, type) else key
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return str(key)
