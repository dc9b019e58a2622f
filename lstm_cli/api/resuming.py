"""The config as a run keeps it, and whether a run that is resumed is still the same one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lstm_cli import config as configs
from lstm_cli.config import Config
from lstm_cli.config.schema import TrainSection
from lstm_cli.errors import ConfigError, Problem, WeightsError, counted
from lstm_cli.formats.model import Imported
from lstm_cli.formats.safety import read_whole

if TYPE_CHECKING:
    from lstm_cli.api.run_folder import Stored

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of a config."""
HINT = "--output names another folder for a run with other settings"


def resolved_for(config: Config, folder: Path) -> Config:
    """The config as a run writes it: paths seen from the run's folder.

    Raises
    ------
    ConfigError
        It has no section `train`.
    """
    train = train_section(config).model_dump(exclude_none=True)
    if isinstance(config.validation, str):
        train["validation"] = _seen_from(folder, config.validation)
    return config.with_train(train)


def train_section(config: Config) -> TrainSection:
    """The config's section `train`.

    Raises
    ------
    ConfigError
        It has none.
    """
    if config.train is None:
        raise ConfigError(
            f"{config.source} does not say how to train",
            expected="a section train, with at least a loss",
            where=config.source,
            hint="--set train.loss=cross_entropy, or binary_cross_entropy, mse, mae, huber",
        )
    return config.train


def _seen_from(folder: Path, data: str) -> str:
    """``FILE.h5:/group`` relative to a folder, links resolved; absolute on another drive."""
    from lstm_cli.data.files import split_argument

    file, group = split_argument(data)
    try:
        # From a folder that is a link, .. leads to where it points.
        file = os.path.relpath(os.path.realpath(file), os.path.realpath(folder))
    except ValueError:
        file = os.path.abspath(file)
    return file if group == "/" else f"{file}:{group}"


def check_same_config(stored: Stored, config: Config, text: str, folder: Path) -> tuple[str, ...]:
    """Raise ConfigError naming every key that is not as it was; more epochs are allowed.

    Parameters
    ----------
    config
        As it was given now, to say where a value comes from.
    text
        The same as the run writes it.

    Returns
    -------
    What a user should know of more epochs.
    """
    name = str(folder / "config.yaml")
    old = dict(_flat(_plain(configs.from_text(stored.config, name, folder))))
    new = dict(_flat(_plain(configs.from_text(text, name, folder))))
    problems = [
        _difference(config, path, old.get(path, "nothing"), new.get(path, "nothing"))
        for path in dict.fromkeys((*old, *new))
        if old.get(path) != new.get(path) and not _more_epochs(path, old, new)
    ]
    if problems:
        raise ConfigError(problems, headline=_headline(folder, problems))
    length = ("train", "schedule", "epochs")
    if old != new and old.get(length, 0) is None:
        return (
            "the cosine of the learning rate now ends with the new last epoch: the run differs "
            "from one that had so many epochs from the start",
        )
    return ()


def check_same_numbers(
    stored: Stored, folder: Path, *, dtype: str, weights: str | Path | Imported | None
) -> None:
    """Raise ConfigError or WeightsError if the run was begun in another dtype or from others.

    Parameters
    ----------
    weights
        A file that was named to begin from, or was read already; None if there is none.
    """
    if stored.facts.get("dtype") != dtype:
        was = str(stored.facts.get("dtype"))
        problem = Problem("dtype is not the run's", was, dtype, hint=f"--dtype {was}")
        raise ConfigError([problem], headline=_headline(folder, [problem]))
    now = _sha256(weights)
    if now is None or now == (was := str(stored.facts.get("weights_sha256"))):
        return
    name = weights.path if isinstance(weights, Imported) else weights
    raise WeightsError(
        f"{name} is not what the run in {folder} began with",
        expected=f"sha256 {was[:16]}…",
        found=f"sha256 {now[:16]}…",
        hint=HINT,
    )


def _sha256(weights: str | Path | Imported | None) -> str | None:
    """Of a weights file; None where there is none any more."""
    if isinstance(weights, Imported):
        return weights.sha256
    if weights is None or not Path(weights).is_file():
        return None
    return hashlib.sha256(read_whole(Path(weights))).hexdigest()


def _headline(folder: Path, problems: list[Problem]) -> str:
    count = counted(len(problems), "setting")
    return f"{count} not as in the run in {folder}, which can only go on as it began"


def _difference(config: Config, path: KeyPath, old: Any, new: Any) -> Problem:
    name = ".".join(map(str, path))
    where = config.where(*path)
    what = f"{name} was {old}, and is now {new}"
    if path == ("train", "epochs"):
        return Problem(what, where=(where,), hint="more epochs are allowed, fewer are not")
    return Problem(what, where=(where,), hint=HINT)


def _more_epochs(path: KeyPath, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    return path == ("train", "epochs") and bool(new[path] > old[path])


def _plain(config: Config) -> dict[str, Any]:
    train = None if config.train is None else config.train.model_dump()
    return {"model": config.model.model_dump(), "data": config.data.model_dump(), "train": train}


def _flat(value: Any, path: KeyPath = ()) -> Iterator[tuple[Any, Any]]:
    """Every value that holds no others, by its path."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _flat(inner, (*path, key))
