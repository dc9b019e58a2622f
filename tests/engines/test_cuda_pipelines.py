"""Recurrent layers side by side, run on the host: the same bits as one after the other.

The device does nothing before a value is asked for, and then lanes go on in an order that hurts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_host.build import COMPILER, HostError
from cuda_host.kernel import HostKernel
from cuda_host.lazy import ORDERS, LazyDevice
from engines.test_cuda_persistent import forced
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
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelineOptions, stack_groups
from lstm_cli.engines.reference import ReferenceEngine
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


def engine_of(dtype, allowed, device=None, choose=None, way="general"):
    """The engine in one dtype, with plans of the test's own where `choose` makes them."""
    device = device or LazyDevice(multiprocessors=8)
    engine = CudaEngine(dtype, device, way, allowed)
    if choose is not None:
        engine.way = PersistentKernels(device, engine.precision, None, choose)
        engine.stacks = PipelinedStacks(device, engine.way, allowed)
    return engine


def passed(specs, engine, N, T=T, lengths=None):
    """All that passes give: inference, inspection, and training with its derivatives."""
    real = "float64" if engine.dtype == "float64" else "float32"
    net = network(specs, engine)
    x, state = random_inputs(N, T, D).astype(real), random_states(specs, N)
    result = net.run(x, lengths, state)
    found = {"outputs": result.outputs}
    for k, pair in enumerate(result.state):
        found |= {f"{k} {name}": part for name, part in zip("hc", pair, strict=True)}
    for layer, kept in net.run(x, lengths, state, keep=True).kept.items():
        for direction, values in kept.items():
            found |= {f"{layer} {direction} {name}": values[name] for name in values}
    tape = backpropagation.forward(net, x, lengths, state, TrainingPass(5, 2))
    d = np.random.default_rng(3).standard_normal(tape.outputs.shape).astype(real)
    gradients = backpropagation.backward(net, tape, d, d_logits=False)
    found |= {"training": tape.outputs, "inputs": gradients.inputs, **gradients.weights}
    for k, pair in gradients.state.items():
        found |= {f"{k} d{name}": part for name, part in zip("hc", pair, strict=True)}
    return {name: value for name, value in found.items() if value is not None}


def assert_same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], name)


def lanes_of(device):
    return {lane for lane, _, _ in device.log}


@pytest.mark.parametrize(("N", "order"), [(1, "upper"), (3, "lower"), (3, 1)])
@pytest.mark.parametrize("name", STACKS)
def test_the_same_bits_as_one_after_the_other(name, N, order):
    apart, beside = (LazyDevice(order, multiprocessors=8) for _ in range(2))
    wanted = passed(STACKS[name], engine_of("float32", NEVER, apart), N)
    found = passed(STACKS[name], engine_of("float32", ALWAYS, beside), N)
    assert lanes_of(apart) == {0}
    assert len(lanes_of(beside)) > 2
    assert_same(found, wanted)


