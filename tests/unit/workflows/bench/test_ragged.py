"""Ragged batches: only valid steps are compared and counted, and peers compute them too."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import peer_layers
import pytest
from peer_layers import installed_peer

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.network.network import Network
from lstm_cli.workflows.bench import (
    ComputeSetting,
    GridSize,
    Unsupported,
    measure,
    measurement,
    one_lstm,
)
from lstm_cli.workflows.bench.agreement import output_agreement
from lstm_cli.workflows.bench.protocol import Samples
from lstm_cli.workflows.bench.sizes import random_inputs, random_lengths, random_weights
from lstm_cli.workflows.bench.workload import OUTPUT_TOLERANCES, TrainingWorkload, WorkloadBatch

SIZE = GridSize(hidden=6, batch=5, steps=12, features=3)
D, H = SIZE.features, SIZE.hidden
LENGTHS = np.array([7, 12, 1, 9, 2])


recurrent = partial(peer_layers.recurrent, features=D)

STACKS = {
    "lstm": recurrent(LSTM(hidden_size=H)),
    "lstm, both directions": recurrent(*[LSTM(hidden_size=H)] * 2),
    "gru, both directions, last step": recurrent(*[GRU(hidden_size=H)] * 2, return_sequences=False),
    "rnn, last step": recurrent(RNN(hidden_size=H), return_sequences=False),
    "a stack with softmax on every step": (
        RecurrentSpec(0, D, (LSTM(hidden_size=H),) * 2),
        DropoutSpec(1, 2 * H, 0.5),
        DenseSpec(2, 2 * H, 4, Activation("tanh")),
        RecurrentSpec(3, 4, (GRU(hidden_size=5),)),
        DenseSpec(4, 5, 3, None),
    ),
    "a stack that ends": (
        RecurrentSpec(0, D, (LSTM(hidden_size=H),)),
        RecurrentSpec(1, H, (LSTM(hidden_size=4),) * 2, return_sequences=False),
        DenseSpec(2, 8, 3, Activation("relu")),
    ),
}
FLAT = (*recurrent(LSTM(hidden_size=H)), FlattenSpec(1, H, SIZE.steps))


def run(engine, *peers, size=SIZE, layers_of=one_lstm, **options):
    (result,) = measure(
        [size], layers_of, engine, peers, ragged=True, rounds=3, seconds=0.01, **options
    )
    return result


@pytest.mark.parametrize("steps", [1, 5, 10, 11, 100])
def test_lengths_are_uniform_from_a_tenth_of_the_steps_to_all_of_them(steps):
    lengths = random_lengths(GridSize(4, 5000, steps, 4), seed=3)
    assert lengths.shape == (5000,)
    assert set(lengths.tolist()) == set(range(max(1, -(-steps // 10)), steps + 1))
    counts = np.bincount(lengths)[lengths.min() :]
    assert counts.min() > 0.5 * counts.mean()


def test_lengths_repeat_with_the_seed():
    one, again, other = (random_lengths(SIZE, seed).tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_valid_steps_of_a_batch():
    y = np.arange(5 * 12 * 2).reshape(5, 12, 2)
    batch = WorkloadBatch(LENGTHS, int(LENGTHS.sum()), 12)
    expected = np.concatenate([row[:n] for row, n in zip(y, LENGTHS, strict=True)])
    np.testing.assert_array_equal(batch.valid(y), expected)
    np.testing.assert_array_equal(batch.valid(y[:, 0]), y[:, 0])
    np.testing.assert_array_equal(WorkloadBatch(None, 60, 12).valid(y), y)


def drawn(seed=0):
    return random_lengths(SIZE, seed)


def test_only_valid_steps_count_as_work(engine, fake_peer, monkeypatch):
    # Us, a peer, and us on full-length sequences.
    seconds = np.array([[1.0, 3.0, 2.0], [2.0, 8.0, 5.0], [4.0, 12.0, 8.0]])
    monkeypatch.setattr(measurement, "interleave", lambda *_: Samples(seconds, (2, 1, 3)))
    result = run(engine, fake_peer("twin"))
    valid, whole = int(drawn().sum()), 5 * 12
    step = 4 * H * (D + H) * 2
    assert result.steps == valid < whole
    assert [t.name for t in result.timings] == ["lstm-cli", "twin"]
    assert result.lstm_cli_timing.gflops == pytest.approx(step * valid / 2.0 / 1e9)
    assert result.timings[1].gflops == pytest.approx(step * valid / 8.0 / 1e9)
    assert result.padded.timing.gflops == pytest.approx(step * whole / 5.0 / 1e9)
    assert result.padded.timing.title == "lstm-cli (reference, float64, padded)"
    assert result.padded.timing.calls == 9
    assert result.padded.per_step == pytest.approx(2.0 * valid / whole)
    assert result.ratios == {"twin": 3.0}
    assert result.layers == "lstm 3 → 6, ragged"


def test_full_length_sequences_are_measured_unless_said_otherwise(engine):
    (result,) = measure([SIZE], one_lstm, engine, rounds=1, seconds=0.001)
    assert (result.layers, result.steps, result.padded) == ("lstm 3 → 6", 60, None)


@pytest.mark.parametrize(("past_the_end", "ok"), [(True, True), (False, False)])
def test_outputs_are_compared_on_valid_steps(engine, fake_peer, past_the_end, ok):
    def twist(y):
        padding = np.arange(12) >= drawn()[:, None]
        return np.where((padding == past_the_end)[:, :, None], y + 0.5, y)

    result = run(engine, fake_peer("other", twist))
    assert result.agreements["other"].ok is ok


def test_another_shape_is_a_difference(engine, fake_peer):
    result = run(engine, fake_peer("short", lambda y: y[:, :-1]))
    assert result.agreements["short"].difference == float("inf")


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_a_peer_gives_what_the_reference_gives(name, layers):
    weights, x = random_weights(layers, 3, "float32"), random_inputs(layers, SIZE, 3, "float32")
    with installed_peer(name).prepare(layers, weights, SIZE, ComputeSetting(), LENGTHS) as call:
        result = call(x)
    expected = Network(layers, weights, ReferenceEngine("float64")).run(x, LENGTHS).outputs
    assert result.shape == expected.shape
    valid = WorkloadBatch(LENGTHS, int(LENGTHS.sum()), 12).valid
    assert np.ptp(valid(expected)) > 0.05, "nothing to tell apart"
    assert output_agreement(valid(expected), valid(result), OUTPUT_TOLERANCES["float32"]).ok
    with installed_peer(name).prepare(layers, weights, SIZE, ComputeSetting()) as call:
        assert not output_agreement(expected, call(x), 0.01).ok, "lengths make no difference"


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_flatten_of_ragged_sequences_is_not_measured_with_peers(name):
    weights = random_weights(FLAT, 3, "float32")
    with (
        pytest.raises(Unsupported, match="layer 1: flatten"),
        installed_peer(name).prepare(FLAT, weights, SIZE, ComputeSetting(), LENGTHS),
    ):
        pass


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_makes_the_same_training_step(layers, dtype):
    workload = TrainingWorkload(layers, SIZE, ReferenceEngine(dtype), 4, ragged=True)
    assert workload.batch.lengths.tolist() == drawn(4).tolist()
    with ExitStack() as stack:
        theirs = workload.peer_candidate(stack, installed_peer("torch")).compute()
        assert workload.compare(workload.lstm_cli_candidate().compute(), theirs).ok
        assert not workload.compare(workload.padded_candidate().compute(), theirs).ok


def test_a_ragged_training_step_counts_three_times_the_valid_products(engine, monkeypatch):
    monkeypatch.setattr(measurement, "interleave", lambda *_: Samples(np.full((3, 2), 2.0), (1, 1)))
    result = run(engine, mode="train")
    step = 3 * 4 * H * (D + H) * 2
    assert result.lstm_cli_timing.gflops == pytest.approx(step * drawn().sum() / 2.0 / 1e9)
    assert result.padded.timing.gflops == pytest.approx(step * 60 / 2.0 / 1e9)
    assert result.layers == "lstm 3 → 6, ragged, mse"
