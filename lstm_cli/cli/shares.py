"""Shares of a run: who computes them, and how a process opens the model and the data for one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lstm_cli.cli.console import Console
from lstm_cli.cli.options import ModelOptions, check_apart, check_order, data_options
from lstm_cli.errors import UsageError

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData
    from lstm_cli.engines.selection import EngineChoice
    from lstm_cli.workflows import Model
    from lstm_cli.workflows.run import RunReport
    from lstm_cli.workflows.shards import Share

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
class Division:
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
        """Raise UsageError if options exclude one another."""
        options = self.options
        if len(options) > 1:
            raise UsageError(
                f"{options[0]} and {options[1]} exclude one another",
                expected="one way to share the work",
                found=", ".join(options),
                hint=f"leave out {options[0]}"
                if options[0] in ("--shard", "--workers", "--dask")
                else None,
            )
        if options and gates is not None:
            raise UsageError(
                f"--gates and {options[0]} exclude one another: gates are written by one process",
                found=f"--gates {gates}",
                hint="leave out --gates",
            )
        if self.shard is not None and output is None:
            raise UsageError(
                "--shard needs --output: the shard is written beside it",
                hint=f"--output results.h5 --shard {self.shard[0]}/{self.shard[1]}",
            )

    def check_model(self, model: Model) -> None:
        """Raise UsageError if the work on a network cannot be shared."""
        if self.options and model.stateful:
            raise UsageError(
                f"a stateful network cannot run with {self.options[0]}: each batch continues the "
                "states of the batch before, so that nothing can be computed apart",
                expected="a network without stateful layers, or one process",
                hint=f"leave out {self.options[0]}" if self.ranks == 1 else "start one process",
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
