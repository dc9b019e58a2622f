"""Small wording helpers: how a value, a choice and a guess are put to the user."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, isnan
from typing import Any

from lstm_cli.errors import nearest

LONGEST = 72


def an(noun: str) -> str:
    """The noun with its article; abbreviations are said letter by letter: an lstm, a gru."""
    by_letter = ("lstm", "rnn", "sgd", "rmsprop")
    return f"an {noun}" if noun[:1] in "aeio" or noun in by_letter else f"a {noun}"


def either(choices: Iterable[Any]) -> str:
    """``one of a, b, c``, or the only choice."""
    names = [str(choice) for choice in choices]
    return f"one of {', '.join(names)}" if len(names) > 1 else "".join(names)


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, or None."""
    guess = nearest(name, known) if isinstance(name, str) else None
    return f"did you mean `{guess}`?" if guess else None


def shown(value: Any) -> str:
    """A value as a reader of YAML knows it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:4]))
        return f"a mapping with the keys {short(keys)}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, float) and not isfinite(value):
        return ".nan" if isnan(value) else ".inf" if value > 0 else "-.inf"
    try:
        return short(repr(value))
    except ValueError:  # Python refuses to write integers of many thousand digits.
        return "a number of thousands of digits"


def flow(value: Any) -> str:
    """A value of an example in YAML's short form, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return str(value)


def short(text: str) -> str:
    """A text of the user's, fit for a message: cut, and without control characters."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
