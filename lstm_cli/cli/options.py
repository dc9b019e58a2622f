"""Options that several commands share, and the objects that commands get from them."""

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
    from lstm_cli.cli.display.console import Console
    from lstm_cli.config import Config
    from lstm_cli.data import DataOptions
    from lstm_cli.engines.protocols import Engine
    from lstm_cli.engines.selection import EngineChoice
    from lstm_cli.formats.interchange import Imported, ReadOptions
    from lstm_cli.workflows import Model

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading a weights file, which `reading_options` adds to a command."""

    format: str | None = None
    prefix: str | None = None
    tmva_order: Any = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @property
    def read_options(self) -> ReadOptions:
        """The options for readers of weights files."""
        from lstm_cli.formats.interchange import ReadOptions

        return ReadOptions(
            self.format, self.prefix, self.tmva_order, only=self.only, ignore=self.ignore
        )

    def open(self, path: str) -> str | Imported:
        """The path of a YAML config, or the content of a weights file, which is read once."""
        from lstm_cli.workflows.model import read_if_weights

        source: Any = read_if_weights(path, self.read_options)
        return source  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ModelOptions:
    """Options for building a model, which `model_options` adds to a command."""

    weights: Path | None
    device: str
    engine: str
    dtype: str
    threads: int | None
    seed: int | None
    overrides: tuple[str, ...]
    reading: ReadingOptions

    def config(self, source: str | Imported) -> Config:
        """The config of a YAML or weights file, with ``--set`` and ``--seed``."""
        from lstm_cli.workflows.model import read_config

        return read_config(source, self.overrides, self.seed)

    def choose_engine(self, console: Console, threads: int | None = None) -> EngineChoice:
        """The selected engine; `threads` is the default of ``--threads``."""
        threads = self.threads or threads
        return chosen_engine(console, self.engine, self.device, self.dtype, threads)

    def weights_of(self, source: str | Imported) -> Path | Imported | None:
        """The file of ``--weights``, or CONFIG if it is a weights file."""
        if self.weights is not None:
            return self.weights
        return None if isinstance(source, str) else source

    def model(
        self, source: str | Imported, config: Config, engine: Engine, console: Console
    ) -> Model:
        """The model with weights that fit the config; stderr gets notes on assumptions."""
        from lstm_cli.workflows.model import assemble

        model = assemble(config, engine, self.weights_of(source), self.reading.read_options)
        for note in model.notes:
            console.note(f"note: {note}")
        return model


def chosen_engine(
    console: Console, engine: str, device: str, dtype: str, threads: int | None
) -> EngineChoice:
    """The selected engine; stderr gets a note if ``auto`` passed over a faster one.

    Threads beyond the number of allowed processors would only wait, so they are not started.
    """
    from lstm_cli.engines.selection import choose_engine
    from lstm_cli.engines.threads import allowed_threads

    allowed = allowed_threads()
    if threads is not None and threads > allowed:
        console.note(
            f"note: {threads} threads were requested, but only {allowed} can run here at once; "
            f"using {allowed}"
        )
        threads = allowed
    choice = choose_engine(engine, device, dtype, threads)
    for note in choice.notes:
        console.note(note)
    return choice


def machine_line(engine: Engine) -> str:
    """The line ``computed on cpu, jit, float32, 2 threads``; on a GPU, its name last."""
    gpu = engine.accelerator
    hardware = counted(engine.threads or 1, "thread") if gpu is None else gpu.title
    return f"computed on {', '.join((engine.device, engine.name, engine.dtype, hardware))}"


def _all(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def thread_count(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The value of ``--threads``, from 1 to `MOST_THREADS`."""
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
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="Device that computes."
    ),
    click.option(
        "--engine",
        default="auto",
        metavar="auto|reference|jit|cuda",
        help="Engine that computes; auto selects the fastest usable one.",
    ),
    click.option(
        "--dtype",
        default="float32",
        metavar="float32|float64|...",
        help="Number type of the computation.  [default: float32]",
    ),
    click.option(
        "--threads",
        callback=thread_count,
        metavar="N",
        help="Largest number of threads, 1 to 1024; default: the cgroup's limit, else the "
        "number of physical cores.",
    ),
)


