"""Where a conversion writes to: its format, and a name that appears only when all is proven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lstm_cli.errors import LstmCliError, Problem, UsageError
from lstm_cli.formats import registry
from lstm_cli.formats.registry import Format
from lstm_cli.output_files import AtomicFile, write_error


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


class Unproven:
    """What is written for a destination, before it is proven.

    Attributes
    ----------
    path
        To write to: a temporary name with the destination's suffix.
    """

    def __init__(self, destination: Path, file: AtomicFile) -> None:
        self._destination, self._file = destination, file
        self.path = file.path

    def keep(self) -> None:
        """Give it the destination's name.

        Raises
        ------
        LstmCliError
            The system does not let us.
        """
        try:
            self._file.keep()
        except OSError as error:
            raise write_error(self._destination, "the weights", error) from None

    def told(self, text: str) -> str:
        """A text about the temporary file as one about the destination."""
        text = text.replace(str(self.path), str(self._destination))
        text = text.replace(self.path.name, self._destination.name)
        mark, part, _ = self.path.name.partition(".part.")
        return text.replace(mark + part, "")  # of a name with another suffix

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
def unproven(destination: Path, *, force: bool) -> Iterator[Unproven]:
    """A temporary name; what still stands there at the end is removed."""
    try:
        file = AtomicFile(destination, force=force)
    except OSError as error:
        raise write_error(destination, "the weights", error) from None
    with file:
        written = Unproven(destination, file)
        try:
            yield written
        except LstmCliError as error:
            raise written.error(error) from None
