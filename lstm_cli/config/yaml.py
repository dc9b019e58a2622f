"""Reads and writes a config's YAML: file, text, and plain values with line numbers.

Scalars have the types of YAML 1.2, not those of PyYAML, which are YAML 1.1's. ``1e-3`` is a
number; ``yes``, ``1_000``, ``1:30`` and ``2024-01-01`` are strings; ``010`` is 10.
Source: YAML 1.2.2, section 10.3.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lstm_cli.config.problems import KeyPath, did_you_mean, format_path, shorten
from lstm_cli.config.schema import MOST_LAYERS
from lstm_cli.errors import ConfigError, Problem, is_memory_error, memory_error

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
"""Pattern of each tag, and its first characters (NUL stands for the empty scalar)."""


def implicit_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The patterns in PyYAML's form: by first character, in order of precedence."""
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
        `text` does not match the tag's pattern, or the tag is not in the core schema.
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
    # Python converts at most 4,300 digits; a number that long is out of every range.
    return int(text) if len(text) < 1000 else float(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class Dumper(yaml.SafeDumper):
    """Writes values that this package's loader reads back unchanged."""

    yaml_implicit_resolvers = implicit_resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values in full each time, without anchors."""
        return True


MAX_DEPTH = 16
"""Levels of nesting in a config."""
MAX_VALUES = 30_000
"""Values and keys in a config, before and after aliases and merges are expanded."""
MAX_CHARACTERS = 1 << 19
"""Characters of a config's text."""


@dataclass
class Parsed:
    """Values of a YAML text, their line numbers, and problems.

    Attributes
    ----------
    value
        dicts, lists, strings, numbers, booleans and None.
    lines
        Line of each path, counted from 1: of the key in a mapping, of the item in a list.
    problems
        Problems that did not stop parsing, such as duplicate keys and foreign tags.
    """

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, source: str) -> Parsed:
    """Read one YAML document.

    Raises
    ------
    ConfigError
        The text is not YAML, nests too deeply, or is too large once aliases are expanded.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{source} is too large for a config",
            expected=f"at most {MAX_CHARACTERS:,} characters",
            found=f"{len(text):,}",
            where=source,
            hint="sequences belong in an HDF5 file, given as DATA",
        )
    builder = _Builder(source)
    node = _compose(text, source)
    value = None if node is None else builder.build(node, ())
    return Parsed(value, builder.lines, builder.problems)


def dump(value: Any) -> str:
    """Plain values as YAML that `parse` reads back unchanged."""
    # YAML would fold Unicode's line breaks, so they are escaped.
    breaks = any(mark in repr(value) for mark in (r"\x85", r"\u2028", r"\u2029"))
    return str(
        yaml.dump(
            value,
            Dumper=Dumper,
            sort_keys=False,
            allow_unicode=not breaks,
            width=88,
            default_flow_style=None,
        )
    )


class _TooMuch(yaml.MarkedYAMLError):
    """The text exceeds `MAX_DEPTH` or `MAX_VALUES`."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only, with the types of YAML 1.2, of bounded depth and number."""

    yaml_implicit_resolvers = implicit_resolvers()
    depth = nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        # Composing recurses: without a bound, a line of brackets raises RecursionError.
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            deep = self.depth > MAX_DEPTH
            problem = "nested too deeply" if deep else "too many values"
            raise _TooMuch(problem=problem, problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str, source: str) -> Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except _TooMuch as error:
        raise _too_much(error, source) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source} holds a character that YAML does not allow",
            found=f"character {error.character:#x}",
            where=f"{source} line {line}",
            hint="write it as an escape in double quotes, or remove it",
        ) from None
    except (ValueError, OverflowError):
        # PyYAML does not catch an escape beyond Unicode, such as "\UFFFFFFFF".
        raise ConfigError(
            f"{source} is not valid YAML",
            found="an escape sequence without a character",
            where=source,
            hint='look for \\U in strings with double quotes: "..."',
        ) from None