def settings(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Values of ``--set``, each of the form KEY=VALUE."""
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
    help="Override a key of the config: --set model.layers.0.hidden_size=64; paths in VALUE start "
    "from the working directory.",
)

config_options = _all(
    click.option(
        "--weights", type=FILE, help="Weights file of any format; overrides the config's."
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Override every seed in the config."),
    set_option,
)

debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
)
"""Option that commands do not get: `lstm_cli.cli.main` looks for it in the arguments."""

output_options = _all(
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", is_flag=True, help="No progress and no messages."),
    debug_option,
)

force_option = click.option(
    "--force", is_flag=True, help="Also replace a file that lstm-cli did not write."
)

external_option = click.option(
    "--allow-external",
    is_flag=True,
    help="Follow links and storage outside the file, and read suspiciously large shapes.",
)


def _patterns(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Values of ``--only`` or ``--ignore``, which are separated by commas."""
    patterns = tuple(pattern.strip() for value in values for pattern in value.split(","))
    if not all(patterns):
        raise click.BadParameter(f"{','.join(values)!r} has an empty pattern")
    return patterns


selecting_options = _all(
    click.option("--prefix", help="Read only tensors below this prefix of a state dict."),
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
        help="Skip these tensors of a state dict: --ignore 'criterion.*'.",
    ),
)


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add options on how to read a weights file; the command gets them as ``reading``."""

    @wraps(function)  # keeps the function's options
    def wrapper(
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
            help="Format of the weights file; default: recognized from its content.",
        ),
        selecting_options,
        click.option(
            "--tmva-order",
            type=click.Choice(["slots", "labels"]),
            help="Meaning of the elements in an ambiguous TMVA file.",
        ),
    )(wrapper)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add options that build a model; the command gets a `ModelOptions` as ``options``."""

    @wraps(function)
    def wrapper(
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

    return _all(config_options, reading_options, device_options)(wrapper)


def batch_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """The value of ``--batch-size``, None for ``auto``."""
    if value == "auto":
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither auto nor a number above 0")


def batch_option(default: str, note: str) -> Decorator:
    """The option ``--batch-size``; `note` tells its default in the help."""
    return click.option(
        "--batch-size",
        default=default,
        callback=batch_size,
        metavar="N|auto",
        help=f"Number of sequences per batch.  [default: {note}]",
    )


def data_options(config: Config, allow_external: bool, *, need_targets: bool = True) -> DataOptions:
    """The config's options for data; without `need_targets`, missing targets are a note."""
    from lstm_cli.data import DataOptions, Window

    data = config.data
    window = None
    if (w := data.window) is not None:
        window = Window(w.length, w.stride, w.horizon, w.predict)
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
    """Raise ConfigError if CONFIG is a file of sequences or of results.

    The message says that CONFIG and DATA are swapped, or that a config is missing.
    """
    from lstm_cli.workflows.weights_files import is_hdf5

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
    """Raise UsageError if a file to write is also an input, or is written twice.

    Parameters
    ----------
    read
        Files to read by their name in messages; ``FILE.h5:/group`` means the file.
    data
        The data files.
    written
        Files to write by option; `destination` is the argument DST.
    """
    names = {name: "DST" if name == "destination" else f"--{name}" for name in written}
    uses = {_identity(path): "DATA" for path in data}
    uses |= {_identity(path): name for name, path in read.items() if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        other = uses.setdefault(_identity(path), names[name])
        if other != names[name]:
            raise UsageError(
                f"{other} and {names[name]} name the same file",
                found=str(path),
                hint=f"{names[name]} names another file",
            )


def _identity(path: str | Path) -> tuple[int, int] | str:
    """A value that is equal for two names of one file, through links of any kind."""
    for name in (str(path), str(path).rpartition(":/")[0]):
        with suppress(OSError, ValueError):
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode) and status.st_ino:
                return status.st_dev, status.st_ino
    try:
        return os.path.normcase(os.path.realpath(path))
    except ValueError:  # no file can have such a name, which reading reports
        return str(path)
