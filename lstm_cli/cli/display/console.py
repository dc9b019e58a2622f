"""Printing: tables and data to stdout, progress and messages to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lstm_cli.errors import printable

if TYPE_CHECKING:
    import rich.console


class Console:
    """Standard output and standard error of a command.

    Parameters
    ----------
    as_json
        Print one JSON document on stdout, and nothing else there.
    quiet
        Print no progress and no messages.
    """

    printed: ClassVar[bool] = False
    """Whether the command has printed its JSON document."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        Console.printed = False
        self.as_json = as_json
        self.quiet = quiet

    @cached_property
    def _out(self) -> rich.console.Console:
        # Pipes and files get tables in full width, unless COLUMNS limits it.
        wide = not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal()
        return _terminal(stderr=False, width=1 << 16 if wide else None)

    @cached_property
    def _err(self) -> rich.console.Console:
        return _terminal(stderr=True)

    def show(self, *renderables: Any) -> None:
        """Print tables and text on stdout, unless JSON is requested."""
        if not self.as_json:
            for renderable in renderables:
                self._print(renderable)

    def _print(self, renderable: Any) -> None:
        if isinstance(renderable, str):
            self._out.print(renderable, soft_wrap=True)
        elif self._out.is_terminal:
            self._out.print(renderable, crop=False)
        else:  # files get no blanks at the ends of lines
            with self._out.capture() as captured:
                self._out.print(renderable, crop=False)
            lines = captured.get().splitlines()
            self._out.print("\n".join(map(str.rstrip, lines)), soft_wrap=True)

    def document(self, value: Any) -> None:
        """Print the JSON document on stdout, if JSON is requested."""
        if self.as_json:
            print_json(value)
            Console.printed = True

    def note(self, text: str) -> None:
        """Print a message on stderr."""
        if not self.quiet:
            self._err.print(text, soft_wrap=True)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr, if stderr is a terminal."""
        if self.quiet or not self._err.is_terminal:
            yield lambda count: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            Remaining(compact=True),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)

    @property
    def is_interactive(self) -> bool:
        """Whether stderr is a terminal, where a line can be updated."""
        return self._err.is_terminal

    @property
    def width(self) -> int:
        """Width of stderr in columns."""
        return self._err.width

    def live_bar(self, width: int) -> Any:
        """A line on stderr to update: field `head`, a bar of `width` columns, field `tail`."""
        from rich.progress import BarColumn, Progress, TextColumn

        head, tail = (
            TextColumn(f"{{task.fields[{key}]}}", markup=False) for key in ("head", "tail")
        )
        return Progress(head, BarColumn(width), tail, console=self._err, transient=True)


def _terminal(*, stderr: bool, width: int | None = None) -> rich.console.Console:
    """Rich's console without markup, which escapes control characters in all texts."""
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Terminal(RichConsole):
        def render_str(self, text: str, *, style: Any = "", **_: Any) -> Text:
            """Escape a text or table cell before its width is measured."""
            return Text(printable(text, lines=True), style)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            """Escape every segment before it is written."""
            for segment in super().render(renderable, options):
                plain = segment.control or segment.text.isprintable()
                shown = segment.text if plain else printable(segment.text, lines=True)
                yield segment if plain else Segment(shown, segment.style)

    return Terminal(stderr=stderr, highlight=False, width=width)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, in printable characters."""
    import click

    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    click.echo(text)


def say(text: str) -> None:
    """Print a message on stderr without a console."""
    import click

    click.echo(printable(text, lines=True), err=True)


def plain(value: Any) -> Any:
    """A value in JSON's types: dataclasses as objects, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | bytes) else value
