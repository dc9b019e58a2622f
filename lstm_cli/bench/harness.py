"""Measuring: what is computed is compared first, and only who agrees is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from lstm_cli.bench.contest import TOLERANCES, Contest, Contestant, ForwardContest
from lstm_cli.bench.peers import Peer
from lstm_cli.bench.results import MODES, Agreement, Padded, SizeResult, Timing
from lstm_cli.bench.rounds import Samples, interleave
from lstm_cli.bench.shares import limits_of, shares
from lstm_cli.bench.sizes import Size
from lstm_cli.bench.training import TrainingContest
from lstm_cli.engines.machine import MachinePeaks
from lstm_cli.engines.types import Engine, LayerSpec
from lstm_cli.errors import LstmCliError, UsageError, nearest

Progress = Callable[[int, int, Size], None]
"""Called before each size with how many are done, how many there are, and which is next."""


def measure(
    sizes: Iterable[Size],
    layers_of: Callable[[Size], tuple[LayerSpec, ...]],
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
        ``forward``: see `ForwardContest`; ``train``: see `TrainingContest`.
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

    def contest(size: Size) -> Contest:
        if mode == "train":
            return TrainingContest(layers_of(size), size, engine, seed, loss, ragged=ragged)
        return ForwardContest(layers_of(size), size, engine, seed, ragged=ragged)

    sizes = tuple(sizes)
    results, reads = [], []
    limits: list[MachinePeaks] = []
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
    best = MachinePeaks.best(limits)
    pairs = zip(results, reads, strict=True)
    return tuple(replace(one, shares=shares(one.ours, read, best)) for one, read in pairs)


def _measure(
    size: Size,
    contest: Contest,
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
        padded = Padded(timing, _ratio(samples, -1) * share)
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
    stack: ExitStack, peers: Sequence[Peer], contest: Contest, engine: Engine
) -> tuple[list[Contestant], dict[str, str]]:
    """Peers that can take part, and why the others cannot."""
    rivals: list[Contestant] = []
    skipped: dict[str, str] = {}
    for peer in {peer.name: peer for peer in peers}.values():
        if engine.device == "cpu" and engine.dtype not in TOLERANCES:
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
    contest: Contest, ours: Contestant, rivals: Sequence[Contestant]
) -> tuple[dict[str, Agreement], dict[str, str]]:
    """Whether each rival computes what we compute, and why some gave nothing to compare."""
    agreements: dict[str, Agreement] = {}
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


def _timing(contestant: Contestant, samples: Samples, k: int, flops: float) -> Timing:
    """What the rounds gave for the contestant at place `k`."""
    own = samples.seconds[:, k]
    median, p95 = float(np.median(own)), float(np.percentile(own, 95))
    calls = len(own) * samples.repeats[k]
    return Timing(contestant.name, contestant.title, median, p95, calls, flops / median / 1e9)


def _ratio(samples: Samples, k: int) -> float:
    """A contestant's time over the first one's: the median of the rounds' own ratios."""
    return float(np.median(samples.seconds[:, k] / samples.seconds[:, 0]))
