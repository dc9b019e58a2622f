"""What can go wrong, said in one form: what, expected, found, where, and what mends it."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in printable characters: names that files have move no cursor.

    Attributes
    ----------
    what
        One sentence without a full stop; names the key, gate or dataset.
    expected, found
        The two sides, where they are not already in `what`.
    where
        Places, one a line: ``configs/mine.yaml line 9``, ``/test/inputs in words.h5``.
    hint
        The command or key that mends it.
    """

    what: str
    expected: str | None = None
    found: str | None = None
    where: tuple[str, ...] = ()
    hint: str | None = None

    def __post_init__(self) -> None:
        for key in ("what", "expected", "found", "hint"):
            object.__setattr__(self, key, _printable(getattr(self, key)))
        object.__setattr__(self, "where", tuple(str(_printable(place)) for place in self.where))

    def lines(self) -> list[str]:
        """The problem as plain text: `what`, then indented details."""
        details = [self.what]
        if self.expected is not None:
            details.append(f"  expected {self.expected}")
        if self.found is not None:
            details.append(f"  found {self.found}")
        details.extend(f"  {place}" for place in self.where)
        return details


class LstmCliError(Exception):
    """Base of all errors this package raises on purpose.

    Carries one or more `problems`, with a `headline` over several; `exit_code` is what the
    command line exits with.
    """

    exit_code = 1

    def __init__(
        self,
        what: str | Sequence[Problem],
        *,
        expected: str | None = None,
        found: str | None = None,
        where: str | Iterable[str] = (),
        hint: str | None = None,
        headline: str | None = None,
    ) -> None:
        if isinstance(what, str):
            places = (where,) if isinstance(where, str) else tuple(where)
            self.problems: tuple[Problem, ...] = (Problem(what, expected, found, places, hint),)
        else:
            self.problems = tuple(what)
        several = len(self.problems) > 1
        self.headline = headline or (f"{len(self.problems)} problems" if several else None)
        super().__init__(str(self))

    def __str__(self) -> str:
        if self.headline is None:
            lines = [line for problem in self.problems for line in problem.lines()]
            return "\n".join(lines + [f"hint: {hint}" for hint in self.hints])
        # A hint of one problem stands with it, one that several share at the end.
        given = Counter(problem.hint for problem in self.problems)
        shared = [hint for hint in self.hints if given[hint] > 1 or len(self.problems) == 1]
        lines = [self.headline]
        for problem in self.problems:
            lines += ["", *(f"  {line}" for line in problem.lines())]
            if problem.hint is not None and problem.hint not in shared:
                lines.append(f"  hint: {problem.hint}")
        return "\n".join(lines + ([""] if shared else []) + [f"hint: {hint}" for hint in shared])

    @property
    def hints(self) -> tuple[str, ...]:
        """Every problem's hint, each once, in order."""
        return tuple(dict.fromkeys(p.hint for p in self.problems if p.hint is not None))


class UsageError(LstmCliError):
    """The command or call itself is wrong."""

    exit_code = 2


class DataError(LstmCliError):
    """The sequences cannot be used: missing, malformed, or unfit for the config."""

    exit_code = 3


class ConfigError(LstmCliError):
    """The config is wrong."""

    exit_code = 4


class WeightsError(LstmCliError):
    """The weights cannot be read, or do not fit the config."""

    exit_code = 4


class TrainingError(LstmCliError):
    """Training came upon a value that is not finite, or cannot go on for another reason."""


class DeviceError(LstmCliError):
    """The device or engine asked for cannot be used here."""

    exit_code = 5


class DeviceMemoryError(DeviceError):
    """A device has less memory free than is needed.

    Attributes
    ----------
    needed, free, total
        Bytes: needed, free at that moment, and of the whole device (None: not known).
    """

    def __init__(
        self,
        needed: int,
        free: int,
        total: int | None = None,
        *,
        purpose: str = "an array",
        hint: str = "a smaller batch needs less: --batch-size",
    ) -> None:
        self.needed, self.free, self.total = needed, free, total
        whole = "" if total is None else f" of {_size(total)}"
        super().__init__(
            f"out of device memory: {purpose} needs {_size(needed)}",
            expected=f"{_size(needed)} free",
            found=f"{_size(free)}{whole} free",
            hint=hint,
        )


class MemoryShortError(LstmCliError):
    """The machine, or a limit such as ``ulimit -v``, has not enough memory."""


_MEMORY = re.compile(r"allocation failed|(unable to|can't|cannot) (\w+ )?alloc|out of memory")
"""What HDF5 says where memory runs out; or where a damaged file has it ask for too much."""
_ENOUGH = 1 << 30
"""Bytes that can be had where memory is not short."""


def is_memory(error: BaseException) -> bool:
    """Whether an error of a library says that memory ran out, and not that a file is damaged."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    if os.strerror(errno.ENOMEM).lower() in text:
        return True
    return _MEMORY.search(text) is not None and memory_is_short()


def memory_is_short() -> bool:
    """Whether memory is limited, or little of it can be had: what fails then may be no fault."""
    return _is_limited() or not has_memory(_ENOUGH)


def has_memory(nbytes: int) -> bool:
    """Whether so much memory can be had at this moment."""
    try:
        mmap.mmap(-1, max(1, nbytes)).close()
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def need_memory(nbytes: int, where: str) -> None:
    """Raise MemoryShortError unless so much can be had: for libraries that crash without it."""
    if not has_memory(nbytes):
        raise short_of_memory(where)


def _is_limited() -> bool:
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        return bool(getrlimit(RLIMIT_AS)[0] != RLIM_INFINITY)
    except ImportError:  # Windows has no such limits
        return False


def short_of_memory(where: str) -> MemoryShortError:
    """The error to raise where `where` cannot be read because memory ran out."""
    return MemoryShortError(
        f"not enough memory for {where}",
        where=where,
        hint="ulimit -v unlimited lifts a limit on memory; other programs may hold it too",
    )


class MissingExtraError(DeviceError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, purpose: str, module: str) -> None:
        super().__init__(
            f"{purpose} needs the package {module}, which is not installed",
            hint=f"pip install 'lstm-cli[{extra}]'",
        )


def _printable(text: str | None) -> str | None:
    """The text, what no terminal should be sent written as an escape: ``\\x1b``."""
    if text is None or text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


def _size(nbytes: int) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, or None."""
    names = list(known)
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    match = get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return folded[match[0]] if match else None
