"""How a plain YAML scalar gets its type: the core schema of YAML 1.2, not PyYAML's 1.1.

``1e-3`` is a number; ``yes``, ``1_000``, ``1:30`` and ``2024-01-01`` are strings; ``010`` is 10.
Source: YAML 1.2.2, section 10.3.2.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

NULL, BOOL, INT, FLOAT, STR, MERGE, SEQ, MAP = (
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "merge", "seq", "map")
)

PATTERNS: dict[str, tuple[re.Pattern[str], str]] = {
    NULL: (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN\0"),
    BOOL: (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    INT: (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), "-+0123456789"),
    FLOAT: (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        "-+.0123456789",
    ),
    MERGE: (re.compile(r"<<\Z"), "<"),
}
"""Tag to its pattern and the characters it may begin with (NUL stands for the empty scalar)."""


def implicit_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The patterns as PyYAML keeps them: by first character, in order of precedence."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, first) in PATTERNS.items():
        for character in first:
            table.setdefault(character.replace("\0", ""), []).append((tag, pattern))
    return table


def scalar(tag: str, text: str) -> Any:
    """The value of a scalar of a core tag.

    Raises
    ------
    ValueError
        `text` is not written as that tag asks, or the tag is not of the core schema.
    """
    if tag == STR:
        return text
    if tag not in PATTERNS or not PATTERNS[tag][0].match(text):
        raise ValueError(tag)
    if tag == NULL:
        return None
    if tag == BOOL:
        return text.lower() == "true"
    if tag == INT:
        return _integer(text)
    return _float(text) if tag == FLOAT else text


def _integer(text: str) -> int | float:
    base = {"0o": 8, "0x": 16}.get(text[:2])
    if base is not None:
        return int(text[2:], base)
    # Python converts no more than some thousand digits; such a number is out of every range.
    return int(text) if len(text) < 1000 else float(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class Dumper(yaml.SafeDumper):
    """Writes what the loader of this package reads back unchanged."""

    yaml_implicit_resolvers = implicit_resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time: anchors would puzzle a reader."""
        return True
