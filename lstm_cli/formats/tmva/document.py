"""A TMVA file as a tree of XML elements with matrices, their attributes, and the network in it.

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
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.interchange import TmvaOrder
from lstm_cli.formats.limits import check_regular
from lstm_cli.output_files import error_reason

CHUNK_CHARACTERS = 1 << 16
"""Characters that are collected before their conversion to numbers."""
MAX_NUMBER_CHARACTERS = 400
FLOAT32_DIGITS = 9
"""Significant digits that distinguish any two float32 values; more digits mean float64."""

_MANTISSA = re.compile(r"[+-]?0*\.?0*([0-9]*\.?[0-9]*)")


class NumbersError(ValueError):
    """Text that is not the declared numbers; the message names what was found."""


class MatrixParser:
    """Parser of the numbers in one element, row by row.

    Parameters
    ----------
    rows, columns
        Declared sizes.

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
        """Parse the next part of the text.

        Raises
        ------
        NumbersError
            A word is not a number, or there are more numbers than declared.
        """
        self._pending.append(text)
        self._length += len(text)
        if self._length >= CHUNK_CHARACTERS:
            whole = "".join(self._pending)
            cut = max(whole.rfind(space) for space in " \n\t") + 1
            self._convert(whole[:cut])
            self._set_pending(whole[cut:])

    def matrix(self) -> Array:
        """Matrix of all numbers, (rows, columns) in float64.

        Raises
        ------
        NumbersError
            There are fewer numbers than declared, or `feed` raises.
        """
        self._convert("".join(self._pending))
        self._set_pending("")
        if self._count != self.rows * self.columns:
            raise NumbersError(counted(self._count, "number", grouped=True))
        values = np.concatenate(self._parts) if self._parts else np.zeros(0)
        return values.reshape(self.rows, self.columns)

    def _set_pending(self, rest: str) -> None:
        if len(rest) > MAX_NUMBER_CHARACTERS:
            raise NumbersError(f"a word of {len(rest):,} characters")
        self._pending, self._length = [rest], len(rest)

    def _convert(self, text: str) -> None:
        words = text.split()
        if not words:
            return
        self._count += len(words)
        if self._count > self.rows * self.columns:
            raise NumbersError("more numbers")
        longest = max(words, key=len)
        if len(longest) > MAX_NUMBER_CHARACTERS:
            raise NumbersError(f"a word of {len(longest):,} characters")
        self.digits = max(self.digits, _digits(longest))
        self._parts.append(np.array([_number(word) for word in words]))


def _number(word: str) -> float:
    try:
        if "_" in word:  # Python's grouping of digits, which no other reader accepts
            raise ValueError
        return float(word)
    except ValueError:
        raise NumbersError(f"the word {word[:40]!r}") from None


def _digits(word: str) -> int:
    """Number of significant digits, without leading zeros, point, sign and exponent."""
    match = _MANTISSA.match(word)
    return 0 if match is None else len(match[1].replace(".", ""))


MAX_FILE_BYTES = 4 << 30
MAX_TAG_BYTES = 4 << 20
"""Bytes of the longest tag. The parser would read a longer tag again with every block."""
MAX_ELEMENTS = 50_000
MAX_DEPTH = 64
MAX_SIZE = 2**24
"""Largest declared size, the same as in a config."""

_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SKIPPED = frozenset(
    {"Options", "Variables", "Spectators", "Classes", "Targets", "Transform", "MVAPdfs"}
)
"""Elements without information on the network; variables are many, one per step and feature."""


@dataclass
class XmlElement:
    """XML element.

    Attributes
    ----------
    line
        Line of the file on which it starts.
    values
        Matrix (rows, columns) in float64; None if the element declares no Rows and Columns.
    """

    name: str
    attributes: Mapping[str, str]
    line: int
    children: list[XmlElement] = field(default_factory=list)
    values: Array | None = None

    def child(self, *names: str) -> XmlElement | None:
        """First child with one of these names; None if there is none."""
        return next((child for child in self.children if child.name in names), None)


@dataclass(frozen=True)
class TmvaDocument:
    """Content of a TMVA file.

    Attributes
    ----------
    digits
        Largest number of significant digits in its matrices.
    """

    path: Path
    root: XmlElement
    sha256: str
    digits: int

    def where(self, element: XmlElement) -> str:
        """Path and line of an element, for errors."""
        return f"{self.path} line {element.line}"


def parse(path: Path) -> TmvaDocument:
    """Parse a TMVA file.

    Raises
    ------
    WeightsError
        The file is unreadable, not well-formed or too large, or has a document type or entities.
    """
    check_regular(path)
    builder = _Builder(path)
    digest = hashlib.sha256()
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            builder.refuse(f"{size:,} bytes", f"at most {MAX_FILE_BYTES:,} bytes")
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                builder.feed(block)
        root = builder.finish()
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None
    except (expat.ExpatError, ValueError) as error:
        raise WeightsError(f"{path} is not well-formed XML", found=str(error)) from None
    return TmvaDocument(path, root, digest.hexdigest(), builder.digits)


