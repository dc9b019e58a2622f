"""Hypothesis strategies: random cells, layers and stacks."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from networks import KINDS, parametrized, recurrent

from lstm_cli.cells import Cell
from lstm_cli.engines.types import DenseSpec, LayerSpec

GATES = ("sigmoid", "hard_sigmoid", "softsign", "gauss")
VALUES = ("tanh", "scaled_tanh", "softsign", "sigmoid", "gauss", "hard_sigmoid")
"""Bounded activations: values must not grow, or rounding would."""

sizes = st.integers(1, 9)


@st.composite
def options(draw: st.DrawFn, kind: str, names: tuple[str, ...] = VALUES) -> dict[str, Any]:
    """Options of a cell of this kind, every one of them taken or left."""
    found: dict[str, Any] = {"activation": parametrized(draw(st.sampled_from(names)))}
    found["clip"] = draw(st.none() | st.sampled_from([0.2, 0.9, 3.0]))
    if kind != "rnn":
        found["recurrent_activation"] = parametrized(draw(st.sampled_from(GATES)))
    if kind == "gru":
        found["reset_after"] = draw(st.booleans())
    if kind == "lstm":
        found["cell_activation"] = parametrized(draw(st.sampled_from(names)))
        found["peepholes"] = draw(st.booleans())
        found["projection_size"] = draw(st.none() | sizes)
        forget = draw(st.sampled_from(["plain", "coupled", "none"]))
        found["coupled_input_forget"] = forget == "coupled"
        found["use_forget_gate"] = forget != "none"
    return found


@st.composite
def cells(draw: st.DrawFn, names: tuple[str, ...] = VALUES) -> Cell:
    """Any cell with any options."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    return KINDS[kind](hidden_size=draw(sizes), **draw(options(kind, names)))


@st.composite
def stacks(draw: st.DrawFn, *, most_directions: int = 2) -> list[LayerSpec]:
    """One to three recurrent layers, perhaps the last step only, perhaps a dense layer on top."""
    specs: list[LayerSpec] = []
    features, count = draw(sizes), draw(st.integers(1, 3))
    last_only = draw(st.booleans())
    for index in range(count):
        kind = draw(st.sampled_from(sorted(KINDS)))
        specs.append(
            recurrent(
                kind, draw(sizes), features,
                index=index,
                directions=draw(st.integers(1, most_directions)),
                return_sequences=not (last_only and index == count - 1),
                bias=draw(st.booleans()),
                **draw(options(kind)),
            )
        )  # fmt: skip
        features = specs[-1].output_size
    if draw(st.booleans()):
        specs.append(DenseSpec(count, features, draw(sizes), None, draw(st.booleans())))
    return specs
