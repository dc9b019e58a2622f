"""Training workloads: which peers are timed, and PyTorch's step against ours."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from peer_layers import RECURRENT_LAYERS, SIZE, D, H, recurrent

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.errors import ConfigError, DataError, TrainingError
from lstm_cli.training.losses import LOSSES
from lstm_cli.workflows.bench import (
    ComputeSetting,
    GridSize,
    SizeResult,
    measure,
    measurement,
    one_lstm,
    peer,
    without_dropout,
)
from lstm_cli.workflows.bench.protocol import Samples
from lstm_cli.workflows.bench.workload import TrainingWorkload

WEIGHTS = ("layers.0.weight_ih", "layers.0.weight_hh", "layers.0.bias")


def run(engine, *peers, layers_of=one_lstm, **options) -> SizeResult:
    (result,) = measure(
        [SIZE], layers_of, engine, peers, mode="train", rounds=3, seconds=0.01, **options
    )
    return result


def test_a_peer_that_trains_alike_is_timed_and_has_a_ratio(engine, fake_peer):
    twin = fake_peer("twin")
    result = run(engine, twin)
    assert result.mode == "train"
    assert result.layers == "lstm 4 → 7, mse"
    assert [t.title for t in result.timings] == ["lstm-cli (reference, float64)", "Fake twin"]
    assert result.ahead_of_best == result.ratios["twin"] > 0
    one = result.agreements["twin"]
    assert (one.difference, one.tolerance, one.ok) == (0.0, 1e-10, True)
    assert one.what.removeprefix("gradient of ") in WEIGHTS
    assert len(twin.calls) > 3
    assert not twin.open


def test_forward_is_what_is_measured_unless_said_otherwise(engine, fake_peer):
    (result,) = measure([SIZE], one_lstm, engine, [fake_peer()], rounds=1, seconds=0.001)
    assert result.mode == "forward"
    assert result.layers == "lstm 4 → 7"
    assert result.agreements["fake"].what == "outputs"


def test_the_rate_counts_three_times_the_forward_products(engine, monkeypatch):
    monkeypatch.setattr(measurement, "interleave", lambda *_: Samples(np.full((3, 1), 2.0), (1,)))
    products = 4 * H * (D + H) * 2 * 15
    assert run(engine).lstm_cli_timing.gflops == pytest.approx(3 * products / 2.0 / 1e9)


def with_one(name, change):
    """Twists one of the tensors."""
    return lambda found: found | {name: change(found[name])}


def gates_swapped(tensor):
    i, f, g, o = np.split(tensor, 4)
    return np.concatenate([f, i, g, o])


def without(name):
    return lambda found: {key: value for key, value in found.items() if key != name}


@pytest.mark.parametrize(
    ("part", "twist", "what"),
    [
        ("loss", lambda value: value + 1e-3, "loss"),
        ("loss", lambda value: float("nan"), "loss"),
        *(
            ("gradients", with_one(name, change), f"gradient of {name}")
            for name in WEIGHTS
            for change in (np.zeros_like, np.negative, gates_swapped, lambda g: g * 1.001)
        ),
        ("gradients", with_one(WEIGHTS[1], lambda g: g * np.nan), f"gradient of {WEIGHTS[1]}"),
        ("gradients", without(WEIGHTS[2]), f"gradient of {WEIGHTS[2]}"),
        ("weights", with_one(WEIGHTS[0], lambda w: w + 1e-4), f"{WEIGHTS[0]} after a step"),
        ("weights", with_one(WEIGHTS[2], gates_swapped), f"{WEIGHTS[2]} after a step"),
        ("weights", without(WEIGHTS[1]), f"{WEIGHTS[1]} after a step"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_peer_that_trains_otherwise_is_named_and_has_no_ratio(
    fake_peer, dtype, part, twist, what
):
    wrong, right = fake_peer("wrong", {part: twist}), fake_peer("right")
    result = run(ReferenceEngine(dtype), wrong, right)
    assert list(result.ratios) == ["right"]
    assert [t.name for t in result.timings] == ["lstm-cli", "right"]
    one = result.agreements["wrong"]
    assert (one.ok, one.what) == (False, what)
    assert wrong.calls == ["wrong"], "it was called again after it had disagreed"


def test_a_peer_that_does_not_update_is_found(engine, fake_peer):
    class Idle(fake_peer):
        @contextmanager
        def prepare_training(self, task, size, setting):
            self.twist = {"weights": lambda _: task.weights}
            with super().prepare_training(task, size, setting) as trainee:
                yield trainee

    one = run(engine, Idle()).agreements["fake"]
    assert (one.ok, one.what) == (False, f"{WEIGHTS[0]} after a step")
    assert one.difference == pytest.approx(1e-3, rel=1e-3), "Adam's first step is its rate"


def test_our_own_update_is_looked_at_too(engine, fake_peer, monkeypatch):
    from lstm_cli.workflows.bench import workload

    class Doubled(workload.LstmCliTrainable):
        def weights(self):
            return {name: 2 * value for name, value in super().weights().items()}

    monkeypatch.setattr(workload, "LstmCliTrainable", Doubled)
    result = run(engine, fake_peer())
    assert result.ratios == {}
    assert result.agreements["fake"].what == f"{WEIGHTS[0]} after a step"


def test_a_peer_that_does_not_train_is_skipped_with_its_reason(engine, fake_peer):
    result = run(engine, fake_peer("poor", refuses="it does not train"))
    assert result.skipped == {"poor": "it does not train"}
    assert result.ahead_of_best is None


def test_a_peer_that_breaks_is_skipped_with_the_first_line_of_its_error(engine, fake_peer):
    def breaks(_):
        raise RuntimeError("out of memory\nat 0x1234")

    result = run(engine, fake_peer("frail", {"gradients": breaks}))
    assert result.skipped == {"frail": "it failed: out of memory"}
    assert [t.name for t in result.timings] == ["lstm-cli"]


def test_peers_get_the_engines_threads(fake_peer):
    trained = fake_peer()
    run(ReferenceEngine("float32", threads=1), trained)
    assert trained.asked == [(SIZE, ComputeSetting(1))]


def test_onnx_runtime_does_not_train(engine):
    pytest.importorskip("onnxruntime")
    skipped = run(engine, peer("onnxruntime")).skipped
    assert "does not train" in skipped["onnxruntime"]


def test_steps_that_update_nothing_are_not_timed(engine, monkeypatch):
    from lstm_cli.workflows.bench import workload

    def endless(*arguments):
        return np.full((3, 5, 7), np.inf)

    monkeypatch.setattr(workload, "random_targets", endless)
    with pytest.raises(TrainingError, match="not finite") as caught:
        run(engine)
    assert "--seed" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("layers", "loss"),
    [
        ((DenseSpec(1, H, 3, None),), "cross_entropy"),
        ((DenseSpec(1, H, 3, Activation("sigmoid")),), "binary_cross_entropy"),
        ((DenseSpec(1, H, 3, Activation("tanh")),), "mse"),
        ((), "mse"),
    ],
)
def test_without_a_loss_the_last_layer_tells(engine, layers, loss):
    stack = (*one_lstm(SIZE), *layers)
    assert run(engine, layers_of=lambda _: stack).layers.endswith(f", {loss}")
    assert run(engine, layers_of=lambda _: stack, loss="huber").layers.endswith(", huber")


def test_a_loss_of_logits_wants_a_dense_layer(engine):
    with pytest.raises(DataError, match="dense layer"):
        run(engine, loss="cross_entropy")


@pytest.mark.parametrize("layer", [DropoutSpec(0, D, 0.5), FlattenSpec(0, D, 5)])
def test_layers_without_weights_have_nothing_to_train(engine, layer):
    with pytest.raises(ConfigError, match=f"nothing to train in {layer.kind}"):
        run(engine, layers_of=lambda _: (layer,))


DROPPING = (
    RecurrentSpec(0, D, (LSTM(hidden_size=H),), dropout=0.3, recurrent_dropout=0.4),
    DropoutSpec(1, H, 0.5),
    DenseSpec(2, H, 3, None),
)


def test_dropout_is_left_out():
    assert without_dropout(DROPPING) == (
        RecurrentSpec(0, D, (LSTM(hidden_size=H),)),
        DenseSpec(2, H, 3, None),
    )


RELU, SIGMOID = Activation("relu"), Activation("sigmoid")


CASES = {
    **RECURRENT_LAYERS,
    "lstm, projected, both directions": recurrent(*[LSTM(hidden_size=H, projection_size=3)] * 2),
    "no biases": (
        *recurrent(*[GRU(hidden_size=H, bias=False)] * 2),
        RecurrentSpec(1, 2 * H, (LSTM(hidden_size=3, bias=False),)),
        DenseSpec(2, 3, 2, None, bias=False),
    ),
    "a stack that ends in softmax": (
        RecurrentSpec(0, D, (LSTM(hidden_size=H),) * 2),
        DropoutSpec(1, 2 * H, 0.5),
        RecurrentSpec(2, 2 * H, (GRU(hidden_size=3),), recurrent_dropout=0.2),
        DenseSpec(3, 3, 6, Activation("tanh")),
        RecurrentSpec(4, 6, (RNN(hidden_size=5),), return_sequences=False),
        DenseSpec(5, 5, 9, None),
    ),
    "softmax on every step": (*recurrent(LSTM(hidden_size=H)), DenseSpec(1, H, 3, None)),
    "sigmoid on every step": (*recurrent(GRU(hidden_size=H)), DenseSpec(1, H, 3, SIGMOID)),
    "dropout": DROPPING,
    "flatten, padded": (
        *recurrent(LSTM(hidden_size=H)),
        FlattenSpec(1, H, SIZE.steps + 2),
        DenseSpec(2, H * (SIZE.steps + 2), 6, RELU),
    ),
}


def torch_step(layers, dtype, loss=None, size=SIZE, steps=1):
    """Our last step, PyTorch's, and what the workload thinks of them."""
    pytest.importorskip("torch")
    workload = TrainingWorkload(layers, size, ReferenceEngine(dtype, 1), 3, loss)
    with ExitStack() as stack:
        ours, theirs = workload.lstm_cli_candidate(), workload.peer_candidate(stack, peer("torch"))
        for _ in range(steps - 1):
            ours.call()
            theirs.call()
        a, b = ours.compute(), theirs.compute()
    return a, b, workload.compare(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_makes_the_same_step(name, dtype):
    ours, theirs, one = torch_step(CASES[name], dtype)
    assert one.ok, one
    assert ours.gradients.keys() == theirs.gradients.keys() == ours.weights.keys()
    assert all(np.ptp(g) > 0 for g in ours.gradients.values()), "nothing to tell apart"
    assert {w.dtype.name for w in theirs.weights.values()} == {dtype}


@pytest.mark.parametrize("loss", LOSSES)
def test_pytorch_has_the_same_losses(loss):
    layers = (*recurrent(LSTM(hidden_size=H)), DenseSpec(1, H, 3, None))
    if loss == "binary_cross_entropy":
        layers = (*layers[:1], replace(layers[1], activation=SIGMOID))
    for dtype in ("float32", "float64"):
        ours, theirs, one = torch_step(layers, dtype, loss)
        assert one.ok, one
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


@pytest.mark.parametrize(
    "size", [GridSize(7, 1, 5, 4), GridSize(7, 3, 1, 4), GridSize(7, 1, 1, 4)], ids=str
)
def test_one_sequence_and_one_step(size):
    for name in ("lstm, both directions", "gru, both directions, last step"):
        _, _, one = torch_step(CASES[name], "float64", size=size)
        assert one.ok, one


@pytest.mark.parametrize("name", ["lstm, both directions", "gru", "rnn"])
def test_pytorch_goes_on_alike(name):
    # Later steps need what the optimiser keeps, and that no further number is trained.
    ours, theirs, _ = torch_step(CASES[name], "float64", steps=6)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
    for key, value in ours.weights.items():
        np.testing.assert_allclose(theirs.weights[key], value, rtol=0, atol=1e-8)


def test_pytorch_gets_its_threads_back():
    candidate = peer("torch") if pytest.importorskip("torch") else None
    import torch

    before = torch.get_num_threads()
    engine = ReferenceEngine("float32", before + 1)
    workload = TrainingWorkload(CASES["lstm"], SIZE, engine, 0)
    with ExitStack() as stack:
        workload.peer_candidate(stack, candidate)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_what_pytorch_cannot_express_is_said_in_training_too(engine):
    pytest.importorskip("torch")
    layers = recurrent(LSTM(hidden_size=H, peepholes=True))
    skipped = run(engine, peer("torch"), layers_of=lambda _: layers).skipped
    assert skipped == {"torch": "layer 0: torch.nn.LSTM has no peepholes: true"}


def test_pytorch_has_a_ratio(engine):
    pytest.importorskip("torch")
    result = run(engine, peer("torch"))
    assert result.agreements["torch"].ok
    assert result.ratios["torch"] > 0
