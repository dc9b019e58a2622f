"""Where a conversion writes to: its format, and a name that appears only when all is proven."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lstm_cli.errors import LstmCliError, Problem, UsageError
from lstm_cli.formats import registry
from lstm_cli.formats.atomic import not_written
from lstm_cli.formats.registry import Format


def target_format(destination: Path, name: str | None) -> Format:
    """The format to write.

    Raises
    ------
    UsageError
        There is none of that name, or the suffix says none and none is named.
    """
    if name is not None:
        return registry.named(name)
    found = registry.by_suffix(destination)
    if found is None:
        suffixes = ", ".join(s for format in registry.FORMATS.values() for s in format.suffixes)
        raise UsageError(
            f"the name {destination} does not say in which format to write",
            expected=f"a suffix out of {suffixes}",
            hint="--to " + "|".join(registry.FORMATS),
        )
    return found


def need_target(destination: Path, source: Path) -> None:
    """Raise unless a file can be made there that is not the source."""
    if not destination.parent.is_dir():
        raise LstmCliError(
            f"{destination} cannot be written: its folder does not exist",
            expected=f"a folder {destination.parent}",
            hint=f"mkdir -p {shlex.quote(str(destination.parent))}",
        )
    if not destination.exists():
        return
    if not destination.is_file():
        raise LstmCliError(
            f"{destination} cannot be written: it is no regular file",
            expected="a new name, or a file to be replaced",
        )
    if source.exists() and destination.samefile(source):
        raise UsageError(
            "the source and the destination are the same file",
            found=f"{source} and {destination}",
            hint="name another file to write",
        )


class Temporary:
    """A name beside the destination, with its suffix, for what is not proven yet.

    Attributes
    ----------
    path
        To write to.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._final = Path(os.path.realpath(destination))
        self._mark = f".{secrets.token_hex(4)}.part."
        self.path = self._final.with_name(f"{self._mark}{self._final.name}")

    def keep(self) -> None:
        """Give it the destination's name.

        Raises
        ------
        LstmCliError
            The system does not let us.
        """
        try:
            self.path.replace(self._final)
        except OSError as error:
            raise not_written(self._destination, "the weights", error) from None

    def told(self, text: str) -> str:
        """A text about the temporary file as one about the destination."""
        return text.replace(str(self.path), str(self._destination)).replace(self._mark, "")

    def error(self, error: LstmCliError) -> LstmCliError:
        """An error about the temporary file as one about the destination."""

        def told(text: str | None) -> str | None:
            return None if text is None else self.told(text)

        problems = [
            Problem(
                self.told(problem.what),
                told(problem.expected),
                told(problem.found),
                tuple(map(self.told, problem.where)),
                told(problem.hint),
            )
            for problem in error.problems
        ]
        return type(error)(problems, headline=told(error.headline))


@contextmanager
def temporary(destination: Path) -> Iterator[Temporary]:
    """A temporary name; what still stands there at the end is removed."""
    made = Temporary(destination)
    try:
        yield made
    except LstmCliError as error:
        raise made.error(error) from None
    finally:
        with suppress(OSError):
            made.path.unlink(missing_ok=True)