KINDS = {
    "block": forced(BLOCK, 24, row_warps=2),
    "cluster": forced(CLUSTER, 8),
    "grid": forced(GRID, 8),
}


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
    made = []
    for allowed in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=16)
        made.append(passed(specs, engine_of(dtype, allowed, device, KINDS[kind]), 3))
        assert len(lanes_of(device)) == (1 if allowed is NEVER else 4)
        assert {"persistent_forward"} <= {name for name, _ in device.launches}
    assert_same(made[1], made[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["three kinds", "four"])
def test_as_on_the_reference(name, dtype):
    specs, N = STACKS[name], 3
    x, state = random_inputs(N, T, D).astype(dtype), random_states(specs, N)
    wanted = network(specs, ReferenceEngine(dtype)).run(x, None, state)
    found = network(specs, engine_of(dtype, ALWAYS)).run(x, None, state)
    assert_close(found.outputs, wanted.outputs, dtype)
    assert_states_close(found.state, wanted.state, dtype)


def started(device, lane, what):
    """The places in the log where a lane was given something."""
    return [k for k, (own, name, _) in enumerate(device.log) if (own, name) == (lane, what)]


def test_layers_take_turns_window_by_window_and_wait_for_the_layer_below():
    device = LazyDevice(multiprocessors=8)
    net = network(STACKS["two"], engine_of("float32", ALWAYS, device))
    device.log.clear()
    net.run(random_inputs(2, T, D))
    lower, upper = (started(device, lane, "forward") for lane in (1, 2))
    assert len(lower) == len(upper) == 3
    assert upper[0] < lower[-1]
    for below, above in zip(lower, upper, strict=True):
        own = [k for k in started(device, 2, "after") if k < above][-1]
        mark = device.log[own][2]
        left = [k for k in started(device, 1, "mark") if device.log[k][2] is mark]
        assert below < left[0] < own < above
        products = [k for k in started(device, 2, "multiply") if k < above]
        assert own < products[-1]
    joined = [device.log[k][2].lane for k in started(device, 0, "after")]
    assert joined == [1, 2]


def test_on_the_way_back_the_upper_layer_begins():
    device = LazyDevice(multiprocessors=8)
    net = network(STACKS["two"], engine_of("float32", ALWAYS, device))
    x = random_inputs(2, T, D).astype(np.float32)
    tape = backpropagation.forward(net, x, None, None, TrainingPass())
    device.log.clear()
    backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    lower, upper = (started(device, lane, "backward") for lane in (1, 2))
    assert len(lower) == len(upper) == 3
    assert started(device, 0, "backward") == []
    assert upper[0] < lower[0] < upper[-1] < lower[-1]


class Forgetful(LazyDevice):
    """Forgets one of the waits of lanes."""

    def __init__(self, number, order):
        self.number, self.waits = number, 0
        super().__init__(order, multiprocessors=8)

    def after(self, mark):
        self.waits += 1
        if self.waits - 1 != self.number:
            super().after(mark)


def without(number, order):
    """Inputs' gradients where one wait is forgotten, and how many there are."""
    device, specs = Forgetful(number, order), STACKS["two"]
    net = network(specs, engine_of("float32", ALWAYS, device))
    x = random_inputs(2, T, D).astype(np.float32)
    tape = backpropagation.forward(net, x, None, None, TrainingPass())
    gradients = backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    parts = [tape.outputs, gradients.inputs, *gradients.weights.values()]
    return np.concatenate([part.ravel() for part in parts]), device.waits


def test_every_wait_is_needed():
    wanted, waits = without(None, "upper")
    assert np.isfinite(wanted).all()
    # Each way: two lanes begin, three windows are handed over, two lanes end.
    assert waits == 14
    wrong = [
        any(not np.array_equal(without(number, order)[0], wanted) for order in ORDERS)
        for number in range(waits)
    ]
    # Of the second lane's beginning and the first one's end, other waits take care; on the way back
    # the upper layer's is the first.
    assert wrong[:7] == [True, False, True, True, True, False, True]
    assert wrong[7:] == [False, True, True, True, True, True, False]


def test_memory_that_a_lane_uses_is_held_until_it_is_waited_for():
    device = LazyDevice()
    given = device.zeros((4,), "float32")
    with device.lane(1):
        device.fill_zero(given)
        mark = device.mark()
    del given
    with pytest.raises(HostError, match="too soon"):
        device.after(mark)


@pytest.mark.parametrize("T", [1, 2, 8])
def test_few_and_whole_windows(T):
    specs = STACKS["two"]
    made = [passed(specs, engine_of("float32", allowed), 2, T) for allowed in (NEVER, ALWAYS)]
    assert_same(made[1], made[0])


RAGGED = np.array([3, 11, 0, 8, 9, 1])
"""Ends within windows, at their ends, and before the second."""


@pytest.mark.parametrize("order", ["upper", "lower"])
@pytest.mark.parametrize("name", STACKS)
def test_ragged_batches_have_the_same_bits(name, order):
    made = []
    for allowed in (NEVER, ALWAYS):
        device = LazyDevice(order, multiprocessors=8)
        engine = engine_of("float32", allowed, device)
        made.append(passed(STACKS[name], engine, len(RAGGED), lengths=RAGGED))
    assert len(lanes_of(device)) > 2
    assert_same(made[1], made[0])


@pytest.mark.parametrize(("kind", "dtype"), [("cluster", "bfloat16"), ("grid", "float16")])
@pytest.mark.parametrize("lengths", [RAGGED, np.minimum(RAGGED, 7), RAGGED[:1]], ids=str)
def test_ragged_batches_have_the_same_bits_by_persistent_kernels(kind, dtype, lengths):
    specs = [recurrent("lstm", 20, D, peepholes=True), recurrent("gru", 17, 20, index=1)]
    made = []
    for allowed in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=16)
        engine = engine_of(dtype, allowed, device, KINDS[kind])
        made.append(passed(specs, engine, len(lengths), lengths=lengths))
    assert len(lanes_of(device)) == 3
    assert_same(made[1], made[0])


