"""Command ``lstm-cli devices``: engines and devices that can be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import output_options
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.engines.kernel_cache import CacheState

EPILOG = """\b
Example:
  lstm-cli devices --json"""


@click.command(epilog=EPILOG)
@output_options
def command(*, as_json: bool, quiet: bool) -> None:
    """Show the engines and devices that can be used here, and why the others cannot.

    With --engine auto and --device auto, the first usable one in this list computes.
    """
    from lstm_cli.cli.display.tables import engines_table, gpus_table
    from lstm_cli.engines import kernel_cache
    from lstm_cli.engines.selection import engine_statuses
    from lstm_cli.workflows.cluster import DASK_EXTRA, dask_version, mpi_status

    console = Console(as_json=as_json, quiet=quiet)
    statuses = engine_statuses()
    usable = [status.engine for status in statuses if status.usable]
    kernels = kernel_cache.state() if {"jit", "cuda"} & set(usable) else None
    console.show(engines_table(statuses))
    gpus = [gpu for status in statuses for gpu in status.gpus]
    if gpus:
        console.show("", gpus_table(gpus))
    for status in statuses:
        if status.hint is not None:
            console.show("", f"{status.engine}: {status.hint}")
    if kernels is not None:
        console.show("", _kernel_cache(kernels))
    mpi = mpi_status()
    found = f"run and train use several ranks with mpi4py {mpi.mpi4py}, {mpi.library}"
    console.show(found if mpi.usable else f"run and train use no ranks: {mpi.reason}")
    dask = dask_version()
    missing = f"not installed: {DASK_EXTRA}"
    console.show(f"run uses a Dask cluster with distributed {dask}" if dask else f"Dask: {missing}")
    console.document(
        {
            "engines": statuses,
            "auto": usable[0],
            "kernel_cache": kernels,
            "mpi": mpi,
            "dask": dask,
        }
    )


def _kernel_cache(kernels: CacheState) -> str:
    if not kernels.usable:
        return f"compiled kernels are not kept: {kernels.reason}"
    files = counted(kernels.files, "file")
    line = f"compiled kernels in {kernels.folder}: {files}, {units.size(kernels.bytes)}"
    return line if kernels.reason is None else f"{line}; none are added: {kernels.reason}"
