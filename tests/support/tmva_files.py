"""TMVA's weights files, written by hand as both of its writers do, and evaluated in NumPy.

Nothing here uses the package: elements and equations are written out independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Element, matrix in it by today's writer, matrix in it by the older writer.
LSTM = [
    ("InputWeights", "W_i", "W_i"),
    ("InputStateWeights", "W_f", "U_i"),
    ("InputBiases", "b_i", "b_i"),
    ("ForgetWeights", "W_g", "W_f"),
    ("ForgetStateWeights", "W_o", "U_f"),
    ("ForgetBiases", "b_f", "b_f"),
    ("CandidateWeights", "U_i", "W_g"),
    ("CandidateStateWeights", "U_f", "U_g"),
    ("CandidateBiases", "b_g", "b_g"),
    ("OuputWeights", "U_g", "W_o"),
    ("OutputStateWeights", "U_o", "U_o"),
    ("OutputBiases", "b_o", "b_o"),
]
GRU = [
    ("ResetWeights", "W_r", "W_r"),
    ("ResetStateWeights", "W_u", "U_r"),
    ("ResetBiases", "b_r", "b_r"),
    ("UpdateWeights", "W_c", "W_u"),
    ("UpdateStateWeights", "U_r", "U_u"),
    ("UpdateBiases", "b_u", "b_u"),
    ("CandidateWeights", "U_u", "W_c"),
    ("CandidateStateWeights", "U_c", "U_c"),
    ("CandidateBiases", "b_c", "b_c"),
]
RNN = [("InputWeights", "W_h", "W_h"), ("StateWeights", "U_h", "U_h"), ("Biases", "b_h", "b_h")]
DENSE = [("Weights", "W", "W"), ("Biases", "b", "b")]
TABLES = {"LSTMLayer": LSTM, "GRULayer": GRU, "RNNLayer": RNN, "DenseLayer": DENSE}

FUNCTIONS = [
    lambda x: x,
    lambda x: np.maximum(x, 0),
    lambda x: sigmoid(x),
    np.tanh,
    np.abs,
    lambda x: x / (1 + np.abs(x)),
    lambda x: np.exp(-(x**2)),
]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@dataclass
class Layer:
    """Layer: name and attributes of its element, and its matrices by their meaning."""

    tag: str
    attributes: dict[str, Any]
    matrices: dict[str, Array] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def xml(self, writer: str, digits: int) -> str:
        lines = [f"<{self.tag}{_attributes(self.attributes)}>"]
        for element, today, older in TABLES.get(self.tag, []):
            values = self.matrices[today if writer == "slots" else older]
            name = self.renamed.get(element, element)
            sizes = _attributes({"Rows": values.shape[0], "Columns": values.shape[1]})
            text = "".join(f"{value:.{digits}e}  " for value in values.ravel())
            lines.append(f"<{name}{sizes}>{text}\n</{name}>")
        return "\n".join([*lines, f"</{self.tag}>"])


def _attributes(values: Mapping[str, Any]) -> str:
    return "".join(f' {key}="{value}"' for key, value in values.items())


def recurrent(
    tag: str, D: int, H: int, T: int, rng: np.random.Generator, **attributes: Any
) -> Layer:
    """Recurrent layer with random weights; `attributes` replace the usual ones."""
    letters = {"LSTMLayer": "ifgo", "GRULayer": "ruc", "RNNLayer": "h"}[tag]
    matrices = {}
    for letter in letters:
        matrices[f"W_{letter}"] = rng.normal(size=(H, D)) / np.sqrt(D)
        matrices[f"U_{letter}"] = rng.normal(size=(H, H)) / np.sqrt(H)
        matrices[f"b_{letter}"] = rng.normal(size=(H, 1))
    usual: dict[str, Any] = {"StateSize": H}
    if tag == "LSTMLayer":
        usual["CellSize"] = H
    usual |= {"InputSize": D, "TimeSteps": T, "RememberState": 0, "ReturnSequence": 1}
    if tag == "GRULayer":
        usual["ResetGateAfter"] = 0
    return Layer(tag, usual | attributes, matrices)


def dense(inputs: int, width: int, function: int, rng: np.random.Generator) -> Layer:
    matrices = {"W": rng.normal(size=(width, inputs)) / np.sqrt(inputs)}
    matrices["b"] = rng.normal(size=(width, 1))
    return Layer("DenseLayer", {"Width": width, "ActivationFunction": function}, matrices)


def flat(width: int) -> Layer:
    return Layer("ReshapeLayer", {"Depth": 1, "Height": 1, "Width": width, "Flattening": 1})


def text(
    layers: Sequence[Layer],
    *,
    writer: str = "slots",
    shape: tuple[int, int] | None = None,
    output: str = "I",
    digits: int = 16,
    bare: bool = False,
    around: str = '<Transformations NTransformations="0"/>',
    **attributes: Any,
) -> str:
    """A whole file; `shape` is (T, D), `around` stands in front of the weights."""
    usual: dict[str, Any] = {"NetDepth": len(layers)}
    if shape is not None:
        usual |= {"InputDepth": 1, "InputHeight": shape[0], "InputWidth": shape[1]}
        usual |= {"BatchSize": 100, "BatchDepth": 100, "BatchHeight": shape[0]}
        usual |= {"BatchWidth": shape[1], "LossFunction": "C", "Initialization": "F"}
        usual |= {"Regularization": 0, "WeightDecay": "0.0000000000000000e+00"}
    usual |= {"OutputFunction": output} | attributes
    body = "\n".join(layer.xml(writer, digits) for layer in layers)
    weights = f"<Weights{_attributes(usual)}>\n{body}\n</Weights>"
    if bare:
        return weights
    return f"""<?xml version="1.0"?>
