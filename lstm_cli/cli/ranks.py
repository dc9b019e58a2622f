"""Ranks of a command: their threads and devices, and their common end after an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from lstm_cli.cli.display.console import say
from lstm_cli.cli.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from lstm_cli.cli.options import ModelOptions
    from lstm_cli.training.interfaces import Exchange


def rank_threads(exchange: Exchange) -> int | None:
    """Threads of this rank if ``--threads`` is not given. None: there is one process."""
    from lstm_cli.engines.threads import default_threads
    from lstm_cli.workflows.cluster import MpiExchange

    if not isinstance(exchange, MpiExchange):
        return None
    return max(1, default_threads() // exchange.local_ranks())


def rank_device(options: ModelOptions, exchange: Exchange) -> str:
    """Device of this rank: ranks on a node take one GPU after another, unless one is named."""
    from lstm_cli.engines.selection import engine_statuses
    from lstm_cli.workflows.cluster import MpiExchange

    free = options.device in ("auto", "cuda") and options.engine in ("auto", "cuda")
    if not (free and isinstance(exchange, MpiExchange)):
        return options.device
    gpus = [gpu.name for status in engine_statuses() for gpu in status.gpus if gpu.usable]
    return gpus[exchange.local_rank() % len(gpus)] if gpus else options.device


@contextmanager
def ending_together(exchange: Exchange) -> Iterator[None]:
    """End all ranks when one fails: its error is printed once, and no rank waits for it."""
    from lstm_cli.cli.main import report_failure
    from lstm_cli.workflows.cluster import MpiExchange

    if not isinstance(exchange, MpiExchange):
        yield
        return
    try:
        yield
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        if isinstance(error, KeyboardInterrupt):
            code = INTERRUPTED
        text = "" if isinstance(error, click.exceptions.Exit) else str(error)
        together = exchange.all_failed()
        # All ranks have mostly one error, which rank 0 prints. Others print what is theirs alone.
        printed = exchange.gather(text)[: exchange.rank] if together else []
        if not together or (exchange.rank and text and text not in printed):
            sys.stderr = sys.__stderr__
            say(f"rank {exchange.rank} of {exchange.size}:")
            if code == INTERRUPTED:
                say("interrupted")
            else:
                report_failure(error, sys.argv[1:])
        if not together:
            exchange.abort(code)
        exchange.close()
        if exchange.rank:
            raise click.exceptions.Exit(code) from None
        raise
    exchange.close()
