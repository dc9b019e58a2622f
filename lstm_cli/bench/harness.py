"""Measuring: outputs are compared first, and only who agrees is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.bench.peers import Peer, Run
from lstm_cli.bench.results import Agreement, SizeResult, Timing
from lstm_cli.bench.rounds import interleave
from lstm_cli.bench.sizes import Size, describe, flops
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Array, Engine, Layers, LayerSpec
from lstm_cli.errors import LstmCliError, UsageError
from lstm_cli.network.initialisers import initialise
from lstm_cli.network.network import Network

TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-10}
"""By dtype, the largest difference at which outputs count as equal; see `Agreement`."""

OURS = "lstm-cli"

Progress = Callable[[int, int, Size], None]
"""Called before each size with how many are done, how many there are, and which is next."""


@dataclass(frozen=True)
class _Contestant:
    name: str
    title: str
    run: Run


def measure(
    sizes: Iterable[Size],
    layers_of: Callable[[Size], tuple[LayerSpec, ...]],
    engine: Engine,
    peers: Sequence[Peer] = (),
    *,
    rounds: int | None = None,
    seconds: float = 0.3,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SizeResult, ...]:
    """Time forward passes over batches of full-length sequences.

    Each contestant takes NumPy's (N, T, D) and gives NumPy's (N, T, F), or (N, F); what that
    costs it, such as copies to a device, is timed with it.

    Parameters
    ----------
    layers_of
        The layers to measure at a size.
    rounds, seconds
        Rounds a size; None: as many as let a contestant stay within about `seconds`.
    seed
        Of weights and inputs.

    Raises
    ------
    UsageError
        Fewer rounds than one.
    LstmCliError
        The engine cannot compute the layers. A peer that cannot is skipped with its reason.
    """
    if rounds is not None and rounds < 1:
        raise UsageError("there must be at least 1 round", found=str(rounds))
    sizes = tuple(sizes)
    results = []
    for done, size in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes), size)
        results.append(_measure(size, layers_of(size), engine, peers, rounds, seconds, seed))
    return tuple(results)


def random_weights(layers: Layers, seed: int, dtype: str) -> dict[str, Array]:
    """Weights in which nothing is zero or equal, so that a mistake cannot hide."""
    rng = np.random.default_rng(seed)
    weights = initialise(layers, seed=seed, dtype="float64")
    return {
        name: (value + rng.uniform(-0.5, 0.5, value.shape) * (value.ndim == 1)).astype(dtype)
        for name, value in weights.items()
    }


def random_inputs(layers: Layers, size: Size, seed: int, dtype: str) -> Array:
    """A batch (N, T, D) of the standard normal distribution."""
    rng = np.random.default_rng([seed, 1])
    shape = (size.batch, size.steps, layers[0].input_size)
    return rng.standard_normal(shape).astype(dtype)


def _measure(
    size: Size,
    layers: tuple[LayerSpec, ...],
    engine: Engine,
    peers: Sequence[Peer],
    rounds: int | None,
    seconds: float,
    seed: int,
) -> SizeResult:
    dtype = "float64" if engine.dtype == "float64" else "float32"  # as NumPy knows it
    net = Network(layers, random_weights(layers, seed, dtype), engine)
    x = random_inputs(layers, size, seed, dtype)
    title = f"{OURS} ({engine.name}, {engine.dtype})"
    ours = _Contestant(OURS, title, lambda x: engine.to_host(net.run(x).outputs))
    with ExitStack() as stack:
        rivals, skipped = _prepared(stack, peers, net, size)
        agreements, failed = _compared(ours, rivals, x, TOLERANCES.get(engine.dtype, 0.0))
        agreed = [r for r in rivals if r.name in agreements and agreements[r.name].ok]
        timings, ratios = _timed((ours, *agreed), x, flops(layers, size), rounds, seconds)
    return SizeResult(size, describe(layers), timings, ratios, agreements, skipped | failed)


def _prepared(
    stack: ExitStack, peers: Sequence[Peer], net: Network, size: Size
) -> tuple[list[_Contestant], dict[str, str]]:
    """Peers that can compute the network, and why the others cannot."""
    engine = net.engine
    rivals: list[_Contestant] = []
    skipped: dict[str, str] = {}
    for peer in {peer.name: peer for peer in peers}.values():
        if engine.device != "cpu":
            skipped[peer.name] = f"peers are measured on the CPU only, not against {engine.device}"
        elif engine.dtype not in TOLERANCES:
            skipped[peer.name] = f"peers are measured in float32 and float64, not {engine.dtype}"
        else:
            threads = engine.threads or default_threads()
            prepared = peer.prepare(net.layers, net.weights, size, threads)
            try:
                run = stack.enter_context(prepared)
            except Exception as error:  # another library's, of any class
                skipped[peer.name] = _reason(error)
            else:
                rivals.append(_Contestant(peer.name, peer.title, run))
    return rivals, skipped


def _compared(
    ours: _Contestant, rivals: Sequence[_Contestant], x: Array, tolerance: float
) -> tuple[dict[str, Agreement], dict[str, str]]:
    """Whether each rival's outputs are ours, and why some gave none."""
    agreements: dict[str, Agreement] = {}
    failed: dict[str, str] = {}
    expected = ours.run(x) if rivals else None
    for rival in rivals:
        try:
            outputs = rival.run(x)
        except Exception as error:  # another library's, of any class
            failed[rival.name] = _reason(error)
        else:
            agreements[rival.name] = agreement(expected, outputs, tolerance)
    return agreements, failed


def _reason(error: Exception) -> str:
    """Why a peer gave no outputs, on one line."""
    if isinstance(error, LstmCliError):
        return error.problems[0].what
    return f"it failed: {next(iter(str(error).splitlines()), type(error).__name__)}"


def agreement(expected: Any, found: Any, tolerance: float) -> Agreement:
    """Compare outputs element by element, in float64."""
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    if a.shape != b.shape:
        return Agreement(float("inf"), tolerance, False)
    with np.errstate(invalid="ignore"):
        scaled = np.abs(a - b) / np.maximum(1.0, np.abs(a))
    difference = float(scaled.max(initial=0.0))
    return Agreement(difference, tolerance, difference <= tolerance)  # NaN is not within


def _timed(
    contestants: Sequence[_Contestant],
    x: Array,
    work: float,
    rounds: int | None,
    seconds: float,
) -> tuple[tuple[Timing, ...], dict[str, float]]:
    """Timings in order, and the later contestants' ratios to the first."""
    samples = interleave([_bound(c.run, x) for c in contestants], rounds, seconds)
    timings, ratios = [], {}
    for k, contestant in enumerate(contestants):
        own = samples.seconds[:, k]
        median = float(np.median(own))
        calls = len(own) * samples.repeats[k]
        p95 = float(np.percentile(own, 95))
        rate = work / median / 1e9
        timings.append(Timing(contestant.name, contestant.title, median, p95, calls, rate))
        if k:
            ratios[contestant.name] = float(np.median(own / samples.seconds[:, 0]))
    return tuple(timings), ratios


def _bound(run: Run, x: Array) -> Callable[[], Any]:
    return lambda: run(x)
