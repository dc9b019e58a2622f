"""Overrides of a config by the command line: ``--set dotted.key=value`` and ``--seed``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lstm_cli.config.problems import KeyPath, ProblemReport, describe_value, format_path, shorten
from lstm_cli.config.yaml import parse
from lstm_cli.errors import ConfigError, quote

_ELEMENT = re.compile(r"\.?\[\s*(-?[0-9]+)\s*\]")
_UNDIVIDED = re.compile(r"\](?=[^.\[\s])")
_INDEX = re.compile(r"-?[0-9]{1,9}")

SEEDS: tuple[KeyPath, ...] = (("model", "init", "seed"), ("train", "seed"))


def apply_overrides(raw: dict[Any, Any], overrides: Sequence[str], report: ProblemReport) -> None:
    """Set every ``dotted.key=value`` in `raw`; later ones win. `report` gets the problems."""
    for text in overrides:
        option = f"--set {shorten(text)}"
        try:
            path, value = _split(text, option)
            _put(raw, path, value)
        except ConfigError as error:
            report.extend(replace(p, where=(option,)) for p in error.problems)
        else:
            report.source_lines.override(path, option)


def apply_seed(raw: dict[Any, Any], seed: int, report: ProblemReport) -> None:
    """Set the seed of every section that the config has."""
    for path in SEEDS:
        if isinstance(raw.get(path[0]), dict):
            try:
                _put(raw, path, seed)
            except ConfigError:
                continue  # model.init is no mapping; the schema reports it
            report.source_lines.override(path, f"--seed {seed}")


def _split(text: str, option: str) -> tuple[KeyPath, Any]:
    """The path and the value of one option."""
    dotted, equals, yaml_value = text.partition("=")
    spaced = _UNDIVIDED.sub("].", dotted)
    if spaced != dotted:
        raise ConfigError(
            f"{option!r} is no setting",
            expected="a dot after the index of a list element",
            hint=f"--set {quote(f'{spaced}={yaml_value}')}",
        )
    # layers[0], as in messages, is layers.0.
    keys = [key.strip() for key in _ELEMENT.sub(r".\1", dotted).split(".")]
    if not equals or not all(keys):
        raise ConfigError(
            f"{option!r} is no setting",
            expected="dotted.key=value",
            hint="--set model.layers.0.hidden_size=128",
        )
    parsed = parse(yaml_value, option)
    if parsed.problems:
        raise ConfigError(parsed.problems)
    return tuple(int(key) if _INDEX.fullmatch(key) else key for key in keys), parsed.value


def _put(raw: Any, path: KeyPath, value: Any) -> None:
    """Set `value` at `path`, and add missing mappings along the path."""
    at = raw
    for depth, key in enumerate(path[:-1]):
        _check_step(at, path, depth)
        inner = at.get(key) if isinstance(at, dict) else at[key]
        if isinstance(inner, str) and (name_key := _name_key(path[: depth + 1])) is not None:
            at[key] = inner = {name_key: inner}
        if inner is None:
            at[key] = inner = {}
        at = inner
    _check_step(at, path, len(path) - 1)
    at[path[-1]] = value


def _name_key(path: KeyPath) -> str | None:
    # Such a mapping may be written as a bare name.
    if path in (("train", "optimizer"), ("train", "schedule")):
        return "type"
    in_layer = path[:2] == ("model", "layers") and len(path) > 3
    return "name" if in_layer and str(path[3]).endswith("activation") else None


def _check_step(at: Any, path: KeyPath, depth: int) -> None:
    """Raise unless ``path[depth]`` can be set in `at`, the value at ``path[:depth]``."""
    key, here, whole = path[depth], format_path(path[:depth]), format_path(path)
    if isinstance(at, dict):
        return
    if not isinstance(at, list):
        raise ConfigError(
            f"{whole} cannot be set",
            found=f"{here} is {describe_value(at)}, which has no keys",
            hint=f"set {here} itself: --set {_dotted(path[:depth])}=…",
        )
    if not isinstance(key, int) or not 0 <= key < len(at):
        last = len(at) - 1
        nearby = max(0, len(at) + key) if isinstance(key, int) and key < 0 else 0
        rest = path[depth + isinstance(key, int) :]  # the key stays if an index is missing
        instead = f"--set {_dotted((*path[:depth], nearby, *rest))}=…"
        raise ConfigError(
            f"{whole} cannot be set",
            expected=f"an index from 0 to {last} in {here}" if at else f"{here} is an empty list",
            found=str(key),
            hint=instead if at else f"set {here} whole: --set '{_dotted(path[:depth])}=[…]'",
        )


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
