"""Where each value of a config was written, and the list of what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lstm_cli.config.words import short
from lstm_cli.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of a config, such as ``("model", "layers", 0, "units")``."""


def spell(path: KeyPath) -> str:
    """A path as users read it: ``model.layers[1].units``."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{short(key)}" if text else short(key)
    return text or "the config"


class Places:
    """Where values come from: a line of a file, an option of the command line, or a dict.

    Parameters
    ----------
    source
        File name as given, or ``config`` for a dict.
    lines
        Line of each path, counted from 1; empty for a dict.
    """

    def __init__(self, source: str, lines: Mapping[KeyPath, int] | None = None) -> None:
        self.source = source
        self._lines = dict(lines or {})
        self._overrides: dict[KeyPath, str] = {}

    def override(self, path: KeyPath, text: str) -> None:
        """Note that the value at `path`, and all below it, now comes from `text`."""
        self._lines = {p: line for p, line in self._lines.items() if p[: len(path)] != path}
        self._overrides = {p: t for p, t in self._overrides.items() if p[: len(path)] != path}
        self._overrides[path] = text

    def is_typed(self, path: KeyPath) -> bool:
        """Whether the value at `path` comes from an option, not from the config."""
        return any(path[:size] in self._overrides for size in range(len(path) + 1))

    def where(self, path: KeyPath) -> str:
        """The place of `path`, or of its nearest ancestor that was written at all."""
        for size in range(len(path), -1, -1):
            if (override := self._overrides.get(path[:size])) is not None:
                return override
            if (line := self._lines.get(path[:size])) is not None:
                return f"{self.source} line {line}"
        return self.source


class Report:
    """Collects every problem of one config, so that all are told at once."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._problems: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        """All problems, each once, in order."""
        return list(self._problems)

    @property
    def count(self) -> int:
        """Number of problems so far."""
        return len(self._problems)

    def extend(self, problems: Iterable[Problem]) -> None:
        """Note problems that were found elsewhere."""
        self._problems.update(dict.fromkeys(problems))

    def add(
        self,
        path: KeyPath,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        also: Iterable[KeyPath] = (),
        hint: str | None = None,
    ) -> None:
        """Note a problem with the value at `path`; `also` are further paths that take part."""
        where = tuple(dict.fromkeys(self.places.where(p) for p in (path, *also)))
        self.extend([Problem(what, expected, found, where, hint)])
