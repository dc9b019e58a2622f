"""Options that several commands share, and what they make of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.errors import ConfigError, UsageError, counted, quote

if TYPE_CHECKING:
    from lstm_cli.api import Model
    from lstm_cli.cli.console import Console
    from lstm_cli.config import Config
    from lstm_cli.data import DataOptions
    from lstm_cli.engines.selection import Choice
    from lstm_cli.engines.types import Engine
    from lstm_cli.formats.model import Imported, ReadOptions

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class ReadingOptions:
    """What a weights file cannot say about itself: the options that `reading_options` adds."""

    format: str | None = None
    prefix: str | None = None
    tmva_order: Any = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @property
    def options(self) -> ReadOptions:
        """The same for what reads weights files."""
        from lstm_cli.formats.model import ReadOptions

        return ReadOptions(
            self.format, self.prefix, self.tmva_order, only=self.only, ignore=self.ignore
        )

    def open(self, path: str) -> str | Imported:
        """CONFIG; a weights file is read, once for all that follows."""
        from lstm_cli.api.assembly import opened

        found: Any = opened(path, self.options)
        return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ModelOptions:
    """What builds a model: the options that `model_options` adds to a command."""

    weights: Path | None
    device: str
    engine: str
    dtype: str
    threads: int | None
    seed: int | None
    overrides: tuple[str, ...]
    reading: ReadingOptions

    def config(self, source: str | Imported) -> Config:
        """The config of a YAML or weights file, with --set and --seed."""
        from lstm_cli.api.assembly import read_config

        return read_config(source, self.overrides, self.seed)

    def choose_engine(self, console: Console, threads: int | None = None) -> Choice:
        """The engine asked for, with `threads` unless --threads says otherwise."""
        threads = self.threads or threads
        return chosen_engine(console, self.engine, self.device, self.dtype, threads)

    def weights_of(self, source: str | Imported) -> Path | Imported | None:
        """--weights, or the weights file that CONFIG itself is."""
        if self.weights is not None:
            return self.weights
        return None if isinstance(source, str) else source

    def model(
        self, source: str | Imported, config: Config, engine: Engine, console: Console
    ) -> Model:
        """The model, its weights fitted to the config; stderr is told what was assumed."""
        from lstm_cli.api.assembly import assemble

        model = assemble(config, engine, self.weights_of(source), self.reading.options)
        for note in model.notes:
            console.note(f"note: {note}")
        return model


def chosen_engine(
    console: Console, engine: str, device: str, dtype: str, threads: int | None
) -> Choice:
    """The engine asked for; stderr is told where ``auto`` had to pass over a faster one.

    There are never more threads than the processors that may be used: they would only wait.
    """
    from lstm_cli.engines.selection import choose_engine
    from lstm_cli.engines.threads import allowed_threads

    allowed = allowed_threads()
    if threads is not None and threads > allowed:
        console.note(
            f"note: {threads} threads were asked for; {allowed} can run here at once, "
            f"and {allowed} are used"
        )
        threads = allowed
    choice = choose_engine(engine, device, dtype, threads)
    for note in choice.notes:
        console.note(note)
    return choice


def machine_line(engine: Engine) -> str:
    """What computes: device, engine, dtype, and the GPU's name or the number of threads."""
    gpu = getattr(getattr(engine, "hardware", None), "title", None)
    last = gpu or counted(engine.threads or 1, "thread")
    return f"computed on {', '.join((engine.device, engine.name, engine.dtype, last))}"


