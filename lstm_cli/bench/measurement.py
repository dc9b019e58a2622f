"""Measuring: what is computed is compared first, and only who agrees is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.bench.peers import Peer
from lstm_cli.bench.protocol import Samples, interleave
from lstm_cli.bench.results import (
    MODES,
    PaddedTiming,
    PeerAgreement,
    RooflineShares,
    SizeResult,
    Timing,
)
from lstm_cli.bench.sizes import GridSize
from lstm_cli.bench.workload import (
    OUTPUT_TOLERANCES,
    Candidate,
    ForwardWorkload,
    TrainingWorkload,
    Workload,
)
from lstm_cli.engines.explanation import Explaining, ExplainingStacks, Explanation
from lstm_cli.engines.limits import Limits, Measurable
from lstm_cli.engines.types import Engine, LayerSpec, RecurrentSpec
from lstm_cli.errors import LstmCliError, UsageError, nearest

Progress = Callable[[int, int, GridSize], None]
"""Called before each size with how many are done, how many there are, and which is next."""


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
        The layers to measure at a size.
    mode
        ``forward``: see `ForwardWorkload`; ``train``: see `TrainingWorkload`.
    loss
        Of training; None: the one that suits the last layer.
    ragged
        Sequences of random lengths between T / 10 and T, rather than T steps each. Only valid
        steps count as work, and this program's speed on full-length sequences is measured too.
    rounds, seconds
        Rounds a size; None: as many as let a contestant stay within about `seconds`.
    seed
        Of weights, inputs, lengths and targets.

    Raises
    ------
    UsageError
        Fewer rounds than one, or another mode.
    LstmCliError
        The engine cannot compute the layers. A peer that cannot is skipped with its reason.
    """
    if rounds is not None and rounds < 1:
        raise UsageError("there must be at least 1 round", found=str(rounds))
    if mode not in MODES:
        guess = nearest(mode, MODES)
        raise UsageError(
            f"{mode!r} is not something to measure",
            expected=" or ".join(MODES),
            hint=f"did you mean `{guess}`?" if guess else None,
        )

    def contest(size: GridSize) -> Workload:
        if mode == "train":
            return TrainingWorkload(layers_of(size), size, engine, seed, loss, ragged=ragged)
        return ForwardWorkload(layers_of(size), size, engine, seed, ragged=ragged)

    sizes = tuple(sizes)
    results, reads = [], []
    limits: list[Limits] = []
    for done, size in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes), size)
        made = contest(size)
        reads.append(made.reads)
        limits += limits_of(engine, made.reads)
        results.append(_measure(size, made, engine, peers, rounds, seconds, mode))
        del made  # what is read to find the limits is not to add to the peak of memory
        limits += limits_of(engine, reads[-1])
    if not limits:
        return tuple(results)
    best = Limits.best(limits)
    pairs = zip(results, reads, strict=True)
    return tuple(
        replace(one, shares=roofline_shares(one.ours, read, best)) for one, read in pairs
    )


def _measure(
    size: GridSize,
    contest: Workload,
    engine: Engine,
    peers: Sequence[Peer],
    rounds: int | None,
    seconds: float,
    mode: str,
) -> SizeResult:
    ours, batch = contest.ours(), contest.batch
    with ExitStack() as stack:
        rivals, skipped = _prepared(stack, peers, contest, engine)
        agreements, failed = _compared(contest, ours, rivals)
        agreed = [r for r in rivals if r.name in agreements and agreements[r.name].ok]
        contestants = [ours, *agreed, *([] if batch.lengths is None else [contest.padded()])]
        calls, clocks = [c.call for c in contestants], [c.clock for c in contestants]
        samples = interleave(calls, rounds, seconds, clocks)
    share = batch.positions / (size.batch * size.steps)
    padded = None
    if batch.lengths is not None:
        timing = _timing(contestants.pop(), samples, -1, contest.padded_flops)
        padded = PaddedTiming(timing, _ratio(samples, -1) * share)
    timings = tuple(_timing(c, samples, k, contest.flops) for k, c in enumerate(contestants))
    ratios = {c.name: _ratio(samples, k) for k, c in enumerate(contestants) if k}
    return SizeResult(
        size,
        contest.words,
        timings,
        ratios,
        agreements,
        skipped | failed,
        mode,
        steps=batch.positions,
        padded=padded,
    )


