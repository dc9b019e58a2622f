"""Peers compute what the reference engine computes, or say why they do not."""

from contextlib import contextmanager

import numpy as np
import pytest
from peer_layers import RECURRENT_LAYERS, SIZE, D, H, installed_peer, recurrent

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.errors import DeviceError, UsageError
from lstm_cli.network.network import Network
from lstm_cli.workflows.bench import PEERS, ComputeSetting, GridSize, Unsupported, peer
from lstm_cli.workflows.bench.agreement import output_agreement
from lstm_cli.workflows.bench.sizes import random_inputs, random_weights
from lstm_cli.workflows.bench.workload import OUTPUT_TOLERANCES

RELU, SIGMOID, TANH = (Activation(name) for name in ("relu", "sigmoid", "tanh"))


BOTH = {
    **RECURRENT_LAYERS,
    "a stack that ends in softmax": (
        RecurrentSpec(0, D, (LSTM(hidden_size=H),) * 2),
        DropoutSpec(1, 2 * H, 0.5),
        RecurrentSpec(2, 2 * H, (GRU(hidden_size=3),)),
        DenseSpec(3, 3, 6, TANH),
        RecurrentSpec(4, 6, (RNN(hidden_size=5),), return_sequences=False),
        DenseSpec(5, 5, 9, None),
    ),
    "dense on every step": (*recurrent(LSTM(hidden_size=H)), DenseSpec(1, H, 3, SIGMOID)),
    "no biases": (
        *recurrent(*[LSTM(hidden_size=H, bias=False)] * 2),
        RecurrentSpec(1, 2 * H, (GRU(hidden_size=3, bias=False),)),
        DenseSpec(2, 3, 2, TANH, bias=False),
    ),
    "flatten": (
        *recurrent(LSTM(hidden_size=H)),
        FlattenSpec(1, H, SIZE.steps),
        DenseSpec(2, H * SIZE.steps, 6, RELU),
        DenseSpec(3, 6, 2, Activation("identity")),
    ),
    "flatten, padded": (*recurrent(RNN(hidden_size=H)), FlattenSpec(1, H, SIZE.steps + 2)),
}

TORCH_ONLY = {
    "lstm, projected": recurrent(LSTM(hidden_size=H, projection_size=3)),
    "lstm, projected, both directions, last step": recurrent(
        *[LSTM(hidden_size=H, projection_size=3)] * 2, return_sequences=False
    ),
}

SHAPED = LSTM(
    hidden_size=H,
    recurrent_activation=Activation("hard_sigmoid", 0.3, 0.4),
    activation=Activation("softsign"),
    cell_activation=Activation("scaled_tanh", 1.2, 0.7),
)

ONNX_ONLY = {
    "peepholes": recurrent(LSTM(hidden_size=H, peepholes=True)),
    "peepholes, both directions": recurrent(*[LSTM(hidden_size=H, peepholes=True)] * 2),
    "clip": recurrent(LSTM(hidden_size=H, clip=0.3)),
    "gru, clip": recurrent(GRU(hidden_size=H, clip=0.3)),
    "coupled": recurrent(LSTM(hidden_size=H, coupled_input_forget=True)),
    "gru, reset before": recurrent(GRU(hidden_size=H, reset_after=False)),
    "lstm, other activations": recurrent(SHAPED),
    "lstm, other activations in reverse": recurrent(LSTM(hidden_size=H), SHAPED),
    "lstm, identity on its way out": recurrent(
        LSTM(hidden_size=H, cell_activation=Activation("identity"))
    ),
    "gru, other activations": recurrent(
        GRU(
            hidden_size=H,
            recurrent_activation=Activation("hard_sigmoid"),
            activation=Activation("elu", 0.6),
        )
    ),
    "rnn, a pair of activations": recurrent(
        RNN(hidden_size=H, activation=Activation("affine", 0.4, 0.1)), RNN(hidden_size=H)
    ),
    "dense softsign": (*recurrent(RNN(hidden_size=H)), DenseSpec(1, H, 3, Activation("softsign"))),
    "dense gauss": (*recurrent(RNN(hidden_size=H)), DenseSpec(1, H, 3, Activation("gauss"))),
}

CASES = [
    *(
        pytest.param("torch", layers, id=f"torch-{name}")
        for name, layers in (BOTH | TORCH_ONLY).items()
    ),
    *(
        pytest.param("onnxruntime", layers, id=f"onnxruntime-{name}")
        for name, layers in (BOTH | ONNX_ONLY).items()
    ),
]


def outputs(candidate, layers, dtype="float32", size=SIZE):
    """Outputs of a peer, and of the reference engine in float64."""
    weights, x = random_weights(layers, 3, dtype), random_inputs(layers, size, 3, dtype)
    with candidate.prepare(layers, weights, size, ComputeSetting(1, dtype=dtype)) as run:
        found = run(x)
    return found, Network(layers, weights, ReferenceEngine("float64")).run(x).outputs


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_a_peer_gives_what_the_reference_gives(name, layers):
    result, expected = outputs(installed_peer(name), layers)
    assert result.dtype == np.float32
    assert result.shape == expected.shape
    assert np.ptp(expected) > 0.05, "nothing to tell apart"
    assert output_agreement(expected, result, OUTPUT_TOLERANCES["float32"]).ok


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "size", [GridSize(7, 1, 5, 4), GridSize(7, 3, 1, 4), GridSize(7, 1, 1, 4)], ids=str
)
def test_one_sequence_and_one_step(name, size):
    for layers in (BOTH["lstm, both directions"], BOTH["gru, both directions, last step"]):
        found, expected = outputs(installed_peer(name), layers, size=size)
        assert found.shape == expected.shape
        assert output_agreement(expected, found, OUTPUT_TOLERANCES["float32"]).ok