ADVICE: tuple[tuple[str, str, str | None], ...] = (
    (r"mapping values are not allowed", "one `key: value` a line", "quote text that holds `: `"),
    (r"character '\\t'", "spaces", "indent with spaces, not with tabs"),
    (r"could not find expected ':'", "`key: value`", None),
    (r"<block end>", "the indentation of the lines above", "indent sibling keys alike"),
    (r"expected ',' or ('.')", "`,` or a closing bracket", "close the bracket opened above"),
    (
        r"<stream end>|end of stream",
        "the end of a quote or bracket",
        "close all quotes and brackets",
    ),
    (r"another document", "one document", "remove the line `---` in the middle"),
    (r"undefined alias", "an alias (`*name`) after its anchor (`&name`)", None),
)
"""Pattern of PyYAML's message, the expected text, and the hint."""


def _too_much(error: _TooMuch, source: str) -> ConfigError:
    what, most, hint = f"{source} is nested too deeply", f"{MAX_DEPTH} levels", None
    if error.problem != "nested too deeply":
        what, most = f"{source} holds too many values", f"{MAX_VALUES:,} keys and values"
        hint = (
            f"a network has at most {MOST_LAYERS} layers; sequences belong in an HDF5 file, as DATA"
        )
    line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}"
    return ConfigError(what, expected=f"at most {most}", where=f"{source}{line}", hint=hint)


def _syntax_error(error: yaml.MarkedYAMLError, source: str) -> ConfigError:
    message = " ".join(str(error.problem or error.context or "").split())
    message = shorten(message.removeprefix("but "))
    mark = error.problem_mark or error.context_mark
    place = source if mark is None else f"{source} line {mark.line + 1}, column {mark.column + 1}"
    advice = (entry[1:] for entry in ADVICE if re.search(entry[0], message))
    expected, hint = next(advice, (None, None))
    what = f"{source} is not valid YAML" + (f": {message}" if message else "")
    return ConfigError(what, expected=expected, where=place, hint=hint)


