"""What each class counts for in the loss: as given, by label, or balanced by how rare it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_cli.config import Config
from lstm_cli.engines.types import Array
from lstm_cli.errors import ConfigError, DataError, counted, nearest

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData


def class_weights(
    config: Config, units: int, dataset: SequenceData, numbers: Array | None, per_step: bool
) -> list[float] | None:
    """A weight for each class, or None if all count alike.

    Parameters
    ----------
    units
        Of the last layer.
    numbers
        The sequences that are learned from; None: all.

    Raises
    ------
    ConfigError
        A class that there is not, or weights for units that are no classes.
    DataError
        A class that is to be balanced does not occur.
    """
    if config.train is None or config.train.class_weights != "balanced":
        return given_weights(config, units, dataset.class_labels)
    from lstm_cli.data import class_counts

    classes = _classes(config, units)
    return _balanced(class_counts(dataset, numbers, classes=classes, per_step=per_step), dataset)


def given_weights(
    config: Config, units: int, labels: Sequence[str] | None = None
) -> list[float] | None:
    """A weight for each class as the config lists or names them; None if it does not.

    Raises
    ------
    ConfigError
        A class that there is not, too few weights, or ``balanced``, which needs the data.
    """
    given = None if config.train is None else config.train.class_weights
    if given is None:
        return None
    if given == "balanced":
        raise ConfigError(
            "class_weights: balanced needs all the data, of which only a batch is seen here",
            expected="a list with a weight for each class, or {class: weight}",
        )
    classes = _classes(config, units)
    if isinstance(given, Mapping):
        return _named(config, given, classes, labels)
    return _listed(config, [float(weight) for weight in given], classes)


def _classes(config: Config, units: int) -> int:
    """How many classes the last layer tells apart: two if it is one sigmoid unit."""
    if config.train is None or config.train.loss != "binary_cross_entropy":
        return units
    if units > 1:
        raise ConfigError(
            "train.class_weights needs classes that exclude each other",
            expected="one sigmoid unit, or loss: cross_entropy",
            found=f"{units} sigmoid units",
            where=config.where("train", "class_weights"),
            hint="remove train.class_weights",
        )
    return 2


def _listed(config: Config, given: list[float], classes: int) -> list[float]:
    if len(given) != classes:
        raise ConfigError(
            "train.class_weights does not weight every class",
            expected=f"{counted(classes, 'weight')}",
            found=str(len(given)),
            where=config.where("train", "class_weights"),
        )
    return given


def _named(
    config: Config,
    given: Mapping[str | int, float],
    classes: int,
    labels: Sequence[str] | None,
) -> list[float]:
    """Weights by class index or label; a class that is not named counts 1."""
    weights = [1.0] * classes
    names = {label: k for k, label in enumerate((labels or ())[:classes])}
    names |= {str(k): k for k in range(classes) if str(k) not in names}
    for name, weight in given.items():
        if str(name) not in names:
            guess = nearest(str(name), names)
            raise ConfigError(
                f"train.class_weights names a class that there is not: {name}",
                expected=", ".join(names),
                where=config.where("train", "class_weights", name),
                hint=f"did you mean `{guess}`?" if guess else None,
            )
        weights[names[str(name)]] = float(weight)
    return weights


def _balanced(counts: Array, dataset: SequenceData) -> list[float]:
    """Every class together counts the same, and the mean of all rows stays 1."""
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        raise DataError(
            f"class {missing[0]} does not occur in what is learned from, so it has no balance",
            found=", ".join(f"{n} of class {k}" for k, n in enumerate(counts.tolist())),
            where=dataset.input_names,
            hint="train.class_weights also takes a weight for each class",
        )
    weights: list[float] = (counts.sum() / (len(counts) * counts)).tolist()
    return weights
