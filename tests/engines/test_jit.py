"""The jit engine: bits, threads and explanations, and kernels for other processors.

A sequence gives the same bits in every batch, and on any number of threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from networks import (
    CELL_OPTIONS,
    Array,
    assert_close,
    assert_states_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
    rows,
)

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.jit import backward, forward, layers
from lstm_cli.engines.jit import batch as batch_module
from lstm_cli.engines.jit.codegen import cell, matmul, weight_gradient
from lstm_cli.engines.jit.codegen.ir import Function, Value, VectorType
from lstm_cli.engines.jit.engine import JitEngine
from lstm_cli.engines.jit.runtime import compiler, thread_pool
from lstm_cli.engines.jit.runtime.compiler import Kernels
from lstm_cli.engines.jit.runtime.machine import (
    Machine,
    UnusableMachine,
    machine_from_features,
    this_machine,
)
from lstm_cli.engines.kernel_cache import CompiledKernels
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec, TrainingPass
from lstm_cli.network import backpropagation as learning
from lstm_cli.network.network import Network

try:
    HERE = this_machine()
except UnusableMachine as why:
    pytest.skip(f"the jit engine: {why}", allow_module_level=True)

N, T, D = 29, 7, 5
"""More rows than are multiplied at once (`sequence.MAX_CHUNK_ROWS`)."""

PASS = TrainingPass(seed=3, update=7)

Threads = Callable[[int, str], list[int]]


def stack(**options: Any) -> list[LayerSpec]:
    """Layers of every kind of cell, in both directions, with sizes that fill no panel."""
    return [
        recurrent("lstm", 37, D, directions=2, peepholes=True, projection_size=19, **options),
        recurrent("gru", 23, 38, index=1, directions=2, reset_after=False, **options),
        recurrent("rnn", 70, 46, index=2, **options),
        recurrent("gru", 33, 70, index=3, **options),
        recurrent("lstm", 21, 33, index=4, directions=2, coupled_input_forget=True, clip=0.9),
        DenseSpec(5, 42, 11, None),
    ]


@cache
def batch() -> tuple[Array, Array, list[Any]]:
    """Random inputs, lengths and states."""
    return random_inputs(N, T, D), random_lengths(N, T), random_states(stack(), N)


def flat(outputs: Array, state: Sequence[Any]) -> list[Array]:
    """All arrays of a result."""
    return [outputs, *(part for pair in state for part in pair if part is not None)]


def assert_bits(actual: Sequence[Array], expected: Sequence[Array], what: object = "") -> None:
    """No bit differs, not even the sign of a zero or the bits of a NaN."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        kind = f"u{one.itemsize}"
        a, b = (np.ascontiguousarray(v).view(kind) for v in (one, other))
        assert (a == b).all(), f"{what}: {(a != b).sum()} of {a.size} numbers differ"