def test_where_there_is_no_room_for_all_layers_at_once_they_run_one_by_one():
    specs = [recurrent("rnn", 64, D), *(recurrent("rnn", 64, 64, index=k) for k in (1, 2, 3))]
    x = random_inputs(4, 200, D)
    peaks, found = [], []
    for allowed in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=8)
        found.append(network(specs, engine_of("float32", allowed, device)).run(x).outputs)
        peaks.append(device.store.peak)
    assert peaks[0] < peaks[1]
    small = LazyDevice(multiprocessors=8, memory=(peaks[0] + peaks[1]) // 2)
    again = network(specs, engine_of("float32", ALWAYS, small)).run(x).outputs
    np.testing.assert_array_equal(again, found[0])
    assert lanes_of(small) == {0}
    smaller = LazyDevice(multiprocessors=8, memory=peaks[0] // 2)
    net = network(specs, engine_of("float32", ALWAYS, smaller))
    with pytest.raises(DeviceMemoryError):
        net.run(x)


def test_seconds_add_up_to_those_of_the_stack():
    result = network(STACKS["two"], engine_of("float32", ALWAYS)).run(random_inputs(2, T, D))
    assert [dict(result.seconds[k]) for k in (0, 1)] == [{"pipelined": 1e-6}] * 2


def indices(specs, *, training=False):
    return [[spec.index for spec in part] for part in stack_groups(specs, training=training)]


def test_what_makes_a_stack():
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


def waiting(device):
    """By lane, the most blocks of a launch that wait for one another."""
    found = {}
    launches = iter(device.launches)
    for lane, what, _ in device.log:
        if what not in ("mark", "after", "multiply", "zero", "copy", "upload", "send", "receive"):
            name, launch = next(launches)
            assert name == what
            if launch.together:
                found[lane] = max(found.get(lane, 0), launch.blocks)
    return found


@pytest.mark.parametrize("choose", [None, forced(GRID, 32, row_warps=2)], ids=["general", "grid"])
def test_blocks_that_wait_for_one_another_fit_on_the_device_together(choose):
    specs = [recurrent("rnn", 64, D), recurrent("rnn", 64, 64, index=1)]
    x = random_inputs(33, 6, D).astype(np.float32)
    for allowed in (NEVER, ALWAYS):
        device = LazyDevice(multiprocessors=9)
        dtype = "float32" if choose is None else "tf32"
        net = network(specs, engine_of(dtype, allowed, device, choose))
        tape = backpropagation.forward(net, x, None, None, TrainingPass())
        backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
        most = waiting(device)
        if allowed is NEVER:
            assert most[0] > 4
        else:
            assert set(most) == {1, 2}
            assert max(most.values()) == 4


def test_a_plan_of_more_blocks_than_a_layers_share_is_not_run():
    specs = [recurrent("rnn", 64, D), recurrent("rnn", 64, 64, index=1)]
    engine = engine_of("tf32", ALWAYS, LazyDevice(multiprocessors=8), forced(GRID, 8))
    with pytest.raises(DeviceError, match="8 blocks that wait for one another are too many"):
        network(specs, engine).run(random_inputs(2, T, D))


def test_clusters_are_not_run_beside_blocks_that_wait_across_the_grid():
    def choose(work, facts, N, directions):
        return forced(CLUSTER if work.H == 16 else GRID, 8)(work, facts, N, directions)

    specs = [recurrent("rnn", 16, D), recurrent("rnn", 24, 16, index=1)]
    device = LazyDevice(multiprocessors=16)
    engine = engine_of("tf32", ALWAYS, device, choose)
    network(specs, engine).run(random_inputs(2, T, D))
    assert lanes_of(device) == {0}
    assert "clusters" in engine.stacks.plan(specs, 2, T)


def test_what_runs_instead_of_a_plan_that_cannot_is_no_neighbour_of_clusters(monkeypatch):
    resident = HostKernel.resident

    def few(self, launch):
        return 0 if launch.cluster == 2 else resident(self, launch)

    monkeypatch.setattr(HostKernel, "resident", few)
    specs = [recurrent("rnn", 16, D), recurrent("rnn", 24, 16, index=1)]
    x = random_inputs(2, T, D).astype(np.float32)
    for H, beside in ((16, False), (24, True)):
        device = LazyDevice(multiprocessors=16)
        engine = engine_of("tf32", ALWAYS, device, KINDS["cluster"])
        general = GeneralKernels(device, engine.precision)
        engine.way = PersistentKernels(device, engine.precision, general, KINDS["cluster"])
        engine.stacks = PipelinedStacks(device, engine.way, ALWAYS)
        pair = [replace(specs[0], cells=(RNN(hidden_size=H),)), replace(specs[1], input_size=H)]
        net = network(pair, engine)
        tape = backpropagation.forward(net, x, None, None, TrainingPass())
        backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
        assert (len(lanes_of(device)) > 1) is beside
