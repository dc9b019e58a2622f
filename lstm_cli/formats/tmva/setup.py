"""What stands around the layers: the method, its version, transformations, training."""

from __future__ import annotations

from lstm_cli.errors import WeightsError
from lstm_cli.formats.model import TmvaOrder
from lstm_cli.formats.tmva.document import Document, Element, whole_number

_METHODS = ("DL::", "DNN::")


def network(document: Document) -> Element:
    """The element whose children are the layers.

    Raises
    ------
    WeightsError
        Another method's file, a network behind transformations, or no layers.
    """
    root = document.root
    found = root if root.name == "Weights" else root.child("Weights")
    method = root.attributes.get("Method", "DL::")
    if not method.startswith(_METHODS):
        raise WeightsError(
            f"{document.path} is of another TMVA method",
            expected="DL, a deep network",
            found=repr(method[:60]),
        )
    if found is None or not found.children:
        raise WeightsError(
            f"{document.path} has no layers",
            expected="<Weights> with LSTMLayer, GRULayer, RNNLayer, ReshapeLayer or DenseLayer",
            found=f"the element {root.name[:60]!r}",
        )
    _check_transformations(document, root)
    depth = whole_number(found.attributes.get("NetDepth", str(len(found.children))))
    if depth != len(found.children):
        raise WeightsError(
            f"{document.path} does not hold the layers that it declares",
            expected=f"NetDepth {found.attributes['NetDepth'][:20]}",
            found=f"{len(found.children)} layers",
            where=document.where(found),
        )
    return found


def _check_transformations(document: Document, root: Element) -> None:
    """Inputs that were transformed before they reached the network are not those of the data."""
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


def title(document: Document) -> str:
    """The format, with the version that wrote the file where it says so."""
    release = _info(document, "ROOT Release").split("[")[0].strip()
    if release.isascii() and release.isprintable() and release:
        return f"TMVA XML of ROOT {release[:20]}"
    return "TMVA XML"


def known_writer(document: Document) -> TmvaOrder | None:
    """How the program that wrote the file orders matrices: lstm-cli does it as today's ROOT."""
    return "slots" if _info(document, "Creator").startswith("lstm-cli ") else None


def _info(document: Document, name: str) -> str:
    general = document.root.child("GeneralInfo")
    for info in general.children if general is not None else []:
        if info.attributes.get("name") == name:
            return info.attributes.get("value", "")
    return ""


_LOSSES = {"C": "cross-entropy", "R": "sum of squares", "S": "softmax cross-entropy"}


def training_notes(element: Element) -> list[str]:
    """What only training needs, and is left out."""
    loss = element.attributes.get("LossFunction", "").strip()
    decay = element.attributes.get("WeightDecay", "0").strip()
    rule = element.attributes.get("Regularization", "0").strip()
    parts = [f"the loss {_LOSSES[loss]}"] if loss in _LOSSES else []
    if rule in ("1", "2"):
        parts.append(f"L{rule} regularisation of {decay[:20]!r}")
    return [f"left out, as only training needs it: {', '.join(parts)}"] if parts else []
