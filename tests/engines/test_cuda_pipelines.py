"""Pipelined recurrent layers, run on the host: the same bits as one layer after the other.

The device delays all work until a value is read. Then it runs its streams in an unfavorable order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_cases import FORCED_PLANS, forced_plan
from cuda_host.build import COMPILER, HostError
from cuda_host.kernel import HostKernel
from cuda_host.lazy import ORDERS, LazyDevice
from networks import (
    assert_close,
    assert_states_close,
    network,
    random_inputs,
    random_states,
    recurrent,
)

from lstm_cli.cells import RNN
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.kernels import GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.planning.plan import CLUSTER, GRID
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelineOptions, stack_groups
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, TrainingPass
from lstm_cli.errors import DeviceError, DeviceMemoryError
from lstm_cli.network import backpropagation

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

D, T, STEPS = 4, 11, 4
ALWAYS, NEVER = PipelineOptions("always", STEPS), PipelineOptions("never")

STACKS = {
    "two": [recurrent("lstm", 7, D), recurrent("lstm", 5, 7, index=1)],
    "three kinds": [
        recurrent("gru", 6, D),
        DropoutSpec(1, 6, 0.4),
        recurrent("rnn", 3, 6, index=2),
        recurrent("lstm", 5, 3, index=3, peepholes=True, return_sequences=False),
        DenseSpec(4, 5, 2, None),
    ],
    "four": [
        recurrent("lstm", 5, D, projection_size=3),
        recurrent("gru", 4, 3, index=1, reset_after=False),
        recurrent("lstm", 6, 4, index=2, dropout=0.3),
        recurrent("gru", 5, 6, index=3, recurrent_dropout=0.3),
    ],
    "above both directions": [
        recurrent("lstm", 4, D, directions=2),
        recurrent("gru", 5, 8, index=1),
        recurrent("lstm", 6, 5, index=2),
    ],
}


def engine_of(dtype, options, device=None, search=None):
    """The engine in one dtype, with general kernels or the plans of `search`."""
    device = device or LazyDevice(multiprocessors=8)
    engine = CudaEngine(dtype, device, "general", options)
    if search is not None:
        engine.kernels = PersistentKernels(device, engine.precision, None, search)
        engine.stacks = PipelinedStacks(device, engine.kernels, options)
    return engine


def all_results(specs, engine, N, T=T, lengths=None):
    """Results of inference, inspection, and training with its derivatives, by name."""
    real = "float64" if engine.dtype == "float64" else "float32"
    net = network(specs, engine)
    x, state = random_inputs(N, T, D).astype(real), random_states(specs, N)
    result = net.run(x, lengths, state)
    values = {"outputs": result.outputs}
    for k, pair in enumerate(result.state):
        values |= {f"{k} {name}": part for name, part in zip("hc", pair, strict=True)}
    for layer, directions in net.run(x, lengths, state, keep=True).kept.items():
        for direction, gates in directions.items():
            values |= {f"{layer} {direction} {name}": gates[name] for name in gates}
    tape = backpropagation.forward(net, x, lengths, state, TrainingPass(5, 2))
    d = np.random.default_rng(3).standard_normal(tape.outputs.shape).astype(real)
    gradients = backpropagation.backward(net, tape, d, d_logits=False)
    values |= {"training": tape.outputs, "inputs": gradients.inputs, **gradients.weights}
    for k, pair in gradients.state.items():
        values |= {f"{k} d{name}": part for name, part in zip("hc", pair, strict=True)}
    return {name: value for name, value in values.items() if value is not None}


def assert_same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], name)


def streams_of(device):
    return {stream for stream, _, _ in device.log}


@pytest.mark.parametrize(("N", "order"), [(1, "upper"), (3, "lower"), (3, 1)])
@pytest.mark.parametrize("name", STACKS)
def test_the_same_bits_as_one_after_the_other(name, N, order):
    sequential, pipelined = (LazyDevice(order, multiprocessors=8) for _ in range(2))
    expected = all_results(STACKS[name], engine_of("float32", NEVER, sequential), N)
    actual = all_results(STACKS[name], engine_of("float32", ALWAYS, pipelined), N)
    assert streams_of(sequential) == {0}
    assert len(streams_of(pipelined)) > 2
    assert_same(actual, expected)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("block", "bfloat16"), ("cluster", "tf32"), ("grid", "bfloat16"), ("grid", "float16")],
)
def test_the_same_bits_by_persistent_kernels(kind, dtype):
    specs = [
        recurrent("lstm", 20, D, peepholes=True),
        recurrent("gru", 17, 20, index=1),
        recurrent("rnn", 9, 17, index=2),
    ]
    results = []
    for options in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=16)
        results.append(all_results(specs, engine_of(dtype, options, device, FORCED_PLANS[kind]), 3))
        assert len(streams_of(device)) == (1 if options is NEVER else 4)
        assert {"persistent_forward"} <= {name for name, _ in device.launches}
    assert_same(results[1], results[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["three kinds", "four"])
def test_as_on_the_reference(name, dtype):
    specs, N = STACKS[name], 3
    x, state = random_inputs(N, T, D).astype(dtype), random_states(specs, N)
    expected = network(specs, ReferenceEngine(dtype)).run(x, None, state)
    actual = network(specs, engine_of(dtype, ALWAYS)).run(x, None, state)
    assert_close(actual.outputs, expected.outputs, dtype)
    assert_states_close(actual.state, expected.state, dtype)


def log_indices(device, stream, what):
    """Indices in the log of one kind of work of a stream."""
    return [k for k, (number, name, _) in enumerate(device.log) if (number, name) == (stream, what)]


def test_layers_alternate_chunk_by_chunk_and_wait_for_the_layer_below():
    device = LazyDevice(multiprocessors=8)
    net = network(STACKS["two"], engine_of("float32", ALWAYS, device))
    device.log.clear()
    net.run(random_inputs(2, T, D))
    lower, upper = (log_indices(device, stream, "forward") for stream in (1, 2))
    assert len(lower) == len(upper) == 3
    assert upper[0] < lower[-1]
    for below, above in zip(lower, upper, strict=True):
        wait = [k for k in log_indices(device, 2, "wait_event") if k < above][-1]
        event = device.log[wait][2]
        recorded = [k for k in log_indices(device, 1, "record_event") if device.log[k][2] is event]
        assert below < recorded[0] < wait < above
        products = [k for k in log_indices(device, 2, "multiply") if k < above]
        assert wait < products[-1]
    joined = [device.log[k][2].stream for k in log_indices(device, 0, "wait_event")]
    assert joined == [1, 2]


def test_the_upper_layer_starts_the_backward_pass():
    device = LazyDevice(multiprocessors=8)
    net = network(STACKS["two"], engine_of("float32", ALWAYS, device))
    x = random_inputs(2, T, D).astype(np.float32)
    tape = backpropagation.forward(net, x, None, None, TrainingPass())
    device.log.clear()
    backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    lower, upper = (log_indices(device, stream, "backward") for stream in (1, 2))
    assert len(lower) == len(upper) == 3
    assert log_indices(device, 0, "backward") == []
    assert upper[0] < lower[0] < upper[-1] < lower[-1]


class ForgetfulDevice(LazyDevice):
    """Omits one of the waits between streams."""

    def __init__(self, number, order):
        self.number, self.waits = number, 0
        super().__init__(order, multiprocessors=8)

    def wait_event(self, event):
        self.waits += 1
        if self.waits - 1 != self.number:
            super().wait_event(event)


def run_without_wait(number, order):
    """All values of a training pass without one wait, and the number of waits."""
    device, specs = ForgetfulDevice(number, order), STACKS["two"]
    net = network(specs, engine_of("float32", ALWAYS, device))
    x = random_inputs(2, T, D).astype(np.float32)
    tape = backpropagation.forward(net, x, None, None, TrainingPass())
    gradients = backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    parts = [tape.outputs, gradients.inputs, *gradients.weights.values()]
    return np.concatenate([part.ravel() for part in parts]), device.waits


def test_every_wait_is_needed():
    expected, waits = run_without_wait(None, "upper")
    assert np.isfinite(expected).all()
    # In each pass, two streams start, three chunks go to the next layer, and two streams end.
    assert waits == 14
    wrong = [
        any(not np.array_equal(run_without_wait(number, order)[0], expected) for order in ORDERS)
        for number in range(waits)
    ]
    # Other waits cover the start of the second stream and the end of the first one. In the backward
    # pass the upper layer is the first.
    assert wrong[:7] == [True, False, True, True, True, False, True]
    assert wrong[7:] == [False, True, True, True, True, True, False]


def test_memory_that_a_stream_uses_must_live_until_a_wait_for_the_stream():
    device = LazyDevice()
    array = device.zeros((4,), "float32")
    with device.use_stream(1):
        device.fill_zero(array)
        event = device.record_event()
    del array
    with pytest.raises(HostError, match="too soon"):
        device.wait_event(event)


@pytest.mark.parametrize("T", [1, 2, 8])
def test_few_and_whole_chunks(T):
    specs = STACKS["two"]
    expected, actual = (
        all_results(specs, engine_of("float32", options), 2, T) for options in (NEVER, ALWAYS)
    )
    assert_same(actual, expected)


RAGGED = np.array([3, 11, 0, 8, 9, 1])
"""Ends within chunks, at their ends, and before the second chunk."""


@pytest.mark.parametrize("order", ["upper", "lower"])
@pytest.mark.parametrize("name", STACKS)
def test_ragged_batches_have_the_same_bits(name, order):
    results = []
    for options in (NEVER, ALWAYS):
        device = LazyDevice(order, multiprocessors=8)
        engine = engine_of("float32", options, device)
        results.append(all_results(STACKS[name], engine, len(RAGGED), lengths=RAGGED))
    assert len(streams_of(device)) > 2
    assert_same(results[1], results[0])


@pytest.mark.parametrize(("kind", "dtype"), [("cluster", "bfloat16"), ("grid", "float16")])
@pytest.mark.parametrize("lengths", [RAGGED, np.minimum(RAGGED, 7), RAGGED[:1]], ids=str)
def test_ragged_batches_have_the_same_bits_by_persistent_kernels(kind, dtype, lengths):
    specs = [recurrent("lstm", 20, D, peepholes=True), recurrent("gru", 17, 20, index=1)]
    results = []
    for options in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=16)
        engine = engine_of(dtype, options, device, FORCED_PLANS[kind])
        results.append(all_results(specs, engine, len(lengths), lengths=lengths))
    assert len(streams_of(device)) == 3
    assert_same(results[1], results[0])


def test_layers_run_one_by_one_if_memory_is_too_small_for_all_at_once():
    specs = [recurrent("rnn", 64, D), *(recurrent("rnn", 64, 64, index=k) for k in (1, 2, 3))]
    x = random_inputs(4, 200, D)
    peaks, outputs = [], []
    for options in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=8)
        outputs.append(network(specs, engine_of("float32", options, device)).run(x).outputs)
        peaks.append(device.store.peak)
    assert peaks[0] < peaks[1]
    small = LazyDevice(multiprocessors=8, memory=(peaks[0] + peaks[1]) // 2)
    again = network(specs, engine_of("float32", ALWAYS, small)).run(x).outputs
    np.testing.assert_array_equal(again, outputs[0])
    assert streams_of(small) == {0}
    smaller = LazyDevice(multiprocessors=8, memory=peaks[0] // 2)
    net = network(specs, engine_of("float32", ALWAYS, smaller))
    with pytest.raises(DeviceMemoryError):
        net.run(x)


def test_seconds_add_up_to_those_of_the_stack():
    result = network(STACKS["two"], engine_of("float32", ALWAYS)).run(random_inputs(2, T, D))
    assert [dict(result.seconds[k]) for k in (0, 1)] == [{"pipelined": 1e-6}] * 2


def indices(specs, *, training=False):
    return [[spec.index for spec in part] for part in stack_groups(specs, training=training)]


def test_groups_of_layers_that_form_a_stack():
    assert indices(STACKS["three kinds"]) == [[0, 1, 2, 3], [4]]
    assert indices(STACKS["three kinds"], training=True) == [[0], [1], [2, 3], [4]]
    assert indices(STACKS["four"], training=True) == [[0, 1], [2, 3]]
    assert indices(STACKS["above both directions"]) == [[0], [1, 2]]
    last = recurrent("lstm", 4, D, return_sequences=False)
    assert indices([last, DropoutSpec(1, 4, 0.1), DenseSpec(2, 4, 3, None)]) == [[0], [1], [2]]
    high = [recurrent("rnn", 3, 3, index=k) for k in range(7)]
    assert indices(high) == [[0, 1, 2, 3], [4, 5, 6]]
    behind = [high[0], high[1], DropoutSpec(2, 3, 0.5), DropoutSpec(3, 3, 0.5)]
    assert indices(behind) == [[0, 1], [2], [3]]


def cooperative_blocks(device):
    """Largest number of blocks of a cooperative launch, by stream."""
    largest = {}
    launches = iter(device.launches)
    others = {"record_event", "wait_event", "multiply", "zero", "copy", "upload"}
    for stream, what, _ in device.log:
        if what not in others:
            name, launch = next(launches)
            assert name == what
            if launch.cooperative:
                largest[stream] = max(largest.get(stream, 0), launch.blocks)
    return largest


@pytest.mark.parametrize(
    "search", [None, forced_plan(GRID, 32, row_warps=2)], ids=["general", "grid"]
)
def test_cooperative_blocks_of_all_layers_are_resident_at_the_same_time(search):
    specs = [recurrent("rnn", 64, D), recurrent("rnn", 64, 64, index=1)]
    x = random_inputs(33, 6, D).astype(np.float32)
    for options in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=9)
        dtype = "float32" if search is None else "tf32"
        net = network(specs, engine_of(dtype, options, device, search))
        tape = backpropagation.forward(net, x, None, None, TrainingPass())
        backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
        largest = cooperative_blocks(device)
        if options is NEVER:
            assert largest[0] > 4
        else:
            assert set(largest) == {1, 2}
            assert max(largest.values()) == 4


def test_a_plan_beyond_a_layers_sm_limit_does_not_run():
    specs = [recurrent("rnn", 64, D), recurrent("rnn", 64, 64, index=1)]
    engine = engine_of("tf32", ALWAYS, LazyDevice(multiprocessors=8), forced_plan(GRID, 8))
    with pytest.raises(DeviceError, match="8 cooperative blocks are too many"):
        network(specs, engine).run(random_inputs(2, T, D))


def test_clusters_do_not_run_concurrently_with_cooperative_blocks():
    def search(shape, limits, N, directions):
        return forced_plan(CLUSTER if shape.H == 16 else GRID, 8)(shape, limits, N, directions)

    specs = [recurrent("rnn", 16, D), recurrent("rnn", 24, 16, index=1)]
    device = LazyDevice(multiprocessors=16)
    engine = engine_of("tf32", ALWAYS, device, search)
    network(specs, engine).run(random_inputs(2, T, D))
    assert streams_of(device) == {0}
    assert "clusters" in engine.stacks.plan(specs, 2, T)


def test_the_fallback_of_a_plan_does_not_run_concurrently_with_clusters(monkeypatch):
    resident = HostKernel.resident

    def few(self, launch):
        return 0 if launch.cluster == 2 else resident(self, launch)

    monkeypatch.setattr(HostKernel, "resident", few)
    specs = [recurrent("rnn", 16, D), recurrent("rnn", 24, 16, index=1)]
    x = random_inputs(2, T, D).astype(np.float32)
    for H, pipelined in ((16, False), (24, True)):
        device = LazyDevice(multiprocessors=16)
        engine = engine_of("tf32", ALWAYS, device, FORCED_PLANS["cluster"])
        general = GeneralKernels(device, engine.precision)
        engine.kernels = PersistentKernels(
            device, engine.precision, general, FORCED_PLANS["cluster"]
        )
        engine.stacks = PipelinedStacks(device, engine.kernels, ALWAYS)
        pair = [replace(specs[0], cells=(RNN(hidden_size=H),)), replace(specs[1], input_size=H)]
        net = network(pair, engine)
        tape = backpropagation.forward(net, x, None, None, TrainingPass())
        backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
        assert (len(streams_of(device)) > 1) is pipelined