class _Builder:
    """Builds elements from the events of the XML parser."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digits = 0
        self._root: XmlElement | None = None
        self._open: list[XmlElement | None] = []  # None: inside a skipped element
        self._numbers: MatrixParser | None = None
        self._matrix = ""
        self._element_count = self._fed_bytes = 0
        # One byte per character, for any declared encoding: the parts that matter are ASCII, and
        # names of variables in other encodings must not make the file unreadable.
        self._parser = expat.ParserCreate("iso-8859-1")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._declaration
        self._parser.EntityDeclHandler = self._declaration

    def feed(self, block: bytes) -> None:
        """Parse the next bytes of the file."""
        if not self._fed_bytes:
            block = block.removeprefix(_BYTE_ORDER_MARK)
        self._fed_bytes += len(block)
        self._parser.Parse(block, False)
        if self._fed_bytes - self._parser.CurrentByteIndex > MAX_TAG_BYTES:
            self.refuse("a tag that does not end", f"at most {MAX_TAG_BYTES:,} bytes")

    def finish(self) -> XmlElement:
        """Root element, after the last bytes."""
        self._parser.Parse(b"", True)
        if self._root is None:  # the parser has raised before this
            raise ValueError("no element")
        return self._root

    def refuse(self, problem: str, expected: str | None = None) -> NoReturn:
        """Raise the error that the file is refused."""
        raise WeightsError(
            f"{self.path} is refused",
            expected=expected,
            found=problem,
            where=f"{self.path} line {self._parser.CurrentLineNumber}",
        )

    def _declaration(self, *_: object) -> None:
        self.refuse("a document type with declarations of its own", "elements only")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            self.refuse(f"elements in more than {MAX_DEPTH} levels")
        if self._numbers is not None:
            self.refuse(f"the element {name!r} among numbers", "numbers")
        parent = self._open[-1] if self._open else None
        if self._open and (parent is None or parent.name in _SKIPPED):
            self._open.append(None)
            return
        self._element_count += 1
        if self._element_count > MAX_ELEMENTS:
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
            except NumbersError as error:
                self._not_numbers(self._numbers, error)

    def _end(self, _: str) -> None:
        element = self._open.pop()
        if element is None or self._numbers is None:
            return
        try:
            element.values = self._numbers.matrix()
        except NumbersError as error:
            self._not_numbers(self._numbers, error)
        self.digits = max(self.digits, self._numbers.digits)
        self._numbers = None

    def _not_numbers(self, numbers: MatrixParser, error: NumbersError) -> NoReturn:
        rows, columns = numbers.rows, numbers.columns
        raise WeightsError(
            f"{self._matrix!r} does not hold the matrix that it declares",
            expected=f"{counted(rows * columns, 'number', grouped=True)}, {rows} x {columns}",
            found=str(error),
            where=f"{self.path} line {self._parser.CurrentLineNumber}",
        )


def parse_whole_number(text: str) -> int | None:
    """Whole number of at most 18 ASCII digits; None if the text is anything else."""
    plain = text.strip()
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) <= 18 else None


ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh", "symmrelu", "softsign", "gauss")
"""Activations in the order of TMVA's codes."""
FAST_TANH = 7
OUTPUTS = {"I": "identity", "S": "sigmoid", "M": "softmax"}
"""TMVA's output functions, applied to the values of the last layer."""


def read_size(document: TmvaDocument, element: XmlElement, name: str) -> int | None:
    """Size in an attribute of an element; None if the attribute is missing.

    Raises
    ------
    WeightsError
        The attribute is not a size.
    """
    text = element.attributes.get(name)
    if text is None:
        return None
    value = parse_whole_number(text)
    if value is None or not 1 <= value <= MAX_SIZE:
        raise _attribute_error(document, element, name, f"1 to {MAX_SIZE:,}")
    return value


def check_declared(
    document: TmvaDocument, element: XmlElement, name: str, actual: int, what: str
) -> None:
    """Check that the size in an attribute, if there is one, equals the actual size.

    Raises
    ------
    WeightsError
        The sizes differ.
    """
    declared = read_size(document, element, name)
    if declared not in (None, actual):
        raise _attribute_error(document, element, name, f"{actual}, {what}")


def read_switch(document: TmvaDocument, element: XmlElement, name: str) -> bool | None:
    """Value of an attribute that is 0 or 1; None if the attribute is missing.

    Raises
    ------
    WeightsError
        The attribute is neither.
    """
    text = element.attributes.get(name)
    if text is None:
        return None
    known = {"0": False, "1": True, "false": False, "true": True}
    if text.strip().lower() not in known:
        raise _attribute_error(document, element, name, "0 or 1")
    return known[text.strip().lower()]


