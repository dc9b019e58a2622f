"""What stands around the layers in a file that ROOT reads: options, variables, classes, sizes."""

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
class Plan:
    """A network that TMVA has.

    Attributes
    ----------
    output
        The output function's letter.
    """

    name: str
    input_size: int
    steps: int
    layers: tuple[LayerSpec, ...]
    output: str


def line(tag: str, end: str = "", /, **attributes: object) -> str:
    """An element's beginning, ``<tag key="value">``; with `end` ``/`` all of it."""
    texts = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{tag}{texts}{end}>"


def framed(plan: Plan, body: list[str]) -> bytes:
    """The file: `body`, the layers, inside ``Weights`` inside ``MethodSetup``."""
    name = re.sub(r"[^0-9A-Za-z_.-]", "_", plan.name) or "network"
    lines = [
        '<?xml version="1.0"?>',
        line("MethodSetup", Method=f"DL::{name}"),
        *_general(plan),
        *_options(plan),
        *_variables(plan),
        *_results(plan),
        line("Transformations", "/", NTransformations=0),
        "<MVAPdfs/>",
        _weights(plan, sum(text.startswith(_LAYERS) for text in body)),
        *body,
        "</Weights>",
        "</MethodSetup>",
        "",
    ]
    return "\n".join(lines).encode("ascii")


_LAYERS = ("<LSTMLayer", "<GRULayer", "<RNNLayer", "<ReshapeLayer", "<DenseLayer")


def _weights(plan: Plan, depth: int) -> str:
    D, T = plan.input_size, plan.steps
    return line(
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


def _general(plan: Plan) -> Iterator[str]:
    yield "<GeneralInfo>"
    facts = {"Creator": SIGNATURE, "AnalysisType": _ANALYSES[plan.output][0]}
    for name, value in facts.items():
        yield line("Info", "/", name=name, value=value)
    yield "</GeneralInfo>"


def _options(plan: Plan) -> Iterator[str]:
    T, D = plan.steps, plan.input_size
    yield "<Options>"
    options = {
        "VarTransform": "None",
        "ErrorStrategy": _ANALYSES[plan.output][1],
        "InputLayout": f"1|{T}|{D}",
        "BatchLayout": f"1|{T}|{D}",
        "Layout": ",".join(_described(plan)),
        "WeightInitialization": "XAVIERUNIFORM",
        "Architecture": "CPU",
    }
    for name, value in options.items():
        yield f"{line('Option', name=name, modified='Yes')}{escape(value)}</Option>"
    yield "</Options>"


def _described(plan: Plan) -> Iterator[str]:
    """The layers in TMVA's layout strings."""
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


def _variables(plan: Plan) -> Iterator[str]:
    """One variable a step and feature, as a reader of the file must give them."""
    yield line("Variables", NVar=plan.steps * plan.input_size)
    for t in range(plan.steps):
        for d in range(plan.input_size):
            name = f"vars_time{t}[{d}]"
            index = t * plan.input_size + d
            yield line("Variable", "/", **_variable("VarIndex", index, name))
    yield "</Variables>"
    yield line("Spectators", "/", NSpec=0)


def _variable(key: str, index: int, name: str) -> dict[str, object]:
    texts = dict.fromkeys(("Expression", "Label", "Title"), name)
    internal = name.replace("[", "_").rstrip("]")
    return {
        key: index, **texts, "Unit": "", "Internal": internal, "Type": "F", "Min": 0, "Max": 0
    }  # fmt: skip


def _results(plan: Plan) -> Iterator[str]:
    units = plan.layers[-1].output_size
    if plan.output == "I":
        yield line("Targets", NTrgt=units)
        for k in range(units):
            yield line("Target", "/", **_variable("TargetIndex", k, f"target{k}"))
        yield "</Targets>"
        return
    names = ["Signal", "Background"]
    if plan.output == "M":
        names = [f"Class{k}" for k in range(units)]
    yield line("Classes", NClass=len(names))
    for k, name in enumerate(names):
        yield line("Class", "/", Name=name, Index=k)
    yield "</Classes>"