@cache
def one_by_one(dtype: str) -> list[Array]:
    """The stack's results, each sequence computed by itself on one thread."""
    net, (x, lengths, state) = network(stack(), JitEngine(dtype, 1)), batch()
    results = []
    for n in range(N):
        one = slice(n, n + 1)
        result = net.run(x[one, : lengths[n]], None, rows(state, one))
        padded = np.zeros((1, T, result.outputs.shape[2]), dtype)
        padded[:, : lengths[n]] = result.outputs
        results.append(flat(padded, result.state))
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Share even small work; the list holds the number of threads of each run."""
    monkeypatch.setattr(batch_module, "MIN_STEP_WORK", 0)
    monkeypatch.setattr(batch_module, "MIN_BATCH_WORK", 0)
    monkeypatch.setattr(matmul, "_MIN_THREAD_WORK", 1)
    monkeypatch.setattr(weight_gradient, "_MIN_THREAD_WORK", 1)
    used: list[int] = []

    def run(function: int, args: int, parts: int) -> int:
        used.append(thread_pool.run(function, args, parts))
        return used[-1]

    monkeypatch.setattr(forward, "run", run)
    monkeypatch.setattr(backward, "run", run)
    original = layers.group_rows

    def share(count: int, unit: str) -> list[int]:
        groups = 0 if unit == "columns" and count > 1 else count
        monkeypatch.setattr(layers, "group_rows", lambda N, T, n, _: original(N, T, n, groups))
        used.clear()
        return used

    return share


SHARES = [(1, "groups"), *((n, unit) for n in (2, 3, 4) for unit in ("groups", "columns"))]

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHARED = pytest.mark.parametrize(("count", "unit"), SHARES, ids=str)


# The same bits


@DTYPES
@SHARED
def test_batches_and_threads_do_not_change_a_bit(
    threads: Threads, count: int, unit: str, dtype: str
) -> None:
    x, lengths, state = batch()
    net = network(stack(), JitEngine(dtype, count))
    alone = one_by_one(dtype)  # on one thread, so before the counting begins
    used = threads(count, unit)
    rng = np.random.default_rng(9)
    halves = np.split(rng.permutation(N), [11])
    for chosen in (np.arange(N), rng.permutation(N), *halves, [3, 3, 0, 28, 3]):
        result = net.run(x[chosen], lengths[chosen], rows(state, chosen))
        expected = [part[chosen] for part in alone]
        assert_bits(flat(result.outputs, result.state), expected)
    assert set(used) == {count}


@DTYPES
@SHARED
def test_a_batch_without_lengths(threads: Threads, count: int, unit: str, dtype: str) -> None:
    x, _, state = batch()
    expected = network(stack(), JitEngine(dtype, 1)).run(x, np.full(N, T), state)
    net = network(stack(), JitEngine(dtype, count))
    used = threads(count, unit)
    for layout in (x, np.asfortranarray(x), x.transpose(1, 0, 2).copy().transpose(1, 0, 2)):
        result = net.run(layout, None, state)
        assert_bits(flat(result.outputs, result.state), flat(expected.outputs, expected.state))
    assert set(used) == {count}


@DTYPES
@pytest.mark.parametrize("option", CELL_OPTIONS)
def test_recording_gates_changes_no_bit(option: str, dtype: str) -> None:
    kind, options = CELL_OPTIONS[option]
    spec = recurrent(kind, 37, D, directions=2, **options)
    x, lengths, _ = batch()
    net = network([spec], JitEngine(dtype))
    state = random_states([spec], N)
    plain, kept = (net.run(x, lengths, state, keep=keep) for keep in (False, True))
    assert_bits(flat(kept.outputs, kept.state), flat(plain.outputs, plain.state))
    h = np.concatenate([kept.kept[0][way]["h"] for way in ("forward", "reverse")], axis=-1)
    assert_bits([h], [plain.outputs])


def derivatives(net: Network) -> list[Array]:
    """All results of a forward and a backward pass with dropout."""
    x, lengths, state = batch()
    tape = learning.forward(net, x, lengths, state, PASS)
    d = np.random.default_rng(5).standard_normal(tape.outputs.shape).astype(tape.outputs.dtype)
    d[np.arange(T) >= lengths[:, None]] = 0
    gradients = learning.backward(net, tape, d, d_logits=False)
    assert all(np.abs(value).max() > 0 for value in gradients.weights.values())
    parts = [gradients.inputs, *(gradients.weights[name] for name in sorted(gradients.weights))]
    return [
        *flat(tape.outputs, tape.state),
        *parts,
        *flat(gradients.inputs, gradients.state.values()),
    ]


@DTYPES
@SHARED
def test_training_repeats_to_the_bit(threads: Threads, count: int, unit: str, dtype: str) -> None:
    specs = stack(dropout=0.2, recurrent_dropout=0.3)
    used = threads(count, unit)
    expected = derivatives(network(specs, JitEngine(dtype, count)))
    net = network(specs, JitEngine(dtype, count))
    for _ in range(2):
        assert_bits(derivatives(net), expected)
    assert set(used) == {count}
    threads(1, "groups")
    assert_bits(derivatives(network(specs, JitEngine(dtype, 1))), expected)


@DTYPES
@pytest.mark.parametrize("unit", ["groups", "columns"])
def test_training_repeats_to_the_bit_without_free_threads(
    threads: Threads, unit: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(stack(), JitEngine(dtype, 3))
    threads(3, unit)
    expected = derivatives(net)
    real = thread_pool.process_pool()
    single = SimpleNamespace(run=lambda function, args, _: real.run(function, args, 1))
    monkeypatch.setattr(thread_pool, "process_pool", lambda: single)
    assert_bits(derivatives(net), expected)


# Values that are not finite


def test_a_sequence_that_is_not_finite_does_not_change_the_others() -> None:
    x, lengths, state = batch()
    engine = JitEngine("float32", 2)
    clean = network(stack(), engine).run(x, lengths, state)
    dirty, states = x.copy(), [tuple(None if p is None else p.copy() for p in s) for s in state]
    long = np.flatnonzero(lengths > 3)
    dirty[long[0], 2, 1], dirty[long[1], 0, 4], dirty[long[2], 3, 0] = np.nan, np.inf, -np.inf
    states[0][0][long[3], 0, 2] = states[0][1][long[4], 1, 0] = np.nan
    net = network(stack(), engine)
    result = net.run(dirty, lengths, states)
    bad = long[:5]
    others = np.setdiff1d(np.arange(N), bad)
    assert np.isnan(result.outputs[bad]).any(axis=(1, 2)).sum() >= 3
    for one, other in zip(
        flat(result.outputs, result.state), flat(clean.outputs, clean.state), strict=True
    ):
        assert_bits([one[others]], [other[others]])
    again = net.run(x, lengths, state)  # reused memory holds nothing of it
    assert_bits(flat(again.outputs, again.state), flat(clean.outputs, clean.state))


def test_values_in_the_padding_change_no_bit() -> None:
    x, lengths, state = batch()
    net = network(stack(), JitEngine("float32", 2))
    expected = net.run(x, lengths, state)
    for filling in (np.nan, np.inf, 3e38):
        dirty = x.copy()
        dirty[np.arange(T) >= lengths[:, None]] = filling
        result = net.run(dirty, lengths, state)
        assert_bits(flat(result.outputs, result.state), flat(expected.outputs, expected.state))


def put(array: Array, value: float, seed: int) -> None:
    """Write `value` at a random place."""
    array[tuple(np.random.default_rng(seed).integers(0, array.shape))] = value


NOT_FINITE = ["lstm", "lstm peepholes projection", "gru reset after", "gru reset before", "rnn"]


@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30], ids=str)
@pytest.mark.parametrize("where", ["x", "weight_ih", "weight_hh", "bias", "state"])
@pytest.mark.parametrize("option", NOT_FINITE)
def test_values_that_are_not_finite_come_out_as_in_numpy(
    option: str, where: str, value: float, dtype: str
) -> None:
    kind, options = CELL_OPTIONS[option]
    spec = recurrent(kind, 21, D, directions=2, **options)
    x, lengths, _ = batch()
    x, weights = x.astype(dtype), random_weights([spec])
    state = tuple(None if s is None else s.astype(dtype) for s in random_states([spec], N)[0])
    for seed in range(3):
        names = [name for name in weights if where in name]
        place = {"x": x, "state": state[0]}.get(where)
        put(weights[names[seed % len(names)]] if place is None else place, value, seed)
    tensors = {name: array.astype(dtype) for name, array in weights.items()}
    results = []
    for engine in (JitEngine(dtype), ReferenceEngine(dtype)):
        result = engine.layer(spec, tensors).forward(x, lengths, state)
        results.append(flat(result.output, [result.state]))
    for one, other in zip(*results, strict=True):
        # The sigmoid of this engine never is 0, so infinity times a closed gate is no NaN.
        known = np.ones(one.shape, bool) if np.isnan(value) else ~np.isnan(other)
        np.testing.assert_allclose(one[known], other[known], rtol=1e-5, atol=3e-5)
    if np.isnan(value):
        assert np.isnan(results[0][0]).any()


# Other processors


def narrow(bits: int, registers: int) -> Machine:
    """This machine with narrower vectors."""
    features = ",".join(
        name if not name.startswith("+avx512") or registers == 32 else "-" + name[1:]
        for name in HERE.features.split(",")
    )
    return replace(
        HERE, features=features, vector_bits=bits, registers=registers, dot_bfloat16=False
    )


NARROW = [narrow(256, 16), narrow(128, 32)] if HERE.x86 and HERE.vector_bits == 512 else []
"""This machine with AVX2 only, and with the number and width of ARM's registers."""

