"""What a written file does not say of the network, and how to say it when the file is run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstm_cli.config import Config

TRAINING = ("dropout", "recurrent_dropout", "forget_bias")
"""Options of a layer that change no output."""


@dataclass(frozen=True)
class Gap:
    """An option of a layer that a file says nothing or something else about.

    Attributes
    ----------
    layer, number
        Index of the layer in the config that was written, and in the one that was read back.
    key, meant, read
        The option, its value in both.
    """

    layer: int
    number: int
    key: str
    meant: Any
    read: Any


def unsaid(config: Config, own: Config | None, name: Path, *, bare: bool) -> tuple[str, ...]:
    """Notes on what a file, read alone, would be taken for that it is not.

    Parameters
    ----------
    config
        Of the network that was written.
    own
        Of the file, read back without another; None if it tells none.
    name
        Of the file.
    bare
        The format holds tensors only, so that a config is often needed beside it.
    """
    found = None if own is None else gaps(config, own)
    if found is None and bare:
        return (f"to run {name}: lstm-cli run CONFIG DATA --weights {shlex.quote(str(name))}",)
    if not found:
        return ()
    if bare:
        return (f"to run {name} without a config: {' '.join(_setting(gap) for gap in found)}",)
    meant = ", ".join(f"layer {gap.layer} {gap.key}: {_text(gap.meant)}" for gap in found)
    read = ", ".join(f"{gap.key}: {_text(gap.read)}" for gap in found)
    return (f"{name} cannot say {meant}; read back, it has {read}",)


def _setting(gap: Gap) -> str:
    key = f"model.layers.{gap.number}.{gap.key}"
    return f"--set {shlex.quote(f'{key}={_text(gap.meant)}')}"


def gaps(config: Config, other: Config) -> list[Gap] | None:
    """Options that differ and change outputs; None if the layers are other ones."""
    mine, theirs = list(_layers(config)), list(_layers(other))
    if [layer["type"] for _, layer in mine] != [layer["type"] for _, layer in theirs]:
        return None
    return [
        Gap(k, number, key, value, read.get(key))
        for (k, layer), (number, read) in zip(mine, theirs, strict=True)
        for key, value in layer.items()
        if key not in TRAINING and value != read.get(key)
    ]


def _layers(config: Config) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every layer that computes, as it is written, with its index."""
    for index, layer in enumerate(config.model.layers):
        options = layer.model_dump()
        if "cell_activation" in options:
            options["cell_activation"] = options["cell_activation"] or options["activation"]
        if options["type"] != "dropout":
            yield index, options


def _text(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return value if isinstance(value, str) else json.dumps(value)
