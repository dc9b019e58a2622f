"""Envelope of a written TMVA file as ROOT expects it: method, options, variables, classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from lstm_cli.engines.types import DenseSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.output_files import SIGNATURE

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