if HERE.x86 and HERE.vector_bits == 256:
    NARROW = [narrow(128, 16)]


def small(option: str) -> RecurrentSpec:
    kind, options = CELL_OPTIONS[option]
    return recurrent(kind, 21, D, directions=2, recurrent_dropout=0.3, **options)


def assert_agrees(spec: RecurrentSpec, engine: Engine) -> None:
    """Forward and backward pass agree with the reference engine."""
    N, T = 13, 4
    x, lengths, state = random_inputs(N, T, D), random_lengths(N, T), random_states([spec], N)
    d = np.random.default_rng(1).standard_normal((N, T, spec.output_size)).astype(engine.dtype)
    d[np.arange(T) >= lengths[:, None]] = 0
    passes = []
    for other in (engine, ReferenceEngine(engine.dtype)):
        net = network([spec], other)
        result = net.run(x, lengths, state)
        tape = learning.forward(net, x, lengths, state, PASS)
        passes.append((result, tape, learning.backward(net, tape, d, d_logits=False)))
    (one, tape, gradients), (other_, tape_, expected) = passes
    assert_close(one.outputs, other_.outputs, engine.dtype)
    assert_states_close(one.state, other_.state, engine.dtype)
    assert_close(tape.outputs, tape_.outputs, engine.dtype)
    rtol, atol = (2e-4, 2e-4) if engine.dtype == "float32" else (1e-9, 1e-11)
    for name, value in expected.weights.items():
        np.testing.assert_allclose(gradients.weights[name], value, rtol, atol, err_msg=name)
    np.testing.assert_allclose(gradients.inputs, expected.inputs, rtol, atol)
    for a, b in zip(gradients.state[0], expected.state[0], strict=True):
        if a is not None and b is not None:
            np.testing.assert_allclose(a, b, rtol, atol)


