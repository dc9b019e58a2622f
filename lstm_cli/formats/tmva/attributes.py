"""Attributes of elements: sizes, switches and codes, each checked."""

from __future__ import annotations

from lstm_cli.errors import WeightsError
from lstm_cli.formats.tmva.document import LARGEST_SIZE, Document, Element, whole_number

ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh", "symmrelu", "softsign", "gauss")
"""By TMVA's code."""
FAST_TANH = 7
OUTPUTS = {"I": "identity", "S": "sigmoid", "M": "softmax"}
"""TMVA's output functions, applied to what the last layer gives."""


def size(document: Document, element: Element, name: str) -> int | None:
    """A size that an element declares, or None.

    Raises
    ------
    WeightsError
        It is no size.
    """
    text = element.attributes.get(name)
    if text is None:
        return None
    value = whole_number(text)
    if value is None or not 1 <= value <= LARGEST_SIZE:
        raise _unfit(document, element, name, f"1 to {LARGEST_SIZE:,}")
    return value


def declared(document: Document, element: Element, name: str, found: int, what: str) -> None:
    """Make sure that an attribute, where it is given, says what was found.

    Raises
    ------
    WeightsError
        It says otherwise.
    """
    said = size(document, element, name)
    if said not in (None, found):
        raise _unfit(document, element, name, f"{found}, {what}")


def switch(document: Document, element: Element, name: str) -> bool | None:
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


def activation(document: Document, layer: Element) -> tuple[str, bool]:
    """A dense layer's activation, and whether its name is another one than TMVA's.

    Raises
    ------
    WeightsError
        Missing, or a code that is not known.
    """
    code = whole_number(layer.attributes.get("ActivationFunction", ""))
    if code == FAST_TANH:
        return "tanh", True
    if code is None or code >= len(ACTIVATIONS):
        codes = ", ".join(f"{k} {name}" for k, name in enumerate(ACTIVATIONS))
        raise _unfit(document, layer, "ActivationFunction", codes)
    return ACTIVATIONS[code], False


def output_function(document: Document, network: Element) -> str | None:
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


def _unfit(document: Document, element: Element, name: str, expected: str) -> WeightsError:
    text = element.attributes.get(name)
    return WeightsError(
        f"{name} of {element.name} does not fit",
        expected=expected,
        found="nothing" if text is None else repr(text[:60]),
        where=document.where(element),
    )
