"""Losses and gradients of random ragged stacks against PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import Array, random_inputs, random_lengths, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, LayerSpec, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion
from lstm_cli.training.targets import TargetFormat

torch = pytest.importorskip("torch")

N, T, D, H, F = 6, 7, 4, 5, 3
PASS = TrainingPass()
TOLERANCES = {"float32": 2e-4, "float64": 1e-10}
LENGTHS = np.maximum(random_lengths(N, T, seed=3), 1)  # PyTorch packs no empty sequence


class Twin(torch.nn.Module):
    """A stack in PyTorch, in float64, with native weights."""

    def __init__(self, specs: list[LayerSpec], weights: dict[str, Array]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        self.names: list[dict[str, str]] = []
        for spec in specs:
            if isinstance(spec, DenseSpec):
                sizes = spec.input_size, spec.units
                layer = torch.nn.Linear(*sizes, bias=spec.bias, dtype=torch.float64)
                names = {p.name: native for native, p in spec.parameters().items()}
            else:
                layer, names = self._recurrent(spec)
            with torch.no_grad():
                for own, native in names.items():
                    getattr(layer, own).copy_(torch.from_numpy(weights[native]))
            self.layers.append(layer)
            self.names.append(names)

    @staticmethod
    def _recurrent(spec: Any) -> tuple[Any, dict[str, str]]:
        make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[spec.kind]
        cell = spec.cells[0]
        more = {"proj_size": cell.projection_size} if cell.projects else {}
        layer = make(
            spec.input_size, spec.hidden_size, bidirectional=spec.directions == 2,
            batch_first=True, dtype=torch.float64, bias=spec.bias, **more,
        )  # fmt: skip
        names = {}
        for d, suffix in enumerate(["", "_reverse"][: spec.directions]):
            for name in cell.tensor_names:
                own = {"bias": "bias_ih"}.get(name, name)
                names[f"{own}_l0{suffix}"] = spec.prefix(d) + name
            if "bias" in cell.tensor_names:
                torch.nn.init.zeros_(getattr(layer, f"bias_hh_l0{suffix}"))
        return layer, names

    def forward(self, x: Any, lengths: Array) -> Any:
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        for layer in self.layers:
            if isinstance(layer, torch.nn.Linear):
                x = layer(x)
                continue
            packed = pack(x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False)
            x = pad(layer(packed)[0], batch_first=True, total_length=T)[0]
        return x

    def gradients(self) -> dict[str, Array]:
        actual = {}
        for layer, names in zip(self.layers, self.names, strict=True):
            for own, native in names.items():
                actual[native] = getattr(layer, own).grad.numpy()
        return actual


STACKS: dict[str, list[LayerSpec]] = {
    "lstm": [recurrent("lstm", H, D), DenseSpec(1, H, F, None)],
    "both directions": [recurrent("lstm", H, D, directions=2), DenseSpec(1, 2 * H, F, None)],
    "projection": [
        recurrent("lstm", H, D, directions=2, projection_size=2),
        recurrent("lstm", 4, 4, index=1, projection_size=3),
        DenseSpec(2, 3, F, None),
    ],
    "no biases": [
        recurrent("lstm", H, D, directions=2, bias=False),
        recurrent("gru", 4, 2 * H, index=1, bias=False),
        recurrent("rnn", 6, 4, index=2, bias=False),
        DenseSpec(3, 6, F, None, bias=False),
    ],
    "three kinds": [
        recurrent("gru", H, D, directions=2),
        recurrent("rnn", 4, 2 * H, index=1),
        recurrent("lstm", 6, 4, index=2, directions=2),
        DenseSpec(3, 12, F, None),
    ],
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted and smoothed"])
def test_cross_entropy_per_step(stack: str, weighted: bool, engine: Engine) -> None:
    specs = STACKS[stack]
    weights = random_weights(specs, seed=2)
    x = random_inputs(N, T, D)
    classes = np.random.default_rng(1).integers(0, F, (N, T))
    class_weights = [0.5, 2.0, 1.3] if weighted else None
    smoothing = 0.15 if weighted else 0.0
    criterion = Criterion(
        TargetFormat("cross_entropy", True, F, "targets"), class_weights, smoothing
    )
    net = Network(specs, weights, engine)
    tape = backpropagation.forward(net, x, LENGTHS, None, PASS)
    loss = criterion(tape.outputs, tape.logits, classes, LENGTHS)
    actual = backpropagation.backward(net, tape, loss.gradient, d_logits=True)

    twin = Twin(specs, weights)
    inputs = torch.from_numpy(x).requires_grad_()
    logits = twin(inputs, LENGTHS)
    valid = torch.from_numpy(np.arange(T) < LENGTHS[:, None])
    own = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(
        logits[valid], torch.from_numpy(classes)[valid], weight=own, label_smoothing=smoothing
    )
    expected.backward()
    tolerance = TOLERANCES[engine.dtype]
    assert loss.value == pytest.approx(expected.item(), abs=tolerance)
    assert actual.weights.keys() == twin.gradients().keys() == weights.keys()
    for name, value in twin.gradients().items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(actual.weights[name], value, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(actual.inputs, inputs.grad.numpy(), atol=tolerance)


REGRESSION = {
    "mse": torch.nn.functional.mse_loss,
    "mae": torch.nn.functional.l1_loss,
    "huber": torch.nn.functional.huber_loss,
    "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("loss_name", REGRESSION)
def test_losses_of_values(loss_name: str, engine: Engine) -> None:
    activation = Activation("sigmoid" if loss_name == "binary_cross_entropy" else "identity")
    specs = [recurrent("lstm", H, D), DenseSpec(1, H, F, activation)]
    weights = {name: 2 * value for name, value in random_weights(specs, seed=4).items()}
    x = random_inputs(N, T, D)
    values = np.random.default_rng(1).random((N, T, F)) * (3 if loss_name == "huber" else 1)
    criterion = Criterion(TargetFormat(loss_name, True, F, "targets"))
    net = Network(specs, weights, engine)
    tape = backpropagation.forward(net, x, LENGTHS, None, PASS)
    loss = criterion(tape.outputs, tape.logits, values, LENGTHS)
    actual = backpropagation.backward(net, tape, loss.gradient, d_logits=criterion.fused)

    twin = Twin(specs, weights)
    valid = torch.from_numpy(np.arange(T) < LENGTHS[:, None])
    outputs = twin(torch.from_numpy(x), LENGTHS)[valid]
    expected = REGRESSION[loss_name](outputs, torch.from_numpy(values)[valid])
    expected.backward()
    assert loss.value == pytest.approx(expected.item(), abs=TOLERANCES[engine.dtype])
    for name, value in twin.gradients().items():
        atol = TOLERANCES[engine.dtype]
        np.testing.assert_allclose(actual.weights[name], value, atol=atol, err_msg=name)


F_ = torch.nn.functional
KINKS: dict[str, tuple[Activation, float | None, Any]] = {
    "relu": (Activation("relu"), None, F_.relu),
    "leaky_relu": (Activation("leaky_relu", 0.3), None, lambda x: F_.leaky_relu(x, 0.3)),
    "elu": (Activation("elu", 0.7), None, lambda x: F_.elu(x, 0.7)),
    "hard_sigmoid": (Activation("hard_sigmoid", 1 / 4), None, lambda x: F_.hardsigmoid(1.5 * x)),
    "relu1": (Activation("hard_sigmoid", 1, 0), None, lambda x: F_.hardtanh(x, 0.0, 1.0)),
    "thresholded_relu": (Activation("thresholded_relu"), None, lambda x: F_.threshold(x, 1.0, 0.0)),
    "symmrelu": (Activation("symmrelu"), None, torch.abs),
    "softsign": (Activation("softsign"), None, F_.softsign),
    "softplus": (Activation("softplus"), None, F_.softplus),
    "clip": (Activation("identity"), 1.0, lambda x: torch.clamp(x, -1.0, 1.0)),
}
POINTS = np.array([-3.0, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0])
"""Among them every kink, where pre-activations are exact."""


@pytest.mark.parametrize("where", ["rnn", "dense"])
@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_kinks(name: str, where: str, engine: Engine) -> None:
    activation, clip, function = KINKS[name]
    if where == "dense" and clip is not None:
        return  # dense layers have no clip
    spec: LayerSpec = DenseSpec(0, 1, 1, activation)
    if where == "rnn":
        spec = recurrent("rnn", 1, 1, activation=activation, clip=clip)
    weights = {key: np.zeros(tensor.shape) for key, tensor in spec.parameters().items()}
    weights["layers.0.weight" if where == "dense" else "layers.0.weight_ih"][:] = 1
    net = Network([spec], weights, engine)
    tape = backpropagation.forward(net, POINTS[:, None, None], None, None, PASS)
    actual = backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    inputs = torch.from_numpy(POINTS.copy()).requires_grad_()
    function(inputs).sum().backward()
    expected, tolerance = inputs.grad.numpy(), TOLERANCES[engine.dtype]
    np.testing.assert_allclose(actual.inputs.ravel(), expected, atol=tolerance)