NARROW_RUNS = [(option, "float32") for option in CELL_OPTIONS]
NARROW_RUNS += [(option, "float64") for option in ("lstm peepholes projection", "gru reset before")]


@pytest.mark.parametrize("machine", NARROW, ids=lambda machine: f"{machine.vector_bits} bits")
@pytest.mark.parametrize(("option", "dtype"), NARROW_RUNS)
def test_narrower_vectors(option: str, dtype: str, machine: Machine) -> None:
    assert_agrees(small(option), JitEngine(dtype, 1, machine))


ELSEWHERE = [
    machine_from_features("aarch64-unknown-linux-gnu", "neoverse-n1", {"neon"}),
    machine_from_features("arm64-apple-macosx", "apple-m1", {"neon"}),
    machine_from_features("x86_64-pc-windows-msvc", "haswell", {"avx2", "fma"}),
]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CompiledKernels]]:
    """Compile kernels, but neither link nor run them; the list holds all object code."""
    objects: list[CompiledKernels] = []

    def linked(compiled: CompiledKernels, machine: Machine) -> Kernels:
        objects.append(compiled)
        return Kernels(dict.fromkeys(compiled.exported, 0))

    monkeypatch.setattr(compiler, "_linked", linked)
    monkeypatch.setattr(compiler, "_loaded", {})
    monkeypatch.setattr(thread_pool, "process_pool", lambda: SimpleNamespace(run=lambda *_: 1))
    with patch.dict(os.environ, {"LSTM_CLI_CACHE_DIR": ""}), np.errstate(all="ignore"):
        yield objects


OTHER_CELLS = ["gru reset after", "gru reset before", "rnn"]
COMPILED = [(machine, "lstm peepholes projection") for machine in ELSEWHERE]
COMPILED += [(ELSEWHERE[k % len(ELSEWHERE)], option) for k, option in enumerate(OTHER_CELLS)]


@pytest.mark.parametrize(
    ("machine", "option"), COMPILED, ids=[f"{m.triple} {option}" for m, option in COMPILED]
)
def test_every_cell_compiles_for(
    machine: Machine, option: str, compiled: list[CompiledKernels]
) -> None:
    magic = b"\xcf\xfa\xed\xfe" if "apple" in machine.triple else b"\x7fELF"
    spec, dense = small(option), DenseSpec(1, 42, 3, None)
    if "projection" in option:
        dense = replace(dense, input_size=spec.output_size)
    net = network([spec, dense], JitEngine("float32", 2, machine))
    x = np.zeros((3, 4, D))
    tape = learning.forward(net, x, None, None, PASS)
    learning.backward(net, tape, np.zeros_like(tape.outputs), d_logits=True)
    net.run(x, np.array([2, 3, 4]), keep=True)
    net.run(x)
    Network([spec, dense], net.weights, JitEngine("bfloat16", 2, machine)).run(x)
    exported = [name for code in compiled for name in code.exported]
    assert exported.count("forward") >= 2
    assert exported.count("backward") == 1
    assert all(code.code.startswith(magic) for code in compiled)
    # LLVM calls a function for a missing instruction; linking it would end the process.
    assert not any(b"__trunc" in code.code or b"__ext" in code.code for code in compiled)


# These tests can fail: wrong kernels


Roots = Mapping[str, Expression]
Values = Mapping[str, Value]
Emit = Callable[[Function, VectorType, Roots, Values], dict[str, Value]]


