"""Command ``lstm-cli run``: forward pass over sequences."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lstm_cli.cli.display.console import Console
from lstm_cli.cli.display.run_report import document, head_lines, print_notes, tail_lines
from lstm_cli.cli.interrupts import interruptible
from lstm_cli.cli.options import (
    FILE,
    ModelOptions,
    batch_option,
    external_option,
    force_option,
    machine_line,
    model_options,
    output_options,
)
from lstm_cli.cli.ranks import ending_together, rank_device, rank_threads
from lstm_cli.cli.shares import (
    OpenRun,
    Processes,
    RunArguments,
    compute_on_ranks,
    compute_on_workers,
    open_pool,
    opened,
    shard_number,
)
from lstm_cli.errors import UsageError, counted

if TYPE_CHECKING:
    from lstm_cli.training.interfaces import Exchange
    from lstm_cli.workflows.run import RunReport
    from lstm_cli.workflows.shards import Share

EPILOG = """\b
Examples:
  lstm-cli run configs/japanese-vowels.yaml data/japanese-vowels.h5:/test
  lstm-cli run model.onnx events.h5 --output results.h5
  lstm-cli run config.yaml week1.h5 week2.h5 --dtype float64 --json
  lstm-cli run config.yaml 'days/*.h5' --output results.h5 --workers 4
  sensor | lstm-cli run model.safetensors --stream csv"""


NOT_STREAMED = {
    "DATA": "data_paths",
    "--output": "output",
    "--gates": "gates",
    "--state": "state",
    "--shard": "shard",
    "--workers": "workers",
    "--dask": "dask",
    "--batch-size": "batch_size",
    "--json": "as_json",
}
"""Arguments that exclude ``--stream``, and their names in Python."""


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="DATA...", nargs=-1)
@click.option("--output", type=FILE, help="Write outputs and final states to this HDF5 file.")
@click.option(
    "--gates", type=FILE, help="Write the values of every gate and step to this HDF5 file."
)
@click.option("--state", metavar="PATH", help="Initial states from an earlier results file.")
@click.option(
    "--shard",
    callback=shard_number,
    metavar="K/N",
    help="Run the K-th of N shares of the data, and write the shard OUTPUT.shard-K-of-N for "
    "lstm-cli join.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the data among N processes, which divide the processors.",
)
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Share the data among the workers of a Dask cluster; ADDRESS is that of its scheduler.",
)
@click.option(
    "--stream",
    type=click.Choice(("csv", "f32")),
    help="Read steps from standard input instead of DATA, and write the outputs of each as soon as "
    "it is read: lines of numbers (csv) or float32 (f32).",
)
@force_option
@batch_option("auto", "auto, as many as the caches hold; 64 for stateful networks")
@output_options
@external_option
@model_options
def command(
    *,
    config_path: str,
    data_paths: tuple[str, ...],
    output: Path | None,
    gates: Path | None,
    state: str | None,
    shard: tuple[int, int] | None,
    workers: int | None,
    dask: str | None,
    stream: str | None,
    force: bool,
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    allow_external: bool,
    options: ModelOptions,
) -> None:
    """Run a network over sequences.

    Builds the network and runs the forward pass over DATA. Shows the shapes of every gate, timings,
    and metrics if the data have targets. Several DATA form one dataset. DATA may also be a folder
    of HDF5 files, or a quoted pattern: 'days/*.h5'.
    """
    from lstm_cli.workflows.cluster import open_exchange

    exchange = open_exchange()
    with ending_together(exchange):
        console = Console(as_json=as_json, quiet=quiet)
        processes = Processes(shard, workers, dask, exchange.size)
        if stream is not None:
            _stream(stream, config_path, options, console, exchange.size)
            return
        if not data_paths:
            raise _missing_data()
        processes.check(output, gates)
        arguments = RunArguments(
            config_path,
            data_paths,
            output,
            gates,
            state,
            force,
            batch_size,
            allow_external,
            replace(options, device=rank_device(options, exchange)),
        )
        threads = processes.default_threads or rank_threads(exchange)
        with opened(arguments, console, threads) as run:
            _run(run, processes, exchange, console)


def _missing_data() -> click.MissingParameter:
    context = click.get_current_context()
    data = next(one for one in context.command.params if one.name == "data_paths")
    return click.MissingParameter(ctx=context, param=data)


def _stream(
    format: str, config_path: str, options: ModelOptions, console: Console, ranks: int
) -> None:
    """Run step by step, from standard input to standard output; notes go to stderr."""
    from lstm_cli.network.stream import run_stream

    given = click.get_current_context().get_parameter_source
    excluded = [o for o, name in NOT_STREAMED.items() if given(name) is ParameterSource.COMMANDLINE]
    excluded += ["several ranks"] if ranks > 1 else []
    if excluded:
        raise UsageError(
            f"a stream and {excluded[0]} exclude one another",
            expected="steps from standard input, outputs to standard output",
            found=", ".join(excluded),
            hint=f"leave out {excluded[0]}" if ranks == 1 else None,
        )
    source = options.reading.open(config_path)
    config = options.config(source)
    engine = options.choose_engine(console, 1).engine
    model = options.model(source, config, engine, console)
    count = run_stream(model.network, format, sys.stdin.buffer, sys.stdout.buffer)
    console.note(f"{counted(count, 'step')}, {machine_line(engine)}")


def _run(run: OpenRun, processes: Processes, exchange: Exchange, console: Console) -> None:
    """Compute, and print the report."""
    from lstm_cli.workflows.inspect_shapes import network_shapes
    from lstm_cli.workflows.shards import shard_path

    arguments, output = run.arguments, run.arguments.output
    processes.check_model(run.model)
    shapes = network_shapes(run.model.config)
    pool = open_pool(processes)
    more: dict[str, Any] = {}
    if pool is not None:
        more = {"workers": pool.size}
    elif exchange.size > 1:
        more = {"ranks": exchange.size}
    on = "".join(f", on {count} {noun}" for noun, count in more.items())
    console.show(*head_lines(run.model, run.data, shapes, on))
    if pool is not None:
        report = compute_on_workers(run, pool, console)
    elif exchange.size > 1:
        report = compute_on_ranks(run, exchange, console)
    elif processes.shard is not None and output is not None:
        report, share = _one_share(run, processes.shard, console)
        output, more = shard_path(output, *processes.shard), {"share": share}
    else:
        report = _whole(run, console)
    print_notes(console, report)
    console.show(*tail_lines(report, output, arguments.gates))
    values = document(run.model, run.data, shapes, report, output, arguments.gates)
    console.document({**values, **more, "passed_over": run.choice.passed_over})


def _whole(run: OpenRun, console: Console) -> RunReport:
    """Run over all sequences."""
    from lstm_cli.workflows.run import RunFiles, run_dataset

    one = run.arguments
    bar = console.progress(run.data.count, "sequences")
    with bar as advance, interruptible("finishing the batch", quiet=console.quiet) as check:
        return run_dataset(
            run.model,
            run.data,
            batch_size=run.batch_size,
            halve=one.batch_size is None,
            files=RunFiles(one.output, one.gates, one.state, one.force),
            progress=lambda count: (advance(count), check())[0],
        )


def _one_share(run: OpenRun, shard: tuple[int, int], console: Console) -> tuple[RunReport, Share]:
    """Run one share, unless an earlier run has finished it."""
    from lstm_cli.workflows.shards import share_of

    share = share_of(run.data, *shard)
    bar = console.progress(share.stop - share.first, "sequences")
    with bar as advance, interruptible("finishing the batch", quiet=console.quiet) as check:
        report, note = run.compute_share(share, lambda count: (advance(count), check())[0])
    if note is not None:
        console.note(f"note: {note}")
    metrics = {} if report.sums is None else report.sums.result()
    return replace(report, metrics=metrics), share
