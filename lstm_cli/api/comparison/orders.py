"""Orders of gates: which framework has which, and how a difference of orders is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lstm_cli.formats.gates import NATIVE_GATES

FRAMEWORKS: dict[str, dict[tuple[str, ...], str]] = {
    "lstm": {
        ("i", "o", "f", "g"): "ONNX",
        ("i", "g", "f", "o"): "TF1 and CNTK",
        ("i", "f", "o", "g"): "Core ML",
        ("i", "o", "f"): "ONNX",  # of peepholes
    },
    "gru": {("z", "r", "n"): "ONNX and Keras"},
}
"""By kind of layer: orders in native letters. PyTorch, Keras and MXNet have an lstm's as here,
PyTorch a gru's. TF1 calls the candidate j, Keras and ONNX c."""


@dataclass(frozen=True)
class OrderName:
    """What an order is called.

    Attributes
    ----------
    framework
        Whose it is; None if nobody's.
    undone
        The framework whose order, taken for granted where it was not, gives this one.
    text
        Such as ``ONNX order i, o, f, g`` or ``the order o, i, f, g``.
    """

    framework: str | None
    undone: str | None
    text: str


def named(kind: str, order: Sequence[str]) -> OrderName:
    """The name of an order of a layer's gates, in native letters."""
    known, letters = FRAMEWORKS.get(kind, {}), ", ".join(order)
    framework = known.get(tuple(order))
    if framework is not None:
        return OrderName(framework, None, f"{framework} order {letters}")
    undone = known.get(inverse(kind, order))
    return OrderName(None, undone, f"the order {letters}")


def inverse(kind: str, order: Sequence[str]) -> tuple[str, ...]:
    """The order that undoes this one: what native gates become if they are taken for it."""
    native = tuple(letter for letter in NATIVE_GATES[kind] if letter in order)
    return tuple(native[tuple(order).index(letter)] for letter in native)
