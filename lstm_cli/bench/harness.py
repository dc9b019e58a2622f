"""Measuring: what is computed is compared first, and only who agrees is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np

from lstm_cli.bench.contest import TOLERANCES, Contest, Contestant, ForwardContest
from lstm_cli.bench.peers import Peer
from lstm_cli.bench.results import MODES, Agreement, SizeResult, Timing
from lstm_cli.bench.rounds import interleave
from lstm_cli.bench.sizes import Size
from lstm_cli.bench.training import TrainingContest
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
    rounds: int | None = None,
    seconds: float = 0.3,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SizeResult, ...]:
    """Time forward passes or training steps over batches of full-length sequences.

    Parameters
    ----------
    layers_of
        The layers to measure at a size.
    mode
        ``forward``: see `ForwardContest`; ``train``: see `TrainingContest`.
    loss
        Of training; None: the one that suits the last layer.
    rounds, seconds
        Rounds a size; None: as many as let a contestant stay within about `seconds`.
    seed
        Of weights, inputs and targets.

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
            return TrainingContest(layers_of(size), size, engine, seed, loss)
        return ForwardContest(layers_of(size), size, engine, seed)

    sizes = tuple(sizes)
    results = []
    for done, size in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes), size)
        results.append(_measure(size, contest(size), engine, peers, rounds, seconds, mode))
    return tuple(results)


def _measure(
    size: Size,
    contest: Contest,
    engine: Engine,
    peers: Sequence[Peer],
    rounds: int | None,
    seconds: float,
    mode: str,
) -> SizeResult:
    ours = contest.ours()
    with ExitStack() as stack:
        rivals, skipped = _prepared(stack, peers, contest, engine)
        agreements, failed = _compared(contest, ours, rivals)
        agreed = [r for r in rivals if r.name in agreements and agreements[r.name].ok]
        timings, ratios = _timed((ours, *agreed), contest.flops, rounds, seconds)
    return SizeResult(size, contest.words, timings, ratios, agreements, skipped | failed, mode)


def _prepared(
    stack: ExitStack, peers: Sequence[Peer], contest: Contest, engine: Engine
) -> tuple[list[Contestant], dict[str, str]]:
    """Peers that can take part, and why the others cannot."""
    rivals: list[Contestant] = []
    skipped: dict[str, str] = {}
    for peer in {peer.name: peer for peer in peers}.values():
        if engine.device != "cpu":
            skipped[peer.name] = f"peers are measured on the CPU only, not against {engine.device}"
        elif engine.dtype not in TOLERANCES:
            skipped[peer.name] = f"peers are measured in float32 and float64, not {engine.dtype}"
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
        except Exception as error:  # another library's, of any class
            failed[rival.name] = _reason(error)
        else:
            agreements[rival.name] = contest.compare(expected, found)
    return agreements, failed


def _reason(error: Exception) -> str:
    """Why a peer gave nothing, on one line."""
    if isinstance(error, LstmCliError):
        return error.problems[0].what
    return f"it failed: {next(iter(str(error).splitlines()), type(error).__name__)}"


def _timed(
    contestants: Sequence[Contestant], work: float, rounds: int | None, seconds: float
) -> tuple[tuple[Timing, ...], dict[str, float]]:
    """Timings in order, and the later contestants' ratios to the first."""
    samples = interleave([c.call for c in contestants], rounds, seconds)
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
