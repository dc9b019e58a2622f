"""Entry point: the group of commands, which load at first use, and error handling."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from lstm_cli.cli.display.console import Console, print_json, say
from lstm_cli.cli.interrupts import INTERRUPTED, Signals
from lstm_cli.errors import LstmCliError, Problem, has_memory, is_memory_error, nearest
from lstm_cli.output_files import discard_unfinished
from lstm_cli.version import __version__

COMMANDS: Mapping[str, str] = {
    "run": "Forward pass over sequences: shapes, timings, metrics, results.",
    "join": "Results of one run from its shards, and their metrics.",
    "train": "Backpropagation through time, with checkpoints that can be resumed.",
    "inspect-shapes": "Every matrix of every gate, and what does not fit.",
    "convert": "Weights between lstm-cli, PyTorch, Keras, ONNX and TMVA, with a proof.",
    "compare": "Two weights files gate by gate, and why they differ.",
    "bench": "Speed over a grid of sizes, next to PyTorch and ONNX Runtime.",
    "data": "What an HDF5 file holds, and what to put in the config.",
    "devices": "Engines and devices that can be used here.",
    "schema": "JSON Schema of the config, for editors.",
}
"""Names and one-line help of all commands, so that ``lstm-cli --help`` imports no command."""

GARBAGE = 100_000
"""Objects between two garbage collections; imports create many objects, but no garbage."""

RANKS = {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}
"""Variables of launchers that may start several processes; see `lstm_cli.workflows.cluster`."""

EPILOG = """\b
Example:
  lstm-cli run configs/japanese-vowels.yaml data/japanese-vowels.h5:/test

