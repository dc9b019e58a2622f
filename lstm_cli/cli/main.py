"""The group of commands, each loaded only when it is used, and the one way out of it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from lstm_cli.cli.console import Console, print_json, say
from lstm_cli.cli.interrupts import INTERRUPTED, Signals
from lstm_cli.errors import LstmCliError, Problem, has_memory, is_memory_error, nearest
from lstm_cli.output_files import discard_unfinished
from lstm_cli.version import __version__

COMMANDS: Mapping[str, str] = {
    "run": "Forward pass over sequences: shapes, timings, metrics, results.",
    "train": "Backpropagation through time, with checkpoints that can be resumed.",
    "inspect-shapes": "Every matrix of every gate, and what does not fit.",
    "convert": "Weights from PyTorch, Keras, ONNX or TMVA, and to them, with a proof.",
    "compare": "Two weights files gate by gate, and why they differ.",
    "bench": "Speed over a grid of sizes, side by side with peers.",
    "data": "What an HDF5 file holds, and what to put in the config.",
    "devices": "Engines and devices that can be used here.",
    "schema": "JSON Schema of the config, for editors.",
}
"""Names and one-line helps; ``lstm-cli --help`` needs no more than this."""

GARBAGE = 100_000
"""Objects between two looks for garbage: loading modules makes many objects and no garbage."""

EPILOG = """\b
Example:
  lstm-cli run configs/japanese-vowels.yaml data/japanese-vowels.h5:/test

Exit codes: 0 done, 1 failure, 2 usage, 3 data, 4 config or weights,
5 device, engine or missing extra, 130 interrupted."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from the module of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lstm_cli.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click's own, with the nearest name where there is no such command."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            guess = nearest(name, COMMANDS)
            more = f" Did you mean {guess}?" if guess else ""
            ctx.fail(f"{name!r} is not a command.{more}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
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
    """Run LSTM networks over sequences, and see every gate.

    CONFIG is a YAML file that describes the layers, or a weights file that tells them: lstm-cli's
    own, PyTorch's, Keras's, ONNX or TMVA's.
    DATA is an HDF5 file, or a group in one: FILE.h5:/group.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing but ``--debug`` shows a traceback.

    Without `arguments` it is the process's own, which is about to end when this returns.
    """
    signals, code = Signals(), INTERRUPTED
    if arguments is None:
        # A thread a core, each with memory of its own, before any is asked for: the engine that
        # multiplies with it says how many it wants.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _code(list(sys.argv[1:] if arguments is None else arguments), signals)
    finally:
        if arguments is None:
            signals.end_with(code)
        else:
            signals.restore()
        discard_unfinished()
    return code


def _code(args: list[str], signals: Signals) -> int:
    """Run a command; its exit code."""
    _prepare_streams()
    Console.printed = False
    gc.set_threshold(GARBAGE)
    try:
        _check_memory(args)
        # A command returns its exit code; --help and --version return 0.
        # `obj` lets a command name the line it was called with.
        code = cli.main(args, prog_name="lstm-cli", standalone_mode=False, obj=args)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _misused(error, args)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except Exception as error:
        if "--debug" in args:
            sys.excepthook = _show_traceback
            raise
        if signals.asked:  # some libraries make another error of it, while they are imported say
            return _interrupted()
        return _failed(error, args)


def _show_traceback(*error: Any) -> None:
    from traceback import format_exception

    say("".join(format_exception(*error)).rstrip())


def _interrupted() -> int:
    click.echo("interrupted", err=True)
    return INTERRUPTED


def _give_up_stdout() -> None:
    """What takes our output has gone or is full; let the interpreter flush the rest elsewhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    """Let tables and messages be printed wherever they go: they have letters beyond ASCII."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever called us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _misused(error: click.ClickException, args: Sequence[str]) -> int:
    """Say what is wrong with the arguments, and where the right ones are listed."""
    ctx = getattr(error, "ctx", None)
    message, instead = error.format_message().rstrip("."), None
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        message = f"{error.option_name} is not an option of {ctx.command_path}"
        instead = _instead(error.option_name, ctx)
    say(f"error: {message}")
    if instead is not None:
        say(f"hint: {instead}")
    path = ctx.command_path if ctx is not None else "lstm-cli"
    listed = f"{path} --help lists what it takes"
    say(f"hint: {listed}")
    if "--json" in args:
        from lstm_cli.errors import Problem

        _print_problems([Problem(message, hint=instead or listed)], error.exit_code)
    return error.exit_code


def _instead(option: str, ctx: click.Context) -> str | None:
    """A hint to the nearest option, or to the key of the config that has this name."""
    options = [name for each in ctx.command.get_params(ctx) for name in each.opts]
    if (guess := nearest(option, options)) is not None:
        return f"did you mean {guess}?"
    if "--set" in options:
        from lstm_cli.config.schema import OptimizerSection, TrainSection

        key = option.lstrip("-").replace("-", "_")
        key = {"lr": "learning_rate"}.get(key, key)
        for section, owner in (("train", TrainSection), ("train.optimizer", OptimizerSection)):
            if key in owner.model_fields:
                return f"the config has it: --set {section}.{key}=…"
    return None


def _print_problems(
    problems: Sequence[Problem], exit_code: int, headline: str | None = None
) -> None:
    """All problems as the JSON document, unless the command has printed one."""
    if not Console.printed:
        found = {"exit_code": exit_code, "problems": problems}
        print_json({"error": {"headline": headline, **found}})


def _failed(error: Exception, args: Sequence[str]) -> int:
    """Say what went wrong in the form that all errors have."""
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
        _give_up_stdout()
        say(f"error: the output cannot be written: {error.strerror}")
        return 1
    say(f"error: {type(error).__name__}: {error}")
    say("hint: this is a fault in lstm-cli; --debug shows where")
    return 1


LEAST_MEMORY = 96 << 20
"""Bytes of addresses without which NumPy's BLAS ends the process where it is loaded."""

_SAVING = {
    "run": "fewer units, a smaller --batch-size or --engine reference need less; ",
    "train": "fewer units, a smaller --batch-size or --engine reference need less; ",
    "bench": "fewer units or --engine reference need less; ",
}
"""What needs less memory, by command; the others have nothing to choose."""


def _check_memory(args: list[str]) -> None:
    """Raise MemoryError where the libraries of a command cannot be loaded: some end the process."""
    if set(args) & {"--help", "-h", "--version"} or not args or "numpy" in sys.modules:
        return
    if not has_memory(LEAST_MEMORY):
        raise MemoryError(f"{LEAST_MEMORY >> 20} MB are needed to begin with")


def _shortage(error: BaseException, command: str) -> tuple[str, str] | None:
    """What there is too little of, memory or threads, and what to do; None: another error.

    An error that came of another one counts where there is no memory to be had indeed: a damaged
    file may ask for more than there is, too.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and "start new thread" in str(seen).lower():
            fewer = "; --threads 1 needs fewest" if command in _SAVING else ""
            return (
                "no more threads can be started: their number or the memory is limited",
                f"ulimit -u and ulimit -v show the limits{fewer}",
            )
        if isinstance(seen, MemoryError | ImportError | OSError) and is_memory_error(seen):
            mere = isinstance(error, LstmCliError) and has_memory(LEAST_MEMORY)
            if not mere:
                detail = f": {seen}" if str(seen) else ""
                return (
                    f"not enough memory{detail}",
                    f"{_SAVING.get(command, '')}ulimit -v shows whether the memory is limited",
                )
        seen = seen.__cause__ or seen.__context__
    return None
