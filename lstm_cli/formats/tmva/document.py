"""A TMVA file as a tree of XML elements with matrices, and the attributes of its elements.

The tree is bounded in size, and the parser never looks up anything outside the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.files import reason
from lstm_cli.formats.limits import check_regular

CHUNK_CHARACTERS = 1 << 16
"""Characters that are gathered before they are turned to numbers."""
MAX_NUMBER_CHARACTERS = 400
FLOAT32_DIGITS = 9
"""Significant digits that tell any two float32 apart; with more, a file was written in double."""

_MANTISSA = re.compile(r"[+-]?0*\.?0*([0-9]*\.?[0-9]*)")


class NumberError(ValueError):
    """Text that is not the numbers it should be; says what was found."""


class MatrixParser:
    """The numbers of one element, row by row.

    Parameters
    ----------
    rows, columns
        As declared.

    Attributes
    ----------
    digits
        Significant digits of the longest number so far.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.digits = 0
        self._count = 0
        self._parts: list[Array] = []
        self._pending: list[str] = []
        self._length = 0

    def feed(self, text: str) -> None:
        """Take more of the text.

        Raises
        ------
        NumberError
            A word that is no number, or more numbers than were declared.
        """
        self._pending.append(text)
        self._length += len(text)
        if self._length >= CHUNK_CHARACTERS:
            whole = "".join(self._pending)
            cut = max(whole.rfind(space) for space in " \n\t") + 1
            self._convert(whole[:cut])
            self._keep(whole[cut:])

    def matrix(self) -> Array:
        """All of it, (rows, columns) in float64.

        Raises
        ------
        NumberError
            Fewer numbers than were declared, or what `feed` raises.
        """
        self._convert("".join(self._pending))
        self._keep("")
        if self._count != self.rows * self.columns:
            raise NumberError(f"{self._count:,} numbers")
        values = np.concatenate(self._parts) if self._parts else np.zeros(0)
        return values.reshape(self.rows, self.columns)

    def _keep(self, rest: str) -> None:
        if len(rest) > MAX_NUMBER_CHARACTERS:
            raise NumberError(f"a word of {len(rest):,} characters")
        self._pending, self._length = [rest], len(rest)

    def _convert(self, text: str) -> None:
        words = text.split()
        if not words:
            return
        self._count += len(words)
        if self._count > self.rows * self.columns:
            raise NumberError("more numbers")
        longest = max(words, key=len)
        if len(longest) > MAX_NUMBER_CHARACTERS:
            raise NumberError(f"a word of {len(longest):,} characters")
        self.digits = max(self.digits, _digits(longest))
        self._parts.append(np.array([_number(word) for word in words]))


def _number(word: str) -> float:
    try:
        if "_" in word:  # Python's own grouping of digits, which no other reader takes
            raise ValueError
        return float(word)
    except ValueError:
        raise NumberError(f"the word {word[:40]!r}") from None


def _digits(word: str) -> int:
    """Significant digits: all but leading zeros, point, sign and exponent."""
    found = _MANTISSA.match(word)
    return 0 if found is None else len(found[1].replace(".", ""))


MAX_FILE_BYTES = 4 << 30
MAX_TAG_BYTES = 4 << 20
"""Bytes of one tag; a longer one would be read again with every block."""
MAX_ELEMENTS = 50_000
MAX_DEPTH = 64
MAX_SIZE = 2**24
"""Upper bound of a declared size, as in a config."""

_BLOCK = 1 << 20
_MARK = b"\xef\xbb\xbf"
_CLOSED = frozenset(
    {"Options", "Variables", "Spectators", "Classes", "Targets", "Transform", "MVAPdfs"}
)
"""Elements whose inside says nothing about the network; a variable a step and feature is many."""


@dataclass
class XmlElement:
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
    children: list[XmlElement] = field(default_factory=list)
    values: Array | None = None

    def child(self, *names: str) -> XmlElement | None:
        """The first child with one of these names."""
        return next((child for child in self.children if child.name in names), None)


@dataclass(frozen=True)
class TmvaDocument:
    """A file, read whole.

    Attributes
    ----------
    digits
        Most significant digits that its matrices were found to have.
    """

    path: Path
    root: XmlElement
    sha256: str
    digits: int

    def where(self, element: XmlElement) -> str:
        """Where an element stands, for errors."""
        return f"{self.path} line {element.line}"


def parse(path: Path) -> TmvaDocument:
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
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            builder.refuse(f"{size:,} bytes", f"at most {MAX_FILE_BYTES:,} bytes")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                builder.feed(block)
        root = builder.finish()
    except OSError as error:
        raise WeightsError(f"the weights file {path} cannot be read", found=reason(error)) from None
    except (expat.ExpatError, ValueError) as error:
        raise WeightsError(f"{path} is not well-formed XML", found=str(error)) from None
    return TmvaDocument(path, root, digest.hexdigest(), builder.digits)