<MethodSetup Method="DL::TMVA_LSTM">
<GeneralInfo>
<Info name="TMVA Release" value="4.2.1 [262657]"/>
<Info name="ROOT Release" value="6.30/02 [400898]"/>
</GeneralInfo>
<Options><Option name="V" modified="No">False</Option></Options>
<Variables NVar="1"><Variable VarIndex="0" Expression="a &lt; b" Min="0" Max="1"/></Variables>
{around}
<MVAPdfs/>
{weights}
</MethodSetup>
"""


def write(path: Path, layers: Sequence[Layer], **options: Any) -> Path:
    path.write_text(text(layers, **options))
    return path


def evaluate(layers: Sequence[Layer], x: Array, output: str = "I") -> Array:
    """TMVA's outputs for events x (N, T, D)."""
    for layer in layers:
        m, a = layer.matrices, layer.attributes
        if layer.tag == "LSTMLayer":
            x = _returned(_lstm(m, x), a)
        elif layer.tag == "GRULayer":
            x = _returned(_gru(m, x, a.get("ResetGateAfter", 0)), a)
        elif layer.tag == "RNNLayer":
            x = _returned(_rnn(m, x), a)
        elif layer.tag == "ReshapeLayer":
            x = x.reshape(len(x), -1)
        else:
            x = FUNCTIONS[a["ActivationFunction"]](x @ m["W"].T + m["b"].ravel())
    if output == "S":
        return sigmoid(x)
    if output == "M":
        powers = np.exp(x)
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    return x


def _returned(steps: Array, attributes: Mapping[str, Any]) -> Array:
    return steps if attributes.get("ReturnSequence", 1) else steps[:, -1]


def _a(m: Mapping[str, Array], gate: str, x: Array, h: Array) -> Array:
    return np.asarray(x @ m[f"W_{gate}"].T + h @ m[f"U_{gate}"].T + m[f"b_{gate}"].ravel())


def _lstm(m: Mapping[str, Array], x: Array) -> Array:
    h = c = np.zeros((len(x), len(m["b_i"])))
    steps = []
    for t in range(x.shape[1]):
        i, f, o = (sigmoid(_a(m, gate, x[:, t], h)) for gate in "ifo")
        c = f * c + i * np.tanh(_a(m, "g", x[:, t], h))
        h = o * np.tanh(c)
        steps.append(h)
    return np.stack(steps, axis=1)


def _gru(m: Mapping[str, Array], x: Array, after: int) -> Array:
    h = np.zeros((len(x), len(m["b_r"])))
    steps = []
    for t in range(x.shape[1]):
        r, u = (sigmoid(_a(m, gate, x[:, t], h)) for gate in "ru")
        past = r * (h @ m["U_c"].T) if after else (r * h) @ m["U_c"].T
        candidate = np.tanh(x[:, t] @ m["W_c"].T + past + m["b_c"].ravel())
        h = u * h + (1 - u) * candidate
        steps.append(h)
    return np.stack(steps, axis=1)


def _rnn(m: Mapping[str, Array], x: Array) -> Array:
    h = np.zeros((len(x), len(m["b_h"])))
    steps = []
    for t in range(x.shape[1]):
        h = np.tanh(_a(m, "h", x[:, t], h))
        steps.append(h)
    return np.stack(steps, axis=1)
