"""Command ``lstm-cli bench``: speed over a grid of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import (
    FILE,
    ReadingOptions,
    check_apart,
    check_order,
    chosen_engine,
    device_options,
    force_option,
    output_options,
    reading_options,
    set_option,
)
from lstm_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lstm_cli.engines.types import LayerSpec
    from lstm_cli.workflows.bench import GridSize

EPILOG = """\b
Examples:
  lstm-cli bench --against torch --against onnxruntime
  lstm-cli bench --mode train --against torch
  lstm-cli bench --ragged --hidden 256 --batch 32 --steps 100 --against torch
  lstm-cli bench --device cuda --dtype tf32 --against torch --explain
  lstm-cli bench --hidden 64,100,256 --batch 1,32 --steps 100 --features 12
  lstm-cli bench configs/japanese-vowels.yaml --batch 64 --steps 29
  lstm-cli bench --save before.json    # and later: --compare before.json"""


BUSY = 0.2
"""Number of cores used by other programs above which a warning is printed."""


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic in newer Click only
    """A list of whole numbers, separated by commas: ``32,100,256``."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Convert the text to numbers."""
        if isinstance(value, tuple):
            return value
        parts = str(value).replace(" ", "").split(",")
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of numbers above 0, such as 32,100", param, ctx)
        return tuple(map(int, parts))