def _prepared(
    stack: ExitStack, peers: Sequence[Peer], contest: Workload, engine: Engine
) -> tuple[list[Candidate], dict[str, str]]:
    """Peers that can take part, and why the others cannot."""
    rivals: list[Candidate] = []
    skipped: dict[str, str] = {}
    for peer in {peer.name: peer for peer in peers}.values():
        if engine.device == "cpu" and engine.dtype not in OUTPUT_TOLERANCES:
            skipped[peer.name] = (
                f"peers on a CPU are measured in float32 and float64, not {engine.dtype}"
            )
        else:
            try:
                rivals.append(contest.theirs(stack, peer))
            except Exception as error:  # another library's, of any class
                skipped[peer.name] = _reason(error)
    return rivals, skipped


def _compared(
    contest: Workload, ours: Candidate, rivals: Sequence[Candidate]
) -> tuple[dict[str, PeerAgreement], dict[str, str]]:
    """Whether each rival computes what we compute, and why some gave nothing to compare."""
    agreements: dict[str, PeerAgreement] = {}
    failed: dict[str, str] = {}
    expected = ours.shown() if rivals else None
    for rival in rivals:
        try:
            found = rival.shown()
            exact = None if rival.exact is None else rival.exact()
        except Exception as error:  # another library's, of any class
            failed[rival.name] = _reason(error)
        else:
            agreements[rival.name] = contest.compare(expected, found, exact)
    return agreements, failed


def _reason(error: Exception) -> str:
    """Why a peer gave nothing, on one line."""
    if isinstance(error, LstmCliError):
        return error.problems[0].what
    return f"it failed: {next(iter(str(error).splitlines()), type(error).__name__)}"


def _timing(contestant: Candidate, samples: Samples, k: int, flops: float) -> Timing:
    """What the rounds gave for the contestant at place `k`."""
    own = samples.seconds[:, k]
    median, p95 = float(np.median(own)), float(np.percentile(own, 95))
    calls = len(own) * samples.repeats[k]
    return Timing(contestant.name, contestant.title, median, p95, calls, flops / median / 1e9)


def _ratio(samples: Samples, k: int) -> float:
    """A contestant's time over the first one's: the median of the rounds' own ratios."""
    return float(np.median(samples.seconds[:, k] / samples.seconds[:, 0]))


def limits_of(engine: Engine, reads: Mapping[int, int]) -> tuple[Limits, ...]:
    """The limits for what is read, measured once; none if the engine does not know its machine."""
    return (engine.limits(tuple(reads)),) if isinstance(engine, Measurable) else ()


def roofline_shares(timing: Timing, reads: Mapping[int, int], limits: Limits) -> RooflineShares:
    """A timing's median beside the limits.

    Parameters
    ----------
    reads
        By bytes of a matrix, how many times a call reads it.
    """
    of_peak = timing.gflops / limits.gflops
    speeds = {one.bytes: one.gbytes * 1e9 for one in limits.reads}
    total = sum(size * times for size, times in reads.items())
    least = sum(size * times / speeds[size] for size, times in reads.items())
    if not total:
        return RooflineShares(limits.gflops, of_peak)
    return RooflineShares(limits.gflops, of_peak, total, total / least / 1e9, least / timing.median)


@dataclass(frozen=True)
class LayerExplanation:
    """Of one recurrent layer; `layer` in a few words, ``0 lstm``."""

    layer: str
    explanation: Explanation


@dataclass(frozen=True)
class SizeExplanation:
    """Of one size.

    Attributes
    ----------
    layers
        The recurrent ones; none where the engine has one way only.
    step
        Measured seconds of a call, over the steps of its longest sequence.
    floor
        Modelled seconds that a step takes at least, all recurrent layers together; None where
        one of them has no model.
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
    """What the engine chose at every size that was measured."""
    return tuple(_explained(result, layers_of(result.size), engine) for result in results)


def _explained(result: SizeResult, layers: Sequence[LayerSpec], engine: Engine) -> SizeExplanation:
    size, training = result.size, result.mode == "train"
    N, T, told = size.batch, size.steps, dict[int, Explanation]()
    recurrent = [spec for spec in layers if isinstance(spec, RecurrentSpec)]
    if isinstance(engine, ExplainingStacks):
        told |= engine.explain_layers(layers, N, T, training=training)
    elif isinstance(engine, Explaining):
        told |= {s.index: engine.explain(s, N, T, training=training) for s in recurrent}
    found = tuple(
        LayerExplanation(f"{s.index} {s.kind}", told[s.index]) for s in recurrent if s.index in told
    )
    floors = [one.explanation.floor for one in found]
    known = [floor for floor in floors if floor is not None]
    floor = sum(known) if known and len(known) == len(floors) else None
    return SizeExplanation(size, found, result.ours.median / size.steps, floor)