Exit codes: 0 done, 1 failure or a difference, 2 usage, 3 data, 4 config or weights,
5 device, engine or missing extra, 130 interrupted."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command from the module of its name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lstm_cli.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command like Click, and suggest the nearest name for an unknown one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            guess = nearest(name, COMMANDS)
            more = f" Did you mean {guess}?" if guess else ""
            ctx.fail(f"{name!r} is not a command.{more}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="lstm-cli")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train and run LSTM, GRU and simple recurrent networks, and see every gate.

    CONFIG is a YAML file that describes the layers, or a weights file (PyTorch, Keras, ONNX, TMVA
    or native).
    DATA is an HDF5 file, or a group in one: FILE.h5:/group.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Only ``--debug`` shows a traceback.

    Without `arguments`, those of the process are used, and the process must end afterwards.
    """
    signals, code = Signals(), INTERRUPTED
    if arguments is None:
        # OpenBLAS would start a thread per core, each with its own memory; engines set the number.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments), signals)
    finally:
        if arguments is None:
            signals.end_with(code)
        else:
            signals.restore()
        discard_unfinished()
    return code


def _run(args: list[str], signals: Signals) -> int:
    """Run a command and return its exit code."""
    _prepare_streams()
    Console.printed = False
    gc.set_threshold(GARBAGE)
    try:
        _check_memory(args)
        if RANKS & os.environ.keys():
            _check_ranks(args)
        # A command returns its exit code; --help and --version return 0.
        # `obj` holds the arguments for messages that repeat the command.
        code = cli.main(args, prog_name="lstm-cli", standalone_mode=False, obj=args)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _report_misuse(error, args)
    except (KeyboardInterrupt, click.Abort):
        return _report_interrupt()
    except BrokenPipeError:
        _close_stdout()
        return 1
    except Exception as error:
        if "--debug" in args:
            sys.excepthook = _show_traceback
            raise
        if signals.stop_requested:  # some libraries turn it into another error during an import
            return _report_interrupt()
        return report_failure(error, args)


def _check_ranks(args: list[str]) -> None:
    """Let the first of several processes print, and refuse commands that run on one."""
    from lstm_cli.workflows.cluster import check_single, launched

    if launched()[1] > 0:
        for name in ("stdout", "stderr"):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if args and args[0] in COMMANDS and args[0] not in ("run", "train"):
        check_single(args[0])


def _show_traceback(*error: Any) -> None:
    from traceback import format_exception

    say("".join(format_exception(*error)).rstrip())


def _report_interrupt() -> int:
    click.echo("interrupted", err=True)
    return INTERRUPTED


def _close_stdout() -> None:
    # The reader of stdout has closed it, or the disk is full; the interpreter flushes stdout later.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    """Let stdout and stderr replace characters that they cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _report_misuse(error: click.ClickException, args: Sequence[str]) -> int:
    """Print the error in the arguments with hints, and return the exit code."""
    ctx = getattr(error, "ctx", None)
    message, option_hint = error.format_message().rstrip("."), None
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        message = f"{error.option_name} is not an option of {ctx.command_path}"
        option_hint = _option_hint(error.option_name, ctx)
    say(f"error: {message}")
    if option_hint is not None:
        say(f"hint: {option_hint}")
    path = ctx.command_path if ctx is not None else "lstm-cli"
    help_hint = f"{path} --help lists its arguments and options"
    say(f"hint: {help_hint}")
    if "--json" in args:
        _print_problems([Problem(message, hint=option_hint or help_hint)], error.exit_code)
    return error.exit_code


def _option_hint(option: str, ctx: click.Context) -> str | None:
    """A hint with the nearest option, or with the key of this name in the config."""
    options = [name for parameter in ctx.command.get_params(ctx) for name in parameter.opts]
    if (guess := nearest(option, options)) is not None:
        return f"did you mean {guess}?"
    if "--set" in options:
        from lstm_cli.config.schema import OPTIMIZERS, TrainSection

        key = option.lstrip("-").replace("-", "_")
        key = {"lr": "learning_rate"}.get(key, key)
        in_every_optimizer = all(key in kind.model_fields for kind in OPTIMIZERS.values())
        sections = {
            "train": key in TrainSection.model_fields,
            "train.optimizer": in_every_optimizer,
        }
        for section, has_key in sections.items():
            if has_key:
                return f"the config has this key: --set {section}.{key}=…"
    return None


def _print_problems(
    problems: Sequence[Problem], exit_code: int, headline: str | None = None
) -> None:
    if not Console.printed:  # stdout has one document at most
        error = {"headline": headline, "exit_code": exit_code, "problems": problems}
        print_json({"error": error})


def report_failure(error: BaseException, args: Sequence[str]) -> int:
    """Print an error and return its exit code."""
    if (shortage := _shortage(error, args[0] if args else "")) is not None:
        what, hint = shortage
        say(f"error: {what}")
        say(f"hint: {hint}")
        if "--json" in args:
            _print_problems([Problem(what, hint=hint)], 1)
        return 1
    if isinstance(error, LstmCliError):
        say(f"error: {error}")
        if "--json" in args:
            _print_problems(error.problems, error.exit_code, error.headline)
        return error.exit_code
    if isinstance(error, OSError) and error.filename is None:
        _close_stdout()
        say(f"error: the output cannot be written: {error.strerror}")
        return 1
    say(f"error: {type(error).__name__}: {error}")
    say("hint: this is a fault in lstm-cli; --debug shows where")
    return 1


LEAST_MEMORY = 96 << 20
"""Bytes of address space; with less, loading NumPy's BLAS ends the process."""

_SAVING = {
    "run": "fewer units, a smaller --batch-size or --engine reference need less; ",
    "train": "fewer units, a smaller --batch-size or --engine reference need less; ",
    "bench": "fewer units or --engine reference need less; ",
}
"""Advice to save memory by command; other commands have no such option."""


def _check_memory(args: list[str]) -> None:
    """Raise MemoryError if libraries cannot be loaded; some would end the process instead."""
    if set(args) & {"--help", "-h", "--version"} or not args or "numpy" in sys.modules:
        return
    if not has_memory(LEAST_MEMORY):
        raise MemoryError(f"a command needs {LEAST_MEMORY >> 20} MB to start")


def _shortage(error: BaseException, command: str) -> tuple[str, str] | None:
    """A message and a hint if memory or threads ran out; None for other errors.

    If another error caused it, memory must be short now: damaged files request any amount.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause).lower():
            fewer = "; --threads 1 needs the fewest threads" if command in _SAVING else ""
            return (
                "no more threads can be started: the system limits their number or the memory",
                f"ulimit -u and ulimit -v show the limits{fewer}",
            )
        if isinstance(cause, MemoryError | ImportError | OSError) and is_memory_error(cause):
            is_file_fault = isinstance(error, LstmCliError) and has_memory(LEAST_MEMORY)
            if not is_file_fault:
                detail = f": {cause}" if str(cause) else ""
                return (
                    f"not enough memory{detail}",
                    f"{_SAVING.get(command, '')}ulimit -v shows whether the memory is limited",
                )
        cause = cause.__cause__ or cause.__context__
    return None