@pytest.mark.parametrize("layers", [BOTH["lstm, both directions"], BOTH["flatten"]])
def test_pytorch_in_float64(layers):
    found, expected = outputs(installed_peer("torch"), layers, "float64")
    assert found.dtype == np.float64
    assert output_agreement(expected, found, OUTPUT_TOLERANCES["float64"]).ok


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("torch", ONNX_ONLY["peepholes"], "layer 0: torch.nn.LSTM has no peepholes: true"),
        ("torch", ONNX_ONLY["clip"], "clip"),
        ("torch", ONNX_ONLY["coupled"], "coupled_input_forget: true"),
        ("torch", ONNX_ONLY["gru, reset before"], "torch.nn.GRU has no reset_after: false"),
        ("torch", ONNX_ONLY["lstm, other activations"], "cell_activation: scaled_tanh"),
        ("torch", ONNX_ONLY["lstm, identity on its way out"], "cell_activation: identity"),
        ("torch", ONNX_ONLY["dense softsign"], "softsign"),
        ("torch", recurrent(LSTM(hidden_size=H, use_forget_gate=False)), "forget_gate: false"),
        ("torch", recurrent(LSTM(hidden_size=H, projection_size=H)), "projection_size"),
        (
            "torch",
            recurrent(RNN(hidden_size=H), RNN(hidden_size=H, activation=RELU)),
            "one kind of cell",
        ),
        ("onnxruntime", TORCH_ONLY["lstm, projected"], "layer 0: ONNX has no projection"),
        ("onnxruntime", recurrent(LSTM(hidden_size=H, use_forget_gate=False)), "forget gate"),
        ("onnxruntime", recurrent(RNN(hidden_size=H, activation=Activation("gauss"))), "gauss"),
    ],
)
def test_what_a_peer_cannot_express_is_said(name, layers, reason):
    with pytest.raises(Unsupported) as caught:
        outputs(installed_peer(name), layers)
    assert reason in str(caught.value)


def test_onnx_runtime_has_no_float64():
    with pytest.raises(Unsupported, match="float64"):
        outputs(installed_peer("onnxruntime"), BOTH["lstm"], "float64")


@pytest.mark.parametrize(("broken", "problem"), [(ValueError("no"), ValueError), (None, None)])
def test_pytorch_gets_its_threads_back(broken, problem):
    candidate = installed_peer("torch")
    import torch

    before = torch.get_num_threads()
    weights = random_weights(BOTH["lstm"], 0, "float32")
    other = before + 1

    @contextmanager
    def maybe():
        if problem is None:
            yield
        else:
            with pytest.raises(problem):
                yield

    with maybe(), candidate.prepare(BOTH["lstm"], weights, SIZE, ComputeSetting(other)):
        assert torch.get_num_threads() == other
        if broken:
            raise broken
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("name", "title"), [("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime")])
def test_a_peer_names_itself_with_its_version(name, title):
    result = installed_peer(name)
    assert result.name == name
    assert result.title == f"{title} {result.version}"
    assert result.version[0].isdigit()
    assert "+" not in result.version


@pytest.mark.parametrize(
    ("name", "guess"),
    [("pytorch", "torch"), ("onxruntime", "onnxruntime"), ("onnx", "onnxruntime")],
)
def test_an_unknown_peer_names_the_nearest(name, guess):
    with pytest.raises(UsageError, match=f"did you mean `{guess}`"):
        peer(name)


def test_a_peer_like_no_other_lists_them():
    with pytest.raises(UsageError, match="torch or onnxruntime") as caught:
        peer("abacus")
    assert caught.value.hints == ()


@pytest.mark.parametrize(
    ("name", "module", "hint"),
    [
        ("torch", "torch", "pip install torch"),
        ("onnxruntime", "onnxruntime", "pip install 'lstm-cli[test]'"),
    ],
)
def test_a_missing_package_says_how_to_get_it(monkeypatch, name, module, hint):
    def without(wanted):
        if wanted == module:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        return type("Package", (), {"__version__": "1.0"})

    monkeypatch.setattr("lstm_cli.workflows.bench.peers.base.import_module", without)
    with pytest.raises(DeviceError, match=f"package {module}, which is not installed") as caught:
        peer(name)
    assert caught.value.exit_code == 5
    assert caught.value.hints == (hint,)


@pytest.mark.parametrize(
    "error", [OSError("libtorch.so: no"), ModuleNotFoundError("No module 'sympy'", name="sympy")]
)
def test_a_broken_package_says_why(monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr("lstm_cli.workflows.bench.peers.base.import_module", fails)
    with pytest.raises(DeviceError, match="cannot be loaded") as caught:
        peer("torch")
    assert str(error) in str(caught.value)


def test_onnx_runtime_refusing_a_model_is_a_reason_not_a_crash(monkeypatch):
    candidate = installed_peer("onnxruntime")
    monkeypatch.setattr(
        "lstm_cli.workflows.bench.peers.onnxruntime_peer.build_model", lambda *_, **__: b"no model"
    )
    with pytest.raises(Unsupported, match="does not take the network"):
        outputs(candidate, BOTH["lstm"])
