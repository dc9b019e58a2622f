"""Measurement: compare every candidate's results, then time the candidates that agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import LayerSpec, MachinePeaks, RecurrentSpec
from lstm_cli.errors import LstmCliError, UsageError, nearest
from lstm_cli.workflows.bench.peers import Peer
from lstm_cli.workflows.bench.protocol import Samples, interleave
from lstm_cli.workflows.bench.results import (
    MODES,
    PaddedTiming,
    PeerAgreement,
    RooflineShares,
    SizeResult,
    Timing,
)
from lstm_cli.workflows.bench.sizes import GridSize
from lstm_cli.workflows.bench.workload import (
    OUTPUT_TOLERANCES,
    Candidate,
    ForwardWorkload,
    TrainingWorkload,
    Workload,
)

Progress = Callable[[int, int, GridSize], None]
"""Called before each size with the number of finished sizes, of all sizes, and the next size."""


def measure(
    sizes: Iterable[GridSize],
    layers_of: Callable[[GridSize], tuple[LayerSpec, ...]],
    engine: Engine,
    peers: Sequence[Peer] = (),
    *,
    mode: str = "forward",
    loss: str | None = None,
    ragged: bool = False,
    rounds: int | None = None,
    seconds: float = 0.3,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SizeResult, ...]:
    """Time forward passes or training steps over a batch.

    Parameters
    ----------
    layers_of
        Returns the layers to measure at a size.
    mode
        ``forward``: see `ForwardWorkload`; ``train``: see `TrainingWorkload`.
    loss
        Training loss; None: the loss that suits the last layer.
    ragged
        Sequences of random lengths between T / 10 and T, rather than T steps each. Only valid
        steps count as work. This program is also timed on full-length sequences.
    rounds
        Rounds per size; None: as many as fit in `seconds`.
    seconds
        Approximate seconds per candidate.
    seed
        Seed of weights, inputs, lengths and targets.

    Raises
    ------
    UsageError
        Fewer rounds than one, or an unknown mode.
    LstmCliError
        The engine cannot compute the layers. A peer that cannot is skipped, with a reason.
    """
    if rounds is not None and rounds < 1:
        raise UsageError("there must be at least 1 round", found=str(rounds))
    if mode not in MODES:
        guess = nearest(mode, MODES)
        raise UsageError(
            f"{mode!r} is not a mode of bench",
            expected=" or ".join(MODES),
            hint=f"did you mean `{guess}`?" if guess else None,
        )

    def workload_at(size: GridSize) -> Workload:
        if mode == "train":
            return TrainingWorkload(layers_of(size), size, engine, seed, loss, ragged=ragged)
        return ForwardWorkload(layers_of(size), size, engine, seed, ragged=ragged)

    sizes = tuple(sizes)
    results, reads = [], []
    limits: list[MachinePeaks] = []
    for count, size in enumerate(sizes):
        if progress is not None:
            progress(count, len(sizes), size)
        workload = workload_at(size)
        reads.append(workload.reads)
        limits += roofline_limits(engine, workload.reads)
        results.append(_measure_size(size, workload, engine, peers, rounds, seconds, mode))
        del workload  # its arrays would add to the peak of memory while limits are measured
        limits += roofline_limits(engine, reads[-1])
    if not limits:
        return tuple(results)
    best = MachinePeaks.best(limits)
    return tuple(
        replace(result, shares=roofline_shares(result.lstm_cli_timing, read, best))
        for result, read in zip(results, reads, strict=True)
    )


def _measure_size(
    size: GridSize,
    workload: Workload,
    engine: Engine,
    peers: Sequence[Peer],
    rounds: int | None,
    seconds: float,
    mode: str,
) -> SizeResult:
    batch = workload.batch
    candidate = workload.lstm_cli_candidate()
    with ExitStack() as stack:
        peer_candidates, skipped = _prepare_peers(stack, peers, workload, engine)
        agreements, failed = _compare_peers(workload, candidate, peer_candidates)
        timed = [
            candidate,
            *(r for r in peer_candidates if r.name in agreements and agreements[r.name].ok),
        ]
        if batch.lengths is not None:
            timed.append(workload.padded_candidate())
        samples = interleave([c.call for c in timed], rounds, seconds, [c.clock for c in timed])
    padded = None
    if batch.lengths is not None:
        timing = _timing(timed.pop(), samples, -1, workload.padded_flops)
        padded = PaddedTiming(
            timing, _ratio(samples, -1) * (batch.positions / (size.batch * size.steps))
        )
    return SizeResult(
        size,
        workload.description,
        tuple(_timing(c, samples, k, workload.flops) for k, c in enumerate(timed)),
        {c.name: _ratio(samples, k) for k, c in enumerate(timed) if k},
        agreements,
        skipped | failed,
        mode,
        steps=batch.positions,
        padded=padded,
    )


def _prepare_peers(
    stack: ExitStack, peers: Sequence[Peer], workload: Workload, engine: Engine
) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates of the peers that can do this work, and reasons why other peers cannot."""
    peer_candidates: list[Candidate] = []
    skipped: dict[str, str] = {}
    for peer in {peer.name: peer for peer in peers}.values():
        if engine.device == "cpu" and engine.dtype not in OUTPUT_TOLERANCES:
            skipped[peer.name] = (
                f"peers on a CPU are measured in float32 and float64, not {engine.dtype}"
            )
        else:
            try:
                peer_candidates.append(workload.peer_candidate(stack, peer))
            except Exception as error:  # another library raises any class
                skipped[peer.name] = _reason(error)
    return peer_candidates, skipped


