"""Problems of a config: their list, the source of each value, and helpers that word messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, isnan
from typing import Any, TypeAlias

from lstm_cli.errors import Problem, counted, nearest

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of a config, such as ``("model", "layers", 0, "units")``."""


def format_path(path: KeyPath) -> str:
    """A path as text: ``model.layers[1].units``."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{shorten(key)}" if text else shorten(key)
    return text or "the config"


class SourceLines:
    """The source of each value: a line of a file, a command-line option, or a dict.

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
        """Record that an option `text` sets the value at `path` and all values below it."""
        self._lines = {p: line for p, line in self._lines.items() if p[: len(path)] != path}
        self._overrides = {p: t for p, t in self._overrides.items() if p[: len(path)] != path}
        self._overrides[path] = text

    def is_overridden(self, path: KeyPath) -> bool:
        """Whether the value at `path` comes from an option instead of the config."""
        return any(path[:size] in self._overrides for size in range(len(path) + 1))

    def where(self, path: KeyPath) -> str:
        """The source of `path`, or of its nearest ancestor that has one."""
        for size in range(len(path), -1, -1):
            if (override := self._overrides.get(path[:size])) is not None:
                return override
            if (line := self._lines.get(path[:size])) is not None:
                return f"{self.source} line {line}"
        return self.source


class ProblemReport:
    """Collects every problem of one config, so that one error reports them all."""

    def __init__(self, source_lines: SourceLines) -> None:
        self.source_lines = source_lines
        self._problems: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        """All problems without duplicates, in order."""
        return list(self._problems)

    @property
    def count(self) -> int:
        """Number of problems so far."""
        return len(self._problems)

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add problems."""
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
        """Add a problem with the value at `path`; `also` lists other paths involved."""
        where = tuple(dict.fromkeys(self.source_lines.where(p) for p in (path, *also)))
        self.extend([Problem(what, expected, found, where, hint)])


LONGEST = 72
"""Most characters of a user's text in a message."""


def with_article(noun: str) -> str:
    """The noun with its article: ``an lstm``, ``a gru``."""
    by_letter = ("lstm", "rnn", "sgd", "rmsprop")
    return f"an {noun}" if noun[:1] in "aeio" or noun in by_letter else f"a {noun}"


def one_of(choices: Iterable[Any]) -> str:
    """``one of a, b, c``, or the only choice."""
    names = [str(choice) for choice in choices]
    return f"one of {', '.join(names)}" if len(names) > 1 else "".join(names)


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, or None."""
    guess = nearest(name, known) if isinstance(name, str) else None
    return f"did you mean `{guess}`?" if guess else None


def describe_value(value: Any) -> str:
    """A value in YAML's notation, shortened for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:4]))
        return f"a mapping with the keys {shorten(keys)}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {counted(len(value), 'item')}" if value else "an empty list"
    if isinstance(value, float) and not isfinite(value):
        return ".nan" if isnan(value) else ".inf" if value > 0 else "-.inf"
    try:
        return shorten(repr(value))
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of thousands of digits"


def to_flow_yaml(value: Any) -> str:
    """A value as YAML on one line: ``{type: lstm, hidden_size: 100}``."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {to_flow_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(to_flow_yaml, value))}]"
    return str(value)


def shorten(text: str) -> str:
    """A user's text for a message: cut to `LONGEST`, with control characters escaped."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
