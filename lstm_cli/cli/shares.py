"""Shares of a run: who computes them, and how a process opens the model and the data for one."""

from __future__ import annotations

import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import click

from lstm_cli.cli.display.console import Console
from lstm_cli.cli.interrupts import interruptible
from lstm_cli.cli.options import ModelOptions, check_apart, check_order, data_options
from lstm_cli.errors import DeviceError, LstmCliError, Problem, UsageError

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData
    from lstm_cli.engines.selection import EngineChoice
    from lstm_cli.training.interfaces import Exchange
    from lstm_cli.workflows import Model
    from lstm_cli.workflows.run import RunReport
    from lstm_cli.workflows.shards import Share
    from lstm_cli.workflows.workers import WorkerPool

SHARES_PER_WORKER = 8
"""Shares for each worker, so that all workers end at about the same time."""


def shard_number(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """The value K/N of ``--shard``."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"{value!r} is not K/N with K from 1 to N")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Processes:
    """Processes that share a run.

    Attributes
    ----------
    shard
        Number of the share that this process computes, and number of all; other processes are
        started separately.
    workers
        Number of processes on this machine.
    dask
        Address of the scheduler of a Dask cluster.
    ranks
        Number of processes that a launcher of MPI has started.
    """

    shard: tuple[int, int] | None = None
    workers: int | None = None
    dask: str | None = None
    ranks: int = 1

    @property
    def default_threads(self) -> int | None:
        """Threads of each process if ``--threads`` is not given; None: this process is alone.

        A worker of Dask computes as many shares at once as it has threads.
        """
        from lstm_cli.engines.threads import default_threads

        if self.workers is not None:
            return max(1, default_threads() // self.workers)
        return None if self.dask is None else 1

    @property
    def options(self) -> list[str]:
        """Options that divide the run."""
        values = {
            "--shard": self.shard,
            "--workers": self.workers,
            "--dask": self.dask,
            "several ranks": self.ranks if self.ranks > 1 else None,
        }
        return [name for name, value in values.items() if value is not None]

    def check(self, output: Path | None, gates: Path | None) -> None:
        """Raise UsageError if options exclude one another. One process alone writes gates."""
        options = [*self.options, *(["--gates"] if gates is not None and self.options else [])]
        if len(options) > 1:
            excess = next(name for name in reversed(options) if name.startswith("--"))
            raise UsageError(
                f"{options[0]} and {options[1]} exclude one another",
                expected="one of them",
                found=", ".join(options),
                hint=f"leave out {excess}",
            )
        if self.shard is not None and output is None:
            raise UsageError(
                "a shard is written beside the results, but these have no name",
                hint="--output results.h5",
            )

    def check_model(self, model: Model) -> None:
        """Raise UsageError if the work on a network cannot be shared."""
        if self.options and model.stateful:
            raise UsageError(
                f"a stateful network cannot run with {self.options[0]}: each batch continues from "
                "the states of the batch before, so that batches cannot be shared out",
                expected="a network without stateful layers, or one process",
                hint=f"leave out {self.options[0]}" if self.ranks == 1 else None,
            )


@dataclass(frozen=True)
class RunArguments:
    """Arguments of a run, which other processes get as they are."""

    config_path: str
    data_paths: tuple[str, ...]
    output: Path | None
    gates: Path | None
    state: str | None
    force: bool
    batch_size: int | None
    allow_external: bool
    options: ModelOptions


@dataclass(frozen=True)
class OpenRun:
    """Model and open data of a run."""

    arguments: RunArguments
    model: Model
    data: SequenceData
    choice: EngineChoice

    @property
    def batch_size(self) -> int:
        """Number of sequences per batch."""
        from lstm_cli.workflows.run import automatic_batch_size

        return self.arguments.batch_size or automatic_batch_size(self.model, self.data)

    def compute_share(
        self, share: Share, progress: Callable[[int], None]
    ) -> tuple[RunReport, str | None]:
        """Run a share; see `lstm_cli.workflows.shards.run_share`."""
        from lstm_cli.workflows.run import RunFiles
        from lstm_cli.workflows.shards import run_share

        one = self.arguments
        return run_share(
            self.model,
            self.data,
            share,
            files=RunFiles(one.output, None, one.state, one.force),
            batch_size=self.batch_size,
            halve=one.batch_size is None,
            progress=progress,
        )


@contextmanager
def opened(
    arguments: RunArguments, console: Console, threads: int | None = None
) -> Iterator[OpenRun]:
    """Model and data of a run; `threads` is the default of ``--threads``."""
    from lstm_cli.data import open_data
    from lstm_cli.output_files import check_output_path
    from lstm_cli.workflows.shape_check import check_data

    options, output, gates = arguments.options, arguments.output, arguments.gates
    check_order(arguments.config_path, arguments.data_paths)
    source = options.reading.open(arguments.config_path)
    config = options.config(source)
    inputs = {
        "CONFIG": arguments.config_path,
        "--weights": options.weights,
        "the config's weights": config.weights,
        "--state": arguments.state,
    }
    check_apart(inputs, output=output, gates=gates)
    for option, path in (("--output", output), ("--gates", gates)):
        if path is not None:
            check_output_path(path, option=option, force=arguments.force, suffix=".h5")
    reading = data_options(config, arguments.allow_external, need_targets=False)
    with open_data(arguments.data_paths, reading) as data:
        check_apart(data=data.paths, output=output, gates=gates)
        check_data(config, data, learning=False)
        choice = options.choose_engine(console, threads)
        model = options.model(source, config, choice.engine, console)
        yield OpenRun(arguments, model, data, choice)


@dataclass(frozen=True)
class ShareFailure:
    """An error of another process, in parts that can be sent."""

    problems: tuple[Problem, ...]
    headline: str | None
    exit_code: int

    def error(self) -> LstmCliError:
        """The error, to raise in this process."""
        error = LstmCliError(self.problems, headline=self.headline)
        error.exit_code = self.exit_code
        return error


_kept_runs: dict[int, tuple[str, ExitStack, OpenRun]] = {}
"""The open run of each thread of a worker process, with the token of its command.

A worker computes many shares of one command, and opens the model and the data once.
"""


def share_on_worker(
    arguments: RunArguments, folder: str, token: str, of: int, number: int
) -> tuple[RunReport, str | None] | ShareFailure:
    """Compute a share in another process, in the working folder of the command."""
    from lstm_cli.workflows.shards import share_of

    try:
        _enter(folder)
        run = _kept_run(arguments, token)
        report, note = run.compute_share(share_of(run.data, number, of), lambda count: None)
    except LstmCliError as error:
        return ShareFailure(error.problems, error.headline, error.exit_code)
    return (report if arguments.output is None else replace(report, sums=None)), note


def _kept_run(arguments: RunArguments, token: str) -> OpenRun:
    thread = threading.get_ident()
    if thread in _kept_runs and _kept_runs[thread][0] == token:
        return _kept_runs[thread][2]
    _close_run(thread)
    with ExitStack() as stack:
        run = stack.enter_context(opened(arguments, Console(quiet=True)))
        _kept_runs[thread] = token, stack.pop_all(), run
    return run


def _close_run(thread: int) -> None:
    if thread in _kept_runs:
        _kept_runs.pop(thread)[1].close()


def close_runs() -> None:
    """Close the data and drop the models that a worker has kept."""
    for thread in list(_kept_runs):
        _close_run(thread)


def _enter(folder: str) -> None:
    """Make the command's working folder that of this process."""
    if os.getcwd() == folder:
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise DeviceError(
            f"a worker does not see the folder {folder}",
            expected="workers that share the files of the command",
            found=f"{error.strerror}, on {platform.node()}",
        ) from None


def open_pool(processes: Processes) -> WorkerPool | None:
    """The pool of processes that the options ask for."""
    from lstm_cli.workflows.cluster import DaskPool
    from lstm_cli.workflows.workers import ProcessPool

    if processes.workers is not None:
        return ProcessPool(processes.workers)
    return None if processes.dask is None else DaskPool(processes.dask, close_runs)


def compute_on_workers(run: OpenRun, pool: WorkerPool, console: Console) -> RunReport:
    """Compute all shares on the processes of a pool, and join them."""
    from lstm_cli.workflows.shards import joined_report, share_of
    from lstm_cli.workflows.workers import run_tasks

    data, count = run.data, max(1, min(SHARES_PER_WORKER * pool.size, run.data.count))
    options = replace(run.arguments.options, threads=run.model.network.engine.threads)
    arguments = replace(run.arguments, options=options)
    compute = partial(share_on_worker, arguments, os.getcwd(), token_hex(8), count)
    reports: dict[int, RunReport] = {}
    bar = console.progress(data.count, "sequences")
    with bar as advance, interruptible("ending the workers", quiet=console.quiet) as check:

        def finished(number: int, result: tuple[RunReport, str | None] | ShareFailure) -> None:
            if isinstance(result, ShareFailure):
                raise result.error()
            reports[number], note = result
            share = share_of(data, number, count)
            advance(share.stop - share.first)
            if note is not None:
                console.note(f"note: {note}")
            elif not console.is_interactive:
                console.note(f"share {number} is done, {len(reports)} of {count}")

        run_tasks(pool, compute, range(1, count + 1), finished, check)
    if run.arguments.output is not None:
        return join(run.arguments.output, run.arguments.force, count, console)
    return joined_report([reports[number] for number in range(1, count + 1)])


def compute_on_ranks(run: OpenRun, exchange: Exchange, console: Console) -> RunReport:
    """Compute the share of this rank; rank 0 joins those of all."""
    from lstm_cli.workflows.shards import joined_report, share_of

    arguments, share = run.arguments, share_of(run.data, exchange.rank + 1, exchange.size)
    bar = console.progress(share.stop - share.first, "sequences")
    with bar as advance, interruptible("finishing the batch", quiet=console.quiet) as check:
        report, note = run.compute_share(share, lambda count: (advance(count), check())[0])
    if arguments.output is None:
        return joined_report(exchange.gather(report))
    for text in exchange.gather(note):  # all shards are written
        if text is not None:
            console.note(f"note: {text}")
    if exchange.rank:
        code = exchange.gather(None)[0]
        if code:
            raise click.exceptions.Exit(code)
        return report
    try:
        report = join(arguments.output, arguments.force, exchange.size, console)
    except LstmCliError as error:
        exchange.gather(error.exit_code)
        raise
    exchange.gather(0)
    return report


def join(output: Path, force: bool, count: int, console: Console) -> RunReport:
    """Join all shards of the results, with progress on stderr."""
    from lstm_cli.workflows.shards import join_shards

    with console.progress(count, "shards") as advance:
        return join_shards(output, force=force, progress=advance)[0]