def _all(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def thread_count(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of threads."""
    from lstm_cli.engines.threads import MOST_THREADS

    if value is None:
        return None
    digits = value.strip()
    short = digits.isascii() and digits.isdigit() and len(digits.lstrip("0")) <= 4
    if short and 1 <= int(digits) <= MOST_THREADS:
        return int(digits)
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    raise click.BadParameter(f"{shown!r} is not a whole number from 1 to {MOST_THREADS}")


device_options = _all(
    click.option(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="Where to compute."
    ),
    click.option(
        "--engine",
        default="auto",
        metavar="auto|reference|jit|cuda",
        help="What computes; auto takes the fastest that can be used.",
    ),
    click.option(
        "--dtype",
        default="float32",
        metavar="float32|float64|...",
        help="Numbers to compute in.  [default: float32]",
    ),
    click.option(
        "--threads",
        callback=thread_count,
        metavar="N",
        help="At most so many threads, 1 to 1024; default: what the cgroup grants, else the cores.",
    ),
)


def settings(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Values of --set, each of the form KEY=VALUE."""
    for value in values:
        if not value.partition("=")[0].strip() or "=" not in value:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
    return values


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=settings,
    metavar="KEY=VALUE",
    help="Override a key of the config: --set model.layers.0.hidden_size=64; paths in it begin "
    "where it is typed.",
)

config_options = _all(
    click.option(
        "--weights", type=FILE, help="Weights file of any format; wins over the config's own."
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Overrides every seed in the config."),
    set_option,
)

output_options = _all(
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", is_flag=True, help="No progress and no messages."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)

force_option = click.option(
    "--force", is_flag=True, help="Also replace a file that lstm-cli did not write."
)

external_option = click.option(
    "--allow-external",
    is_flag=True,
    help="Follow links and storage outside the file, and read shapes that look like bombs.",
)


def _patterns(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Values of --only or --ignore: patterns with commas between them."""
    found = [one.strip() for value in values for one in value.split(",")]
    if not all(found):
        raise click.BadParameter(f"{','.join(values)!r} has an empty pattern")
    return tuple(found)


selecting_options = _all(
    click.option("--prefix", help="Read only what stands below this prefix of a state dict."),
    click.option(
        "--only",
        multiple=True,
        callback=_patterns,
        metavar="NAMES",
        help="Read only these tensors of a state dict: --only 'lstm.*,fc.*'.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        callback=_patterns,
        metavar="NAMES",
        help="Leave these tensors of a state dict out: --ignore 'criterion.*'.",
    ),
)


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options on how to read a weights file, handed to the command as ``reading``."""

    @wraps(function)  # with the options that it has already
    def gathered(
        *,
        read_format: str | None,
        prefix: str | None,
        only: tuple[str, ...],
        ignore: tuple[str, ...],
        tmva_order: str | None,
        **others: Any,
    ) -> Any:
        reading = ReadingOptions(read_format, prefix, tmva_order, only, ignore)
        return function(reading=reading, **others)

    return _all(
        click.option(
            "--from",
            "read_format",
            metavar="native|pytorch|keras|onnx|tmva",
            help="Format of the weights read; default: what the file holds.",
        ),
        selecting_options,
        click.option(
            "--tmva-order",
            type=click.Choice(["slots", "labels"]),
            help="Where a TMVA file may be read in two ways: what its elements hold.",
        ),
    )(gathered)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that build a model, handed to the command as one `ModelOptions`, ``options``."""

    @wraps(function)
    def gathered(
        *,
        weights: Path | None,
        device: str,
        engine: str,
        dtype: str,
        threads: int | None,
        seed: int | None,
        overrides: tuple[str, ...],
        reading: ReadingOptions,
        **others: Any,
    ) -> Any:
        options = ModelOptions(weights, device, engine, dtype, threads, seed, overrides, reading)
        return function(options=options, **others)

    return _all(config_options, reading_options, device_options)(gathered)


def batch_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """A number of sequences, or None for ``auto``."""
    if value == "auto":
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither auto nor a number above 0")


batch_option = click.option(
    "--batch-size",
    default="64",
    callback=batch_size,
    metavar="N|auto",
    help="Sequences computed together.  [default: 64]",
)


def data_options(config: Config, allow_external: bool, *, need_targets: bool = True) -> DataOptions:
    """How the config says to read the data; without `need_targets`, missing ones are a note."""
    from lstm_cli.data import DataOptions, Window

    data = config.data
    cut = data.window
    window = None
    if cut is not None:
        window = Window(cut.length, cut.stride, cut.horizon, cut.predict)
    return DataOptions(
        inputs=data.inputs,
        targets=data.targets,
        lengths=data.lengths,
        offsets=data.offsets,
        mask=data.mask,
        layout=data.layout,
        window=window,
        transpose=data.transpose,
        need_targets=need_targets,
        features=config.model.input_size,
        where=config.where("data"),
        allow_external=allow_external,
    )


def check_order(config: str, data: Sequence[str] = ()) -> None:
    """Raise ConfigError if CONFIG is a file of sequences, or of results.

    It says whether CONFIG and DATA are swapped, or a config is missing.
    """
    from lstm_cli.api.weights_files import is_hdf5

    if not is_hdf5(config) and not is_hdf5(config.rpartition(":/")[0]):
        return
    from lstm_cli.data import holds_data, holds_network, is_config_or_weights

    what = holds_data(config)
    if what is None:
        return
    networks = (path for path in data if is_config_or_weights(path) or holds_network(path))
    first = next(networks, None)
    words = [str(word) for word in click.get_current_context().obj or ()]
    if first is None or first not in words or config not in words:
        raise ConfigError(
            what,
            expected="a config or a weights file as CONFIG",
            where=config,
            hint=f"lstm-cli data {quote(config)} shows what it holds",
        )
    words.remove(first)
    words.insert(words.index(config), first)
    raise ConfigError(
        "CONFIG and DATA are swapped",
        expected="CONFIG, then DATA",
        found=f"{what}; {first} is a config or a network",
        hint=f"the config comes before the data: {' '.join(['lstm-cli', *map(quote, words)])}",
    )


def check_apart(
    read: Mapping[str, str | Path | None] = MappingProxyType({}),
    *,
    data: Sequence[str] = (),
    **written: Path | None,
) -> None:
    """Raise UsageError if a file to write is also another one's, or one that is read.

    Parameters
    ----------
    read
        Files that are read, by what they are called; ``FILE.h5:/group`` is taken for the file.
    data
        The data files.
    written
        Files to write, by option; `destination` is the argument DST.
    """
    names = {name: "DST" if name == "destination" else f"--{name}" for name in written}
    taken = {_identity(path): "DATA" for path in data}
    taken |= {_identity(path): name for name, path in read.items() if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        other = taken.setdefault(_identity(path), names[name])
        if other != names[name]:
            raise UsageError(
                f"{other} and {names[name]} name the same file",
                found=str(path),
                hint=f"{names[name]} names another file",
            )


def _identity(path: str | Path) -> tuple[int, int] | str:
    """What two names of one file have in common, links of any kind included."""
    for name in (str(path), str(path).rpartition(":/")[0]):
        with suppress(OSError, ValueError):
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode) and status.st_ino:
                return status.st_dev, status.st_ino
    try:
        return os.path.normcase(os.path.realpath(path))
    except ValueError:  # no file can have such a name; reading it says so
        return str(path)