def read_activation(document: TmvaDocument, layer: XmlElement) -> tuple[str, bool]:
    """Activation of a dense layer, and whether it replaces TMVA's fast tanh.

    Raises
    ------
    WeightsError
        The code is missing or unknown.
    """
    code = parse_whole_number(layer.attributes.get("ActivationFunction", ""))
    if code == FAST_TANH:
        return "tanh", True
    if code is None or code >= len(ACTIVATIONS):
        codes = ", ".join(f"{k} {name}" for k, name in enumerate(ACTIVATIONS))
        raise _attribute_error(document, layer, "ActivationFunction", codes)
    return ACTIVATIONS[code], False


def read_output_function(document: TmvaDocument, network: XmlElement) -> str | None:
    """Output function of the network; None if the file does not state it.

    Raises
    ------
    WeightsError
        The letter is unknown.
    """
    letter = network.attributes.get("OutputFunction")
    if letter is None:
        return None
    if letter.strip() not in OUTPUTS:
        known = ", ".join(f"{code} {name}" for code, name in OUTPUTS.items())
        raise _attribute_error(document, network, "OutputFunction", known)
    return OUTPUTS[letter.strip()]


def _attribute_error(
    document: TmvaDocument, element: XmlElement, name: str, expected: str
) -> WeightsError:
    text = element.attributes.get(name)
    return WeightsError(
        f"{name} of {element.name} does not fit",
        expected=expected,
        found="nothing" if text is None else repr(text[:60]),
        where=document.where(element),
    )


_METHODS = ("DL::", "DNN::")


def find_network(document: TmvaDocument) -> XmlElement:
    """Find the element whose children are the layers.

    Raises
    ------
    WeightsError
        The file is from another method, transforms its variables, or has no layers.
    """
    root = document.root
    weights = root if root.name == "Weights" else root.child("Weights")
    method = root.attributes.get("Method", "DL::")
    if not method.startswith(_METHODS):
        raise WeightsError(
            f"{document.path} is of another TMVA method",
            expected="DL, a deep network",
            found=repr(method[:60]),
        )
    if weights is None or not weights.children:
        raise WeightsError(
            f"{document.path} has no layers",
            expected="<Weights> with LSTMLayer, GRULayer, RNNLayer, ReshapeLayer or DenseLayer",
            found=f"the element {root.name[:60]!r}",
        )
    _check_transformations(document, root)
    depth = parse_whole_number(weights.attributes.get("NetDepth", str(len(weights.children))))
    if depth != len(weights.children):
        raise WeightsError(
            f"{document.path} does not hold the layers that it declares",
            expected=f"NetDepth {weights.attributes['NetDepth'][:20]}",
            found=counted(len(weights.children), "layer"),
            where=document.where(weights),
        )
    return weights


def _check_transformations(document: TmvaDocument, root: XmlElement) -> None:
    """Refuse a network that reads transformed variables, which are not those of the data."""
    element = root.child("Transformations")
    if element is None:
        return
    names = [child.attributes.get("Name", "?") for child in element.children]
    count = element.attributes.get("NTransformations", str(len(names))).strip()
    if not names and count == "0":
        return
    raise WeightsError(
        "the network reads transformed variables, which lstm-cli does not transform",
        expected="NTransformations 0",
        found=f"{count[:20]}: " + ", ".join(repr(name[:40]) for name in names[:10]),
        where=document.where(element),
        hint="transform the data as TMVA did and remove <Transformations> from the file, or "
        "train with VarTransform=None",
    )


def format_title(document: TmvaDocument) -> str:
    """Format in words, with the version of ROOT where the file states it."""
    release = _info_value(document, "ROOT Release").split("[")[0].strip()
    if release.isascii() and release.isprintable() and release:
        return f"TMVA XML of ROOT {release[:20]}"
    return "TMVA XML"


def known_writer_order(document: TmvaDocument) -> TmvaOrder | None:
    """Order of the matrices by a known writer: lstm-cli writes them as today's ROOT."""
    return "slots" if _info_value(document, "Creator").startswith("lstm-cli ") else None


def _info_value(document: TmvaDocument, name: str) -> str:
    general = document.root.child("GeneralInfo")
    for info in general.children if general is not None else []:
        if info.attributes.get("name") == name:
            return info.attributes.get("value", "")
    return ""


_LOSSES = {"C": "cross-entropy", "R": "sum of squares", "S": "softmax cross-entropy"}


def training_notes(element: XmlElement) -> list[str]:
    """Notes on settings that only training needs."""
    loss = element.attributes.get("LossFunction", "").strip()
    decay = element.attributes.get("WeightDecay", "0").strip()
    rule = element.attributes.get("Regularization", "0").strip()
    parts = [f"the loss {_LOSSES[loss]}"] if loss in _LOSSES else []
    if rule in ("1", "2"):
        parts.append(f"L{rule} regularization of {decay[:20]!r}")
    return [f"left out, as only training needs it: {', '.join(parts)}"] if parts else []
