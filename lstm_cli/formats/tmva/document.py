"""A weights file as a tree of elements: bounded in size, and nothing outside it is looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.safety import check_regular
from lstm_cli.formats.tmva.numbers import NumberError, Numbers
from lstm_cli.output_files import error_reason

LARGEST_FILE = 4 << 30
LARGEST_TOKEN = 4 << 20
"""Bytes of one tag; a longer one would be read again with every block."""
MOST_ELEMENTS = 50_000
DEEPEST = 64
LARGEST_SIZE = 2**24
"""Upper bound of a declared size, as in a config."""

_BLOCK = 1 << 20
_MARK = b"\xef\xbb\xbf"
_CLOSED = frozenset(
    {"Options", "Variables", "Spectators", "Classes", "Targets", "Transform", "MVAPdfs"}
)
"""Elements whose inside says nothing about the network; a variable a step and feature is many."""


@dataclass
class Element:
    """One element.

    Attributes
    ----------
    line
        Where it begins in the file.
    values
        (rows, columns) in float64 of an element that declares Rows and Columns.
    """

    name: str
    attributes: Mapping[str, str]
    line: int
    children: list[Element] = field(default_factory=list)
    values: Array | None = None

    def child(self, *names: str) -> Element | None:
        """The first child with one of these names."""
        return next((child for child in self.children if child.name in names), None)


@dataclass(frozen=True)
class Document:
    """A file, read whole.

    Attributes
    ----------
    digits
        Most significant digits that its matrices were found to have.
    """

    path: Path
    root: Element
    sha256: str
    digits: int

    def where(self, element: Element) -> str:
        """Where an element stands, for errors."""
        return f"{self.path} line {element.line}"


def parse(path: Path) -> Document:
    """Read a file of XML.

    Raises
    ------
    WeightsError
        Unreadable, not well-formed, with a document type or entities, or too large.
    """
    check_regular(path)
    builder = _Builder(path)
    digest = hashlib.sha256()
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            builder.refuse(f"{size:,} bytes", f"at most {LARGEST_FILE:,} bytes")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                builder.feed(block)
        root = builder.finish()
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None
    except (expat.ExpatError, ValueError) as error:
        raise WeightsError(f"{path} is not well-formed XML", found=str(error)) from None
    return Document(path, root, digest.hexdigest(), builder.digits)


class _Builder:
    """Makes elements of what the parser comes upon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digits = 0
        self._root: Element | None = None
        self._open: list[Element | None] = []  # None: inside an element that is closed to us
        self._numbers: Numbers | None = None
        self._matrix = ""
        self._kept = self._fed = 0
        # One byte a character whatever the file declares: all that counts in it is ASCII, and
        # names of variables in any encoding must not keep it from being read.
        self._parser = expat.ParserCreate("iso-8859-1")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._declaration
        self._parser.EntityDeclHandler = self._declaration

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        if not self._fed:
            block = block.removeprefix(_MARK)
        self._fed += len(block)
        self._parser.Parse(block, False)
        if self._fed - self._parser.CurrentByteIndex > LARGEST_TOKEN:
            self.refuse("a tag that does not end", f"at most {LARGEST_TOKEN:,} bytes")

    def finish(self) -> Element:
        """The root, after the last bytes."""
        self._parser.Parse(b"", True)
        if self._root is None:  # the parser has raised before
            raise ValueError("no element")
        return self._root

    def refuse(self, found: str, expected: str | None = None) -> NoReturn:
        """Say why this file is not read any further."""
        raise WeightsError(
            f"{self.path} is refused",
            expected=expected,
            found=found,
            where=f"{self.path} line {self._parser.CurrentLineNumber}",
        )

    def _declaration(self, *_: object) -> None:
        self.refuse("a document type with declarations of its own", "elements alone")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= DEEPEST:
            self.refuse(f"elements in more than {DEEPEST} levels")
        if self._numbers is not None:
            self.refuse(f"the element {name!r} among numbers", "numbers")
        parent = self._open[-1] if self._open else None
        if self._open and (parent is None or parent.name in _CLOSED):
            self._open.append(None)
            return
        self._kept += 1
        if self._kept > MOST_ELEMENTS:
            self.refuse(f"more than {MOST_ELEMENTS:,} elements")
        element = Element(name, attributes, self._parser.CurrentLineNumber)
        if parent is None:
            self._root = element
        else:
            parent.children.append(element)
        self._open.append(element)
        if "Rows" in attributes and "Columns" in attributes:
            self._matrix = name
            self._numbers = Numbers(*(self._size(name, attributes[k]) for k in ("Rows", "Columns")))

    def _size(self, name: str, text: str) -> int:
        size = whole_number(text)
        if size is None or not 1 <= size <= LARGEST_SIZE:
            self.refuse(f"{name!r} with a size of {text[:40]!r}", f"1 to {LARGEST_SIZE:,}")
        return size

    def _text(self, text: str) -> None:
        if self._numbers is not None:
            try:
                self._numbers.feed(text)
            except NumberError as error:
                self._not_numbers(self._numbers, error)

    def _end(self, _: str) -> None:
        element = self._open.pop()
        if element is None or self._numbers is None:
            return
        try:
            element.values = self._numbers.matrix()
        except NumberError as error:
            self._not_numbers(self._numbers, error)
        self.digits = max(self.digits, self._numbers.digits)
        self._numbers = None

    def _not_numbers(self, numbers: Numbers, error: NumberError) -> NoReturn:
        rows, columns = numbers.rows, numbers.columns
        raise WeightsError(
            f"{self._matrix!r} does not hold the matrix that it declares",
            expected=f"{rows * columns:,} numbers, {rows} x {columns}",
            found=str(error),
            where=f"{self.path} line {self._parser.CurrentLineNumber}",
        )


def whole_number(text: str) -> int | None:
    """A number of digits alone, or None."""
    plain = text.strip()
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) <= 18 else None
