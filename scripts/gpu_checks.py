"""Cases of `check_gpu.py`: computed on a device, and compared with the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from cuda_cells import CELLS
from networks import random_inputs, random_lengths, random_states, random_weights, recurrent

from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.kernels import NO_PERSISTENT_KERNEL
from lstm_cli.engines.cuda.stacks import PipelineOptions
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec, TrainingPass
from lstm_cli.errors import DeviceError
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

TOLERANCES = {
    "float32": (2e-5, 2e-4),
    "float64": (1e-11, 1e-9),
    "tf32": (4e-3, 1e-2),
    "float16": (4e-3, 1e-2),
    "bfloat16": (3e-2, 6e-2),
}
"""Tolerances by dtype: of outputs and states, and of derivatives relative to their largest number.

For rounded operands they are four times the error of an LSTM by rounding. Swapped gates, or a
missing product, move results by more than 0.1."""

KINK_TOLERANCE = 0.5
"""Tolerance for derivatives of functions with a kink, in dtypes that round: a sum near the kink may
fall on its other side, where the derivative is another one."""

REPEATS = 5
"""Passes per case: an exchange that is too early does not fail every time."""


@dataclass(frozen=True)
class Case:
    """A network and the options of its inputs.

    Attributes
    ----------
    ragged
        True for random lengths, 0 and T among them.
    repeats
        Number of passes.
    chunk_steps
        Steps per chunk of a pipeline; None: the engine decides.
    """

    name: str
    layers: tuple[LayerSpec, ...]
    N: int
    T: int
    ragged: bool = False
    repeats: int = 1
    chunk_steps: int | None = None


def cases(most: int) -> Iterator[Case]:
    """All cases with at most `most` units per layer."""
    yield from _options()
    yield from _larger_options(most)
    yield from _stacks()
    yield from _pipelines(most)
    yield from _sizes(most)


def _options() -> Iterator[Case]:
    """Every option of every cell, in small sizes, with one direction and two."""
    for name, cell in CELLS.items():
        for directions in (1, 2):
            layers = (RecurrentSpec(0, 4, (cell,) * directions),)
            yield Case(f"{name}, {directions} directions", layers, 5, 4)
            yield Case(f"{name}, {directions} directions, ragged", layers, 6, 5, True)
    for kind in ("lstm", "gru", "rnn"):
        layer = recurrent(kind, 16, 9, dropout=0.3, recurrent_dropout=0.4)
        yield Case(f"{kind} with dropout", (layer,), 5, 4)
        last = recurrent(kind, 16, 9, directions=2, return_sequences=False)
        yield Case(f"{kind}, last step", (last,), 7, 5, True)
        yield Case(f"{kind}, one step of one sequence", (recurrent(kind, 16, 9),), 1, 1)


def _larger_options(most: int) -> Iterator[Case]:
    """Every option of every cell, in layers large enough for persistent kernels."""
    for H in (40, 200):
        for name, cell in CELLS.items():
            if most >= H:
                projected = {"projection_size": H // 2} if cell.projects else {}
                large = replace(cell, hidden_size=H, **projected)
                layers = (RecurrentSpec(0, 12, (large,) * 2),)
                yield Case(f"{name} of {H}, ragged", layers, 9, 7, True)


def _stacks() -> Iterator[Case]:
    for kind in ("lstm", "gru"):
        layers = (
            recurrent(kind, 16, 5, directions=2),
            recurrent(kind, 24, 32, index=1),
            recurrent("rnn", 9, 24, index=2, return_sequences=False),
            DenseSpec(3, 9, 6, None),
        )
        yield Case(f"a stack of {kind}", layers, 9, 6, True)


def _pipelines(most: int) -> Iterator[Case]:
    """Pipelined layers, of one size and of several; the last chunk is shorter."""
    for depth, H, N in (
        (2, 8, 3),
        (2, 100, 1),
        (4, 100, 8),
        (2, 256, 33),
        (4, 256, 8),
        (2, 1024, 8),
    ):
        if most >= H:
            layers = tuple(recurrent("lstm", H, H, index=k) for k in range(depth))
            name = f"a pipeline of {depth} lstm of {H} × {N}"
            yield Case(name, layers, N, 43, repeats=REPEATS, chunk_steps=8)
    if most >= 64:
        mixed = (
            recurrent("gru", 64, 24),
            recurrent("lstm", 40, 64, index=1, peepholes=True),
            recurrent("rnn", 33, 40, index=2, return_sequences=False),
        )
        for ragged in (False, True):
            name = "a pipeline of gru, lstm and rnn" + ", ragged" * ragged
            yield Case(name, mixed, 5, 43, ragged, repeats=REPEATS, chunk_steps=8)


def _sizes(most: int) -> Iterator[Case]:
    """Sizes that tensor cores and clusters divide, and odd sizes."""
    few, many = (1, 8), (1, 5, 16, 33, 64, 128)
    grid = [(H, N) for H in (8, 16, 32, 64) for N in (*few, 17)]
    grid += [(H, N) for H in (33, 100, 128, 160, 192, 256, 320) for N in many]
    grid += [(H, N) for H in (512, 768, 1024) for N in (1, 8, 33, 128)]
    grid += [(H, N) for H in (1536, 2048) for N in (8, 64)]
    for H, N in grid:
        if most >= H:
            yield Case(f"lstm {H} × {N}", (recurrent("lstm", H, H),), N, 6, repeats=REPEATS)
    for kind, H, N in (("gru", 128, 16), ("gru", 320, 8), ("rnn", 256, 8), ("rnn", 512, 33)):
        if most >= H:
            layers = (recurrent(kind, H, 40, directions=2),)
            yield Case(f"{kind} {H} × {N}, both directions, ragged", layers, N, 9, True, REPEATS)
    for H, N, T in ((48, 8, 400), (256, 16, 400), (768, 8, 400), (1024, 32, 200)):
        if most >= H:
            layers = (recurrent("lstm", H, 40),)
            yield Case(f"lstm {H} × {N}, {T} steps, ragged", layers, N, T, True, REPEATS)


Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class CaseInputs:
    """Inputs of a case, in float64."""

    weights: Values
    x: np.ndarray
    lengths: np.ndarray | None
    states: Sequence[Any]
    d: np.ndarray


@lru_cache(maxsize=1)
def inputs_of(case: Case) -> CaseInputs:
    """Random inputs; the derivative of the outputs is 0 in the padding."""
    lengths = random_lengths(case.N, case.T, 3) if case.ragged else None
    if lengths is not None and case.T > 100:
        lengths = np.maximum(lengths, np.arange(case.N) % 3 * case.T // 3)
    last_only = any(isinstance(s, RecurrentSpec) and not s.return_sequences for s in case.layers)
    shape = (case.N, *(() if last_only else (case.T,)), case.layers[-1].output_size)
    d = np.random.default_rng(7).standard_normal(shape) / np.sqrt(case.N)
    if lengths is not None:
        counts = lengths > 0 if last_only else np.arange(case.T) < lengths[:, None]
        d = np.where(counts[..., None], d, 0.0)
    x = random_inputs(case.N, case.T, case.layers[0].input_size)
    return CaseInputs(
        random_weights(case.layers), x, lengths, random_states(case.layers, case.N), d
    )


def computed(case: Case, engine: Any) -> tuple[Values, Values]:
    """Outputs and states of inference and training, and all derivatives."""
    inputs, dtype = inputs_of(case), "float64" if engine.dtype == "float64" else "float32"
    network = Network(case.layers, inputs.weights, engine)
    x, d = inputs.x.astype(dtype), inputs.d.astype(dtype)
    result = network.run(x, inputs.lengths, inputs.states)
    values = {"outputs": result.outputs}
    for k, (h, c) in enumerate(result.state):
        values |= {f"h of layer {k}": h} | ({} if c is None else {f"c of layer {k}": c})
    tape = backpropagation.forward(network, x, inputs.lengths, inputs.states, TrainingPass(5, 2))
    values["outputs in training"] = tape.outputs
    result = backpropagation.backward(network, tape, d, d_logits=False)
    gradients = {f"gradient of {name}": g for name, g in result.weights.items()}
    gradients["gradient of inputs"] = result.inputs
    for k, (dh, dc) in result.state.items():
        gradients |= {f"dh of layer {k}": dh} | ({} if dc is None else {f"dc of layer {k}": dc})
    return tuple(
        {name: np.asarray(engine.to_host(value), np.float64) for name, value in part.items()}
        for part in (values, gradients)
    )


@lru_cache(maxsize=1)
def expected(case: Case) -> tuple[Values, Values]:
    """Values of the reference engine in float64."""
    return computed(case, ReferenceEngine("float64"))


def problems(case: Case, dtype: str, device: Any, kernels: str) -> list[str] | None:
    """Problems of a case on the device; None if the kernels cannot run it, and say so."""
    pipelining = None
    if case.chunk_steps is not None:
        pipelining = PipelineOptions("always", case.chunk_steps)
    engine = CudaEngine(dtype, device, kernels, pipelining)
    for number in range(case.repeats):
        try:
            values, gradients = computed(case, engine)
        except DeviceError as error:
            if NO_PERSISTENT_KERNEL in str(error):
                return None
            return [f"it failed: {error}"]
        tolerance, gradient_tolerance = TOLERANCES[dtype]
        if _kinked(case) and dtype not in ("float32", "float64"):
            gradient_tolerance = KINK_TOLERANCE
        expected_values, expected_gradients = expected(case)
        lines = _differences(values, expected_values, tolerance, relative=False)
        lines += _differences(gradients, expected_gradients, gradient_tolerance, relative=True)
        if lines:
            return [f"{line}, pass {number + 1}" if number else line for line in lines]
    return []


def _kinked(case: Case) -> bool:
    """True if a cell clips, or has a piecewise linear function."""
    return any(
        cell.clip is not None or "hard_sigmoid" in repr(cell)
        for spec in case.layers
        if isinstance(spec, RecurrentSpec)
        for cell in spec.cells
    )


def _differences(
    actual: Values, expected_values: Values, tolerance: float, *, relative: bool
) -> list[str]:
    """Arrays beyond the tolerance; `relative` to the largest number of each tensor."""
    lines = []
    least = 1e-3 * max(float(np.abs(value).max(initial=0.0)) for value in expected_values.values())
    for name, value in expected_values.items():
        if actual[name].shape != value.shape:
            lines.append(f"{name} has shape {actual[name].shape}, not {value.shape}")
            continue
        scale = max(least, float(np.abs(value).max(initial=0.0))) if relative else 1.0
        off = float(np.abs(actual[name] - value).max(initial=0.0)) / (scale or 1.0)
        if not off <= tolerance:  # also true for NaN
            lines.append(f"{name} is off by {off:.2g}, tolerance {tolerance:.0e}")
    return lines


def without_repeats(case: Case) -> Case:
    """The case with a single pass."""
    return replace(case, repeats=1)