NUMBERS = NumberList()


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="[CONFIG]", required=False)
@click.option(
    "--mode", type=click.Choice(["forward", "train"]), default="forward", help="Workload to time."
)
@click.option("--hidden", type=NUMBERS, help="Numbers of units H, a list.")
@click.option("--batch", type=NUMBERS, help="Numbers of sequences N, a list.")
@click.option("--steps", type=NUMBERS, help="Numbers of steps T, a list.")
@click.option("--features", type=NUMBERS, help="Numbers of features D, a list; default: H.")
@click.option("--ragged", is_flag=True, help="Random lengths between T/10 and T steps.")
@click.option(
    "--against", multiple=True, metavar="torch|onnxruntime", help="Peer to time; repeatable."
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds per size; default: 5 to 50.")
@click.option("--explain", is_flag=True, help="Show the algorithm of each size, and why.")
@click.option("--save", type=FILE, help="Save the timings as a baseline.")
@force_option
@click.option("--compare", "baseline", type=FILE, help="Compare with a saved baseline.")
@set_option
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of random numbers.")
@reading_options
@output_options
@device_options
def command(
    *,
    config_path: str | None,
    mode: str,
    hidden: tuple[int, ...] | None,
    batch: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
    features: tuple[int, ...] | None,
    ragged: bool,
    against: tuple[str, ...],
    rounds: int | None,
    explain: bool,
    save: Path | None,
    force: bool,
    baseline: Path | None,
    overrides: tuple[str, ...],
    seed: int,
    reading: ReadingOptions,
    as_json: bool,
    quiet: bool,
    device: str,
    engine: str,
    dtype: str,
    threads: int | None,
) -> None:
    """Measure forward or training speed over a grid of sizes.

    The network is one LSTM layer for every combination of the lists, or the layers of CONFIG. With
    --mode train a call is a training step: forward, loss, backward, and Adam's update. The loss is
    CONFIG's train.loss, else the one that suits the last layer. Peers of --against get the same
    weights, inputs and targets. Their results are compared before anything is timed. Peers
    take turns in every round, so a ratio holds when the machine's speed drifts.

    GFLOP/s count the matrix products of valid steps. The column "of limit" has the larger share of
    two measured limits: the machine's multiply-add peak, and the speed at which all threads
    together read the recurrent weights from cache. With --ragged, PyTorch gets packed sequences.
    The column "a step" then divides the time per step of full-length sequences by the time per
    valid step: 1.00 if time is proportional to valid steps.
    """
    from lstm_cli.output_files import check_output_path
    from lstm_cli.workflows import bench

    console = Console(as_json=as_json, quiet=quiet)
    check_apart({"CONFIG": config_path}, save=save)
    if save is not None:
        check_output_path(save, option="--save", force=force, suffix=".json", streams=True)
    peers = [bench.peer(name) for name in against]
    before = bench.load_baseline(baseline) if baseline is not None else None
    sizes, layers_of, loss = _workload(
        config_path, reading, overrides, hidden, batch, steps, features, save
    )
    forward = mode == "forward"
    choice = chosen_engine(console, engine, device, dtype, threads)
    chosen = choice.engine
    # Shares of gates are measured on a CPU, and do not depend on lengths.
    show_gates = forward and not ragged and chosen.accelerator is None
    with console.progress(len(sizes), "sizes") as advance, bench.watch_other_programs() as others:
        results = bench.measure(
            sizes,
            layers_of,
            chosen,
            peers,
            mode=mode,
            loss=loss,
            ragged=ragged,
            rounds=rounds,
            seed=seed,
            progress=lambda count, total, size: advance(min(count, 1)),
        )
    here = bench.machine(chosen.threads, peers, chosen)
    explained = bench.explain(results, layers_of, chosen) if explain else ()
    memory = bench.memory(chosen)
    last = layers_of(sizes[-1])
    gates = bench.by_gate(last, sizes[-1], chosen.threads, chosen.dtype, seed) if show_gates else ()
    comparison = bench.compare(results, before, here) if before is not None else None
    from lstm_cli.cli.display.bench_tables import bench_report

    console.show(*bench_report(results, gates, here, chosen, comparison, memory, explained))
    if not forward and bench.without_dropout(last) != last:
        console.note("note: dropout is left out, because frameworks draw different masks")
    if others.cores is not None and others.cores > BUSY:
        console.note(
            f"warning: other programs used {others.cores:.1f} cores during the measurement, so "
            "timings and ratios are unreliable"
        )
    for note in comparison.notes if comparison is not None else ():
        console.note(f"note: {note}")
    if save is not None:
        bench.save_baseline(save, results, here, force=force)
        console.note(f"saved to {save}")
    console.document(
        {
            "mode": mode,
            "device": chosen.device,
            "engine": chosen.name,
            "passed_over": choice.passed_over,
            "dtype": chosen.dtype,
            "threads": chosen.threads,
            "machine": here,
            "results": [
                {**vars(result), "ahead_of_best": result.ahead_of_best} for result in results
            ],
            "geometric_mean": bench.geometric_mean(results),
            "gates": gates,
            "explained": explained,
            "comparison": comparison,
            "ragged": ragged,
            "peak_memory": memory.peak,
            "workspace_memory": memory.workspace,
            "cores_used_by_others": others.cores,
        }
    )


def _workload(
    config_path: str | None,
    reading: ReadingOptions,
    overrides: tuple[str, ...],
    hidden: tuple[int, ...] | None,
    batch: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
    features: tuple[int, ...] | None,
    save: Path | None,
) -> tuple[tuple[GridSize, ...], Callable[[GridSize], tuple[LayerSpec, ...]], str | None]:
    """Sizes to measure, a function that returns a size's layers, and the config's loss."""
    from lstm_cli.workflows import bench

    if config_path is None:
        if overrides:
            raise UsageError("--set needs a CONFIG to change")
        if (hidden, batch, steps, features) == (None, None, None, None):
            return bench.DEFAULT_SIZES, bench.one_lstm, None
        sizes = bench.grid(hidden or (128,), batch or (32,), steps or (100,), features)
        return sizes, bench.one_lstm, None
    from lstm_cli.engines.types import RecurrentSpec
    from lstm_cli.workflows.model import read_config

    check_order(config_path)
    config = read_config(reading.open(config_path), overrides)
    check_apart({"the config's weights": config.weights}, save=save)
    fixed = [name for name, sizes in (("--hidden", hidden), ("--features", features)) if sizes]
    if fixed:
        raise UsageError(
            f"{' and '.join(fixed)} cannot be used with CONFIG, which has fixed sizes",
            hint="--set model.layers.0.hidden_size=64 changes the config",
        )
    specs = config.specs
    widths = [spec.hidden_size for spec in specs if isinstance(spec, RecurrentSpec)]
    T = steps or (config.model.steps or 100,)
    sizes = bench.grid((max(widths, default=1),), batch or (1, 32), T, (specs[0].input_size,))
    loss = config.train.loss if config.train is not None else None
    return sizes, lambda size: specs, loss