class _Builder:
    """Converts YAML nodes to values, expands aliases, and counts the values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self._count(node, len(path))
        if isinstance(node, MappingNode) and node.tag == MAP:
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == SEQ:
            return self._sequence(node, path)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        return self._foreign_tag(node, path)

    def _count(self, node: Node, depth: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise ConfigError(
                f"{self.source} grows too large when its aliases and merges are expanded",
                expected=f"at most {MAX_VALUES:,} keys and values, {MAX_DEPTH} levels deep",
                where=self._place(node),
                hint="look for an alias that contains itself, and for aliases of aliases",
            )

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str | int, Any]:
        built: dict[str | int, Any] = {}
        first: dict[str | int, Node] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                continue
            key = self._key(key_node, path)
            if key in first:
                self._duplicate((*path, key), first[key], key_node)
            else:
                first[key] = key_node
                self._entry(built, key, (key_node, value_node), path)
        for key_node, value_node in self._merged(node, path):
            key = self._key(key_node, path)
            if key not in built:
                self._entry(built, key, (key_node, value_node), path)
        return built

    def _entry(
        self,
        built: dict[str | int, Any],
        key: str | int,
        nodes: tuple[Node, Node],
        path: KeyPath,
    ) -> None:
        self.lines[(*path, key)] = nodes[0].start_mark.line + 1
        built[key] = self.build(nodes[1], (*path, key))

    def _merged(
        self, node: MappingNode, path: KeyPath, depth: int = 0
    ) -> Iterator[tuple[Node, Node]]:
        """Entries merged by ``<<: *anchor`` or ``<<: [*one, *two]``, the nearest first.

        Overridden entries are counted too, since reading them takes time.
        """
        for key_node, value_node in node.value:
            if key_node.tag != MERGE:
                continue
            is_list = isinstance(value_node, SequenceNode)
            for source in value_node.value if is_list else [value_node]:
                self._count(source, depth)
                if not isinstance(source, MappingNode):
                    self._problem(
                        key_node, f"{format_path(path)} merges a value that is no mapping"
                    )
                    continue
                for key, value in source.value:
                    self._count(key, depth)
                    if key.tag != MERGE:
                        yield key, value
                yield from self._merged(source, path, depth + 1)

    def _sequence(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        built = []
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = item.start_mark.line + 1
            built.append(self.build(item, (*path, index)))
        return built

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        try:
            # A lone surrogate cannot be written to any file or terminal.
            node.value.encode()
            return scalar(node.tag, node.value)
        except UnicodeEncodeError:
            self._problem(node, f"{format_path(path)} holds half a character (a lone surrogate)")
            return node.value.encode(errors="replace").decode()
        except ValueError:
            return self._foreign_tag(node, path)

    def _foreign_tag(self, node: Node, path: KeyPath) -> None:
        self._problem(
            node,
            f"{format_path(path)} has a tag that does not fit its value",
            expected="plain YAML, without tags",
            found=shorten(str(node.tag).replace("tag:yaml.org,2002:", "!!")),
            hint="remove the tag, the word that begins with !",
        )

    def _key(self, node: Node, path: KeyPath) -> str | int:
        """A mapping's key: text, or a whole number (a class); other scalars become text."""
        if not isinstance(node, ScalarNode):
            self._problem(
                node, f"{format_path(path)} has a key that is a collection", expected="a word"
            )
            return f"line {node.start_mark.line + 1}"
        value = self._scalar(node, path)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        return str(node.value)

    def _duplicate(self, path: KeyPath, first: Node, second: Node) -> None:
        self.problems.append(
            Problem(
                f"{format_path(path)} is given twice",
                where=(self._place(first), self._place(second)),
                hint="keep one of the two",
            )
        )

    def _problem(
        self,
        node: Node,
        what: str,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problems.append(Problem(what, expected, found, (self._place(node),), hint))

    def _place(self, node: Node) -> str:
        return f"{self.source} line {node.start_mark.line + 1}"


DATA_HINT = "the config comes before the data: lstm-cli run CONFIG DATA"
WEIGHTS_HINT = "give weights as --weights FILE, and a YAML file as CONFIG"

SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", DATA_HINT),
    (b"CDF", "a NetCDF file", DATA_HINT),
    (b"PK\x03\x04", "a zip archive, such as PyTorch's and Keras's weights", WEIGHTS_HINT),
    (b"\x80\x02", "a Python pickle", WEIGHTS_HINT),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
)
"""First bytes of files that are no config, the kind of file, and the hint."""


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises
    ------
    ConfigError
        The file is missing, unreadable, or not text.
    """
    try:
        with path.open("rb") as file:
            # A character has at most four bytes; `parse` refuses a longer text.
            content = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file {path}", expected="a YAML config", hint=_nearest_file(path)
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _decode(content, path)


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    if is_memory_error(error):
        raise memory_error(str(path)) from error
    # Windows reports "permission denied" for a folder.
    if isinstance(error, OSError) and os.path.isdir(path):
        inside = next(iter(sorted(path.glob("*.y*ml"))), None)
        hint = f"did you mean {inside}?" if inside else None
        return ConfigError(f"{path} is a folder", expected="a YAML config", hint=hint)
    reason = getattr(error, "strerror", None) or str(error)
    hint = "check the file's permissions" if isinstance(error, PermissionError) else None
    return ConfigError(f"{path} cannot be read: {reason}", expected="a YAML config", hint=hint)


def _nearest_file(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    return did_you_mean(path.name, names)


def _decode(content: bytes, path: Path) -> str:
    for signature, kind, hint in SIGNATURES:
        if content.startswith(signature):
            raise _no_config(path, kind, hint)
    # safetensors: eight bytes of length, little-endian, then a JSON header.
    if content[8:10] in (b'{"', b"{}") and b"\0" in content[:8]:
        raise _no_config(path, "a safetensors file", WEIGHTS_HINT)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if re.search(rb"[\x00-\x08\x0e-\x1a]", content[:4096]):
            raise _no_config(path, "a binary file", WEIGHTS_HINT) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not text in UTF-8",
            found=f"byte {content[error.start]:#04x}",
            where=f"{path} line {line}",
            hint="save it as UTF-8",
        ) from None
    if "\0" in text:
        raise _no_config(path, "a binary file", None)
    return text


def _no_config(path: Path, kind: str, hint: str | None) -> ConfigError:
    return ConfigError(
        f"{path} is no config", expected="text in YAML", found=kind, where=str(path), hint=hint
    )
