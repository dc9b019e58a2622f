"""Everything around the layers in a TMVA file: method, options, variables, classes.

The first half of the file reads it, the second half writes it as ROOT expects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from lstm_cli.engines.types import DenseSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.interchange import TmvaOrder
from lstm_cli.formats.tmva.document import TmvaDocument, XmlElement, parse_whole_number
from lstm_cli.output_files import SIGNATURE

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


_CODES = {
    "identity": "LINEAR",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "tanh": "TANH",
    "symmrelu": "SYMMRELU",
    "softsign": "SOFTSIGN",
    "gauss": "GAUSS",
}
_ANALYSES = {
    "S": ("Classification", "CROSSENTROPY", "C"),
    "M": ("Multiclass", "MUTUALEXCLUSIVE", "S"),
    "I": ("Regression", "SUMOFSQUARES", "R"),
}
"""Analysis, error strategy and loss by output function."""


@dataclass(frozen=True)
class TmvaNetwork:
    """Network in a form that TMVA supports.

    Attributes
    ----------
    output
        Letter of the output function.
    """

    name: str
    input_size: int
    steps: int
    layers: tuple[LayerSpec, ...]
    output: str


def tag_text(tag: str, end: str = "", /, **attributes: object) -> str:
    """Start tag ``<tag key="value">``; with `end` ``/`` an element without content."""
    texts = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{tag}{texts}{end}>"


def file_bytes(plan: TmvaNetwork, body: list[str]) -> bytes:
    """Bytes of the file: the layers `body` inside ``Weights`` inside ``MethodSetup``."""
    name = re.sub(r"[^0-9A-Za-z_.-]", "_", plan.name) or "network"
    lines = [
        '<?xml version="1.0"?>',
        tag_text("MethodSetup", Method=f"DL::{name}"),
        *_general_lines(plan),
        *_option_lines(plan),
        *_variable_lines(plan),
        *_result_lines(plan),
        tag_text("Transformations", "/", NTransformations=0),
        "<MVAPdfs/>",
        _weights_tag(plan, sum(text.startswith(_LAYERS) for text in body)),
        *body,
        "</Weights>",
        "</MethodSetup>",
        "",
    ]
    return "\n".join(lines).encode("ascii")


_LAYERS = ("<LSTMLayer", "<GRULayer", "<RNNLayer", "<ReshapeLayer", "<DenseLayer")


def _weights_tag(plan: TmvaNetwork, depth: int) -> str:
    D, T = plan.input_size, plan.steps
    return tag_text(
        "Weights",
        NetDepth=depth,
        InputDepth=1,
        InputHeight=T,
        InputWidth=D,
        BatchSize=1,
        BatchDepth=1,
        BatchHeight=T,
        BatchWidth=D,
        LossFunction=_ANALYSES[plan.output][2],
        Initialization="F",
        Regularization="0",
        OutputFunction=plan.output,
        WeightDecay="0.0000000000000000e+00",
    )


def _general_lines(plan: TmvaNetwork) -> Iterator[str]:
    yield "<GeneralInfo>"
    infos = {"Creator": SIGNATURE, "AnalysisType": _ANALYSES[plan.output][0]}
    for name, value in infos.items():
        yield tag_text("Info", "/", name=name, value=value)
    yield "</GeneralInfo>"


def _option_lines(plan: TmvaNetwork) -> Iterator[str]:
    T, D = plan.steps, plan.input_size
    yield "<Options>"
    options = {
        "VarTransform": "None",
        "ErrorStrategy": _ANALYSES[plan.output][1],
        "InputLayout": f"1|{T}|{D}",
        "BatchLayout": f"1|{T}|{D}",
        "Layout": ",".join(_layout(plan)),
        "WeightInitialization": "XAVIERUNIFORM",
        "Architecture": "CPU",
    }
    for name, value in options.items():
        yield f"{tag_text('Option', name=name, modified='Yes')}{escape(value)}</Option>"
    yield "</Options>"


def _layout(plan: TmvaNetwork) -> Iterator[str]:
    """Layers in the words of TMVA's layout option."""
    for spec in plan.layers:
        if isinstance(spec, RecurrentSpec):
            parts = [spec.kind.upper(), spec.hidden_size, spec.input_size, plan.steps]
            parts += [int(spec.stateful), int(spec.return_sequences)]
            if spec.kind == "gru":
                parts.append(int(getattr(spec.cells[0], "reset_after", False)))
            yield "|".join(map(str, parts))
            if not spec.return_sequences:
                yield "RESHAPE|FLAT"
        elif isinstance(spec, FlattenSpec):
            yield "RESHAPE|FLAT"
        elif isinstance(spec, DenseSpec):
            yield f"DENSE|{spec.units}|{_CODES.get(spec.activation_name, 'LINEAR')}"


def _variable_lines(plan: TmvaNetwork) -> Iterator[str]:
    """One variable for each step and feature, in the order of TMVA's inputs."""
    yield tag_text("Variables", NVar=plan.steps * plan.input_size)
    for t in range(plan.steps):
        for d in range(plan.input_size):
            name = f"vars_time{t}[{d}]"
            index = t * plan.input_size + d
            yield tag_text("Variable", "/", **_variable_attributes("VarIndex", index, name))
    yield "</Variables>"
    yield tag_text("Spectators", "/", NSpec=0)


def _variable_attributes(key: str, index: int, name: str) -> dict[str, object]:
    texts = dict.fromkeys(("Expression", "Label", "Title"), name)
    internal = name.replace("[", "_").rstrip("]")
    return {
        key: index, **texts, "Unit": "", "Internal": internal, "Type": "F", "Min": 0, "Max": 0
    }  # fmt: skip


def _result_lines(plan: TmvaNetwork) -> Iterator[str]:
    units = plan.layers[-1].output_size
    if plan.output == "I":
        yield tag_text("Targets", NTrgt=units)
        for k in range(units):
            yield tag_text("Target", "/", **_variable_attributes("TargetIndex", k, f"target{k}"))
        yield "</Targets>"
        return
    names = ["Signal", "Background"]
    if plan.output == "M":
        names = [f"Class{k}" for k in range(units)]
    yield tag_text("Classes", NClass=len(names))
    for k, name in enumerate(names):
        yield tag_text("Class", "/", Name=name, Index=k)
    yield "</Classes>"