def exchanged(one: str, other: str) -> Callable[[Emit], Emit]:
    """Kernels with two symbols exchanged."""
    names = {one: other, other: one}

    def mutate(emit: Emit) -> Emit:
        return lambda f, vector, roots, values: emit(
            f, vector, roots, {key: values.get(names.get(key, key), v) for key, v in values.items()}
        )

    return mutate


def zeroed(root: str) -> Callable[[Emit], Emit]:
    """Kernels that compute 0 for a root."""

    def mutate(emit: Emit) -> Emit:
        def mutated(
            f: Function, vector: VectorType, roots: Roots, values: Values
        ) -> dict[str, Value]:
            results = emit(f, vector, roots, values)
            return {key: vector.number(0.0) if key == root else v for key, v in results.items()}

        return mutated

    return mutate


MUTATIONS = {
    "input and forget gate": ("lstm", exchanged("h_i", "h_f")),
    "candidate and output gate": ("lstm", exchanged("x_g", "x_o")),
    "gates of a gru": ("gru reset after", exchanged("h_r", "h_z")),
    "peepholes": ("lstm peepholes", exchanged("p_i", "p_f")),
    "h": ("rnn", zeroed("h")),
    "c": ("lstm", zeroed("c")),
    "operand of the second product": ("gru reset before", zeroed("reads")),
    "a derivative for a gate": ("lstm", zeroed("dz 2")),
    "a derivative for x": ("gru reset after", zeroed("dz 3")),
    "a derivative for a state": ("lstm", zeroed("c_prev")),
    "a derivative for a peephole": ("lstm peepholes", zeroed("p_o")),
    "recorded values": ("lstm", zeroed("slot 0")),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_kernels_are_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option, mutate = MUTATIONS[name]
    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", "")
    monkeypatch.setattr(compiler, "_loaded", dict(compiler._loaded))
    for key in list(compiler._loaded):
        if key[0].startswith(("forward ", "backward ")):
            del compiler._loaded[key]
    monkeypatch.setattr(cell, "emit", mutate(cell.emit))
    with pytest.raises(AssertionError, match="Mismatched|Not equal"):
        assert_agrees(small(option), JitEngine("float64"))


# Many threads

MANY = """
import hashlib, resource, sys
limit = 4 << 30
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import numpy as np
import lstm_cli

def digest(threads, layers, dtype):
    net = lstm_cli.build(
        {"model": {"input_size": 9, "layers": [*layers, {"type": "dense", "units": 3}]}},
        engine="jit", dtype=dtype, threads=threads, seed=3,
    )
    rng, arrays = np.random.default_rng(0), []
    for N, T in ((20, 5), (400, 3)):
        x, lengths = rng.standard_normal((N, T, 9)), rng.integers(0, T + 1, N)
        y = rng.standard_normal((N, T, 3))
        for n in (None, lengths):
            result = net.run(x, n, keep=True)
            arrays += [result.outputs, *(kept["h"] for kept in result.kept[0].values())]
            if dtype != "bfloat16":
                arrays += lstm_cli.Trainer(net).gradients(x, y, n)[1].values()
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

cells = {"type": "lstm", "hidden_size": 80, "peepholes": True, "bidirectional": True}, {
    "type": "gru", "hidden_size": 150
}
for dtype in ("float32", "bfloat16"):
    one, few, many = (digest(threads, cells, dtype) for threads in (1, 3, 192))
    assert one == few == many, dtype
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert peak < (2 << 20) or sys.platform != "linux", f"{peak} kB"
print("ok", peak)
"""


def test_many_threads_give_the_same_bits_in_little_memory() -> None:
    pytest.importorskip("resource")
    ended = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, timeout=300
    )
    assert ended.stdout.startswith("ok"), ended.stderr


def test_workspaces_grow_no_faster_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that share columns also share the input projections."""
    monkeypatch.setattr(batch_module, "MIN_STEP_WORK", 0)
    monkeypatch.setattr(batch_module, "MIN_BATCH_WORK", 0)
    spec = recurrent("lstm", 64, 32)
    x = np.random.default_rng(0).standard_normal((8, 3000, 32))
    sizes = []
    for count in (8, 64):
        engine = JitEngine("float32", count)
        network([spec], engine).run(x)
        sizes.append(engine.workspace_bytes)
    assert sizes[1] < 8 * sizes[0] + (1 << 20)
    assert sizes[1] < 64 << 20