def _compare_peers(
    workload: Workload, candidate: Candidate, peer_candidates: Sequence[Candidate]
) -> tuple[dict[str, PeerAgreement], dict[str, str]]:
    """Agreement of each peer with this program, and reasons of peers that failed."""
    agreements: dict[str, PeerAgreement] = {}
    failed: dict[str, str] = {}
    expected = candidate.compute() if peer_candidates else None
    for peer_candidate in peer_candidates:
        try:
            results = peer_candidate.compute()
            exact = None if peer_candidate.compute_exact is None else peer_candidate.compute_exact()
        except Exception as error:  # another library raises any class
            failed[peer_candidate.name] = _reason(error)
        else:
            agreements[peer_candidate.name] = workload.compare(expected, results, exact)
    return agreements, failed


def _reason(error: Exception) -> str:
    if isinstance(error, LstmCliError):
        return error.problems[0].what
    return f"it failed: {next(iter(str(error).splitlines()), type(error).__name__)}"


def _timing(candidate: Candidate, samples: Samples, k: int, flops: float) -> Timing:
    """The timing of candidate number `k`, whose call takes `flops` operations."""
    seconds = samples.seconds[:, k]
    median, p95 = float(np.median(seconds)), float(np.percentile(seconds, 95))
    calls = len(seconds) * samples.repeats[k]
    return Timing(candidate.name, candidate.title, median, p95, calls, flops / median / 1e9)


def _ratio(samples: Samples, k: int) -> float:
    """The time of candidate `k` over the first one's: the median of the ratios in each round."""
    return float(np.median(samples.seconds[:, k] / samples.seconds[:, 0]))


def roofline_limits(engine: Engine, reads: Mapping[int, int]) -> tuple[MachinePeaks, ...]:
    """The machine's measured limits for matrices of these bytes; empty without a measurement."""
    peaks = engine.measure_peaks(tuple(reads))
    return () if peaks is None else (peaks,)


def roofline_shares(
    timing: Timing, reads: Mapping[int, int], limits: MachinePeaks
) -> RooflineShares:
    """Shares of the machine's limits that a timing's median reaches.

    Parameters
    ----------
    reads
        Number of reads of recurrent matrices in a call, by bytes of a matrix.
    """
    of_peak = timing.gflops / limits.gflops
    speeds = {read.bytes: read.gbytes * 1e9 for read in limits.reads}
    total = sum(size * times for size, times in reads.items())
    least = sum(size * times / speeds[size] for size, times in reads.items())
    if not total:
        return RooflineShares(limits.gflops, of_peak)
    return RooflineShares(limits.gflops, of_peak, total, total / least / 1e9, least / timing.median)


@dataclass(frozen=True)
class LayerExplanation:
    """The engine's explanation of one recurrent layer; `layer` is such as ``0 lstm``."""

    layer: str
    explanation: Explanation


@dataclass(frozen=True)
class SizeExplanation:
    """Algorithm with which the engine computed one size, and the reasons.

    Attributes
    ----------
    layers
        Explanations of the recurrent layers; empty if the engine has only one algorithm.
    step
        Measured seconds of a call over the steps of its longest sequence.
    floor
        Modeled lower bound in seconds of a step through all recurrent layers; None where a
        layer has no model.
    """

    size: GridSize
    layers: tuple[LayerExplanation, ...]
    step: float
    floor: float | None


def explain(
    results: Sequence[SizeResult],
    layers_of: Callable[[GridSize], tuple[LayerSpec, ...]],
    engine: Engine,
) -> tuple[SizeExplanation, ...]:
    """Explain how the engine computed every measured size."""
    return tuple(_explain_size(result, layers_of(result.size), engine) for result in results)


def _explain_size(
    result: SizeResult, layers: Sequence[LayerSpec], engine: Engine
) -> SizeExplanation:
    size, training = result.size, result.mode == "train"
    N, T = size.batch, size.steps
    recurrent = [spec for spec in layers if isinstance(spec, RecurrentSpec)]
    by_index = engine.explain(layers, N, T, training=training)
    explanations = tuple(
        LayerExplanation(f"{s.index} {s.kind}", by_index[s.index])
        for s in recurrent
        if s.index in by_index
    )
    floors = [layer.explanation.floor for layer in explanations]
    known = [floor for floor in floors if floor is not None]
    floor = sum(known) if known and len(known) == len(floors) else None
    return SizeExplanation(size, explanations, result.lstm_cli_timing.median / T, floor)
