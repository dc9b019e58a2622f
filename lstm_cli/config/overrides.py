"""``--set dotted.key=value`` and ``--seed``: what the command line changes in a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lstm_cli.config.places import KeyPath, Report, spell
from lstm_cli.config.words import short, shown
from lstm_cli.config.yaml12 import parse
from lstm_cli.errors import ConfigError

SEEDS: tuple[KeyPath, ...] = (("model", "init", "seed"), ("train", "seed"))


def apply_overrides(raw: dict[Any, Any], overrides: Sequence[str], report: Report) -> None:
    """Set every ``dotted.key=value`` in `raw`; later ones win. Faults go to `report`."""
    for text in overrides:
        option = f"--set {short(text)}"
        try:
            path, value = _split(text, option)
            _put(raw, path, value)
        except ConfigError as error:
            report.problems.extend(replace(p, where=(option,)) for p in error.problems)
        else:
            report.places.override(path, option)


def apply_seed(raw: dict[Any, Any], seed: int, report: Report) -> None:
    """Set every seed that the config has a section for."""
    for path in SEEDS:
        if isinstance(raw.get(path[0]), dict):
            try:
                _put(raw, path, seed)
            except ConfigError:
                continue  # model.init is no mapping, which the schema reports
            report.places.override(path, f"--seed {seed}")


def _split(text: str, option: str) -> tuple[KeyPath, Any]:
    """The path and the value of one option."""
    dotted, equals, written = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise ConfigError(
            f"{option!r} is no setting",
            expected="dotted.key=value",
            hint="--set model.layers.0.hidden_size=128",
        )
    parsed = parse(written, option)
    if parsed.problems:
        raise ConfigError(parsed.problems)
    return tuple(int(key) if _is_index(key) else key for key in keys), parsed.value


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10


def _put(raw: Any, path: KeyPath, value: Any) -> None:
    """Set `value` at `path`, making mappings that are missing on the way."""
    at = raw
    for depth, key in enumerate(path[:-1]):
        _check_step(at, path, depth)
        inner = at.get(key) if isinstance(at, dict) else at[key]
        if inner is None:
            at[key] = inner = {}
        at = inner
    _check_step(at, path, len(path) - 1)
    at[path[-1]] = value


def _check_step(at: Any, path: KeyPath, depth: int) -> None:
    """Raise unless ``path[depth]`` can be set in `at`, the value at ``path[:depth]``."""
    key, here, whole = path[depth], spell(path[:depth]), spell(path)
    if isinstance(at, dict):
        return
    if not isinstance(at, list):
        inside = f"type: {short(at)}, …" if isinstance(at, str) else "…"
        raise ConfigError(
            f"{whole} cannot be set",
            found=f"{here} is {shown(at)}, which has no keys",
            hint=f"set {here} whole: --set '{_dotted(path[:depth])}={{{inside}}}'",
        )
    if not isinstance(key, int) or key >= len(at):
        last, rest = len(at) - 1, path[depth + isinstance(key, int) :]
        raise ConfigError(
            f"{whole} cannot be set",
            expected=f"an index from 0 to {last} in {here}" if at else f"{here} is an empty list",
            found=str(key),
            hint=f"--set {_dotted((*path[:depth], 0, *rest))}=…",
        )


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