class _Builder:
    """Makes elements of what the parser comes upon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digits = 0
        self._root: XmlElement | None = None
        self._open: list[XmlElement | None] = []  # None: inside an element that is closed to us
        self._numbers: MatrixParser | None = None
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
        if self._fed - self._parser.CurrentByteIndex > MAX_TAG_BYTES:
            self.refuse("a tag that does not end", f"at most {MAX_TAG_BYTES:,} bytes")

    def finish(self) -> XmlElement:
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
        if len(self._open) >= MAX_DEPTH:
            self.refuse(f"elements in more than {MAX_DEPTH} levels")
        if self._numbers is not None:
            self.refuse(f"the element {name!r} among numbers", "numbers")
        parent = self._open[-1] if self._open else None
        if self._open and (parent is None or parent.name in _CLOSED):
            self._open.append(None)
            return
        self._kept += 1
        if self._kept > MAX_ELEMENTS:
            self.refuse(f"more than {MAX_ELEMENTS:,} elements")
        element = XmlElement(name, attributes, self._parser.CurrentLineNumber)
        if parent is None:
            self._root = element
        else:
            parent.children.append(element)
        self._open.append(element)
        if "Rows" in attributes and "Columns" in attributes:
            self._matrix = name
            self._numbers = MatrixParser(
                *(self._size(name, attributes[k]) for k in ("Rows", "Columns"))
            )

    def _size(self, name: str, text: str) -> int:
        size = parse_whole_number(text)
        if size is None or not 1 <= size <= MAX_SIZE:
            self.refuse(f"{name!r} with a size of {text[:40]!r}", f"1 to {MAX_SIZE:,}")
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

    def _not_numbers(self, numbers: MatrixParser, error: NumberError) -> NoReturn:
        rows, columns = numbers.rows, numbers.columns
        raise WeightsError(
            f"{self._matrix!r} does not hold the matrix that it declares",
            expected=f"{rows * columns:,} numbers, {rows} x {columns}",
            found=str(error),
            where=f"{self.path} line {self._parser.CurrentLineNumber}",
        )


def parse_whole_number(text: str) -> int | None:
    """A number of digits alone, or None."""
    plain = text.strip()
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) <= 18 else None


ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh", "symmrelu", "softsign", "gauss")
"""By TMVA's code."""
FAST_TANH = 7
OUTPUTS = {"I": "identity", "S": "sigmoid", "M": "softmax"}
"""TMVA's output functions, applied to what the last layer gives."""


def read_size(document: TmvaDocument, element: XmlElement, name: str) -> int | None:
    """A size that an element declares, or None.

    Raises
    ------
    WeightsError
        It is no size.
    """
    text = element.attributes.get(name)
    if text is None:
        return None
    value = parse_whole_number(text)
    if value is None or not 1 <= value <= MAX_SIZE:
        raise _unfit(document, element, name, f"1 to {MAX_SIZE:,}")
    return value


def check_declared(
    document: TmvaDocument, element: XmlElement, name: str, found: int, what: str
) -> None:
    """Make sure that an attribute, where it is given, says what was found.

    Raises
    ------
    WeightsError
        It says otherwise.
    """
    said = read_size(document, element, name)
    if said not in (None, found):
        raise _unfit(document, element, name, f"{found}, {what}")


def read_switch(document: TmvaDocument, element: XmlElement, name: str) -> bool | None:
    """An attribute of 0 or 1, or None.

    Raises
    ------
    WeightsError
        It is neither.
    """
    text = element.attributes.get(name)
    if text is None:
        return None
    known = {"0": False, "1": True, "false": False, "true": True}
    if text.strip().lower() not in known:
        raise _unfit(document, element, name, "0 or 1")
    return known[text.strip().lower()]


def read_activation(document: TmvaDocument, layer: XmlElement) -> tuple[str, bool]:
    """A dense layer's activation, and whether its name is another one than TMVA's.

    Raises
    ------
    WeightsError
        Missing, or a code that is not known.
    """
    code = parse_whole_number(layer.attributes.get("ActivationFunction", ""))
    if code == FAST_TANH:
        return "tanh", True
    if code is None or code >= len(ACTIVATIONS):
        codes = ", ".join(f"{k} {name}" for k, name in enumerate(ACTIVATIONS))
        raise _unfit(document, layer, "ActivationFunction", codes)
    return ACTIVATIONS[code], False


def read_output_function(document: TmvaDocument, network: XmlElement) -> str | None:
    """What the last layer's values go through, or None where the file does not say.

    Raises
    ------
    WeightsError
        A letter that is not known.
    """
    letter = network.attributes.get("OutputFunction")
    if letter is None:
        return None
    if letter.strip() not in OUTPUTS:
        known = ", ".join(f"{code} {name}" for code, name in OUTPUTS.items())
        raise _unfit(document, network, "OutputFunction", known)
    return OUTPUTS[letter.strip()]


def _unfit(document: TmvaDocument, element: XmlElement, name: str, expected: str) -> WeightsError:
    text = element.attributes.get(name)
    return WeightsError(
        f"{name} of {element.name} does not fit",
        expected=expected,
        found="nothing" if text is None else repr(text[:60]),
        where=document.where(element),
    )
