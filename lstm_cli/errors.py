"""Exception classes that list problems with hints, and helpers that word messages."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

SHOWN_PROBLEMS = 20
"""Number of problems that an error prints; `LstmCliError.problems` has all of them."""

LONGEST_WORD, LONGEST_LINE = 500, 10_000
"""Longest word and line in characters; longer ones are cut in the middle."""


@dataclass(frozen=True)
class Problem:
    """One problem, in printable characters: names from files cannot control a terminal.

    Attributes
    ----------
    what
        One sentence without a full stop; names the key, gate or dataset.
    expected, found
        The expected and the actual value, where `what` does not have them.
    where
        Places, one per line: ``configs/mine.yaml line 9``, ``/test/inputs in words.h5``.
    hint
        The command or key that solves the problem.
    """

    what: str
    expected: str | None = None
    found: str | None = None
    where: tuple[str, ...] = ()
    hint: str | None = None

    def __post_init__(self) -> None:
        for key in ("what", "expected", "found", "hint"):
            text = getattr(self, key)
            object.__setattr__(self, key, None if text is None else printable(text))
        object.__setattr__(self, "where", tuple(printable(place) for place in self.where))

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
    """Base class of all errors of this package.

    An error has one or more `problems`, a `headline` over several, and the command line's
    `exit_code`. Its text lists the first `SHOWN_PROBLEMS` problems and counts the others.
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
        # A hint stands below its problem, or at the end if several problems share it.
        shown = self.problems[:SHOWN_PROBLEMS]
        counts = Counter(problem.hint for problem in shown if problem.hint is not None)
        shared = [hint for hint, count in counts.items() if count > 1 or len(self.problems) == 1]
        lines = [self.headline]
        for problem in shown:
            lines += ["", *(f"  {line}" for line in problem.lines())]
            if problem.hint is not None and problem.hint not in shared:
                lines.append(f"  hint: {problem.hint}")
        if (more := len(self.problems) - len(shown)) > 0:
            lines += ["", f"  and {more:,} more"]
        return "\n".join(lines + ([""] if shared else []) + [f"hint: {hint}" for hint in shared])

    @property
    def hints(self) -> tuple[str, ...]:
        """Hints of all problems without duplicates, in order."""
        return tuple(dict.fromkeys(p.hint for p in self.problems if p.hint is not None))


class UsageError(LstmCliError):
    """The command or call is wrong."""

    exit_code = 2


class DataError(LstmCliError):
    """The sequences are missing, malformed, or do not fit the config."""

    exit_code = 3


class ConfigError(LstmCliError):
    """The config is invalid."""

    exit_code = 4


class WeightsError(LstmCliError):
    """The weights cannot be read, or do not fit the config."""

    exit_code = 4


class TrainingError(LstmCliError):
    """Training met a value that is not finite, or cannot continue for another reason."""


class DeviceError(LstmCliError):
    """The selected device or engine cannot be used on this machine."""

    exit_code = 5


class DeviceMemoryError(DeviceError):
    """A device has too little free memory.

    Attributes
    ----------
    needed, free, total
        Bytes: needed, free, and of the whole device; `total` is None if it is unknown.
    """

    def __init__(
        self,
        needed: int,
        free: int,
        total: int | None = None,
        *,
        purpose: str = "an array",
        hint: str = "a smaller batch needs less memory: --batch-size",
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
    """Too little memory is available, on the machine or within ``ulimit -v``."""


_MEMORY = re.compile(
    r"allocation failed|(unable to|can't|cannot) (\w+ )?alloc|out of memory|failed to map segment"
)
"""Messages of HDF5 and loaders about lack of memory, which damaged files can cause as well."""
_ENOUGH = 1 << 30
"""Bytes that can be allocated where memory is not short."""


def is_memory_error(error: BaseException) -> bool:
    """Whether a library's error means lack of memory rather than a damaged file."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    if os.strerror(errno.ENOMEM).lower() in text:
        return True
    return _MEMORY.search(text) is not None and memory_is_short()


def memory_is_short() -> bool:
    """Whether memory is limited or nearly used up; then a file may not be to blame for an error."""
    return _is_limited() or not has_memory(_ENOUGH)


def has_memory(nbytes: int) -> bool:
    """Whether this many bytes can be allocated now."""
    try:
        mmap.mmap(-1, max(1, nbytes)).close()
    except (OSError, MemoryError, OverflowError):
        return False
    return True


def require_memory(nbytes: int, where: str) -> None:
    """Raise MemoryShortError if these bytes cannot be allocated; some libraries would crash."""
    if not has_memory(nbytes):
        raise memory_error(where)


def _is_limited() -> bool:
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        return bool(getrlimit(RLIMIT_AS)[0] != RLIM_INFINITY)
    except ImportError:  # Windows has no such limits
        return False


def memory_error(where: str) -> MemoryShortError:
    """The error to raise if memory is too short to read `where`."""
    return MemoryShortError(
        f"not enough memory for {where}",
        where=where,
        hint="ulimit -v unlimited lifts a limit on memory; other programs may use memory too",
    )


MAX_CHARACTERS = 80
"""Characters of a name or value in a message."""


def shortened(name: str) -> str:
    """Name from a file for a message: quoted if it is not plain, shortened if it is long."""
    text = name if name.isprintable() and name.strip() == name != "" else repr(name)
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def printable(text: str, *, lines: bool = False) -> str:
    """A text that is safe for a terminal; every displayed text passes through this function.

    Names in files may contain anything. Unprintable characters become escapes (``\\x1b``,
    ``\\u202e``), and so do line breaks, unless the text is `lines`. Very long words and lines are
    cut in the middle.
    """
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() or (lines and letter == "\n") else ascii(letter)[1:-1]
            for letter in text
        )
    if len(text) > LONGEST_WORD:
        text = re.sub(r"\S+", lambda word: _shortened(word[0], LONGEST_WORD), text)
        text = re.sub(r".+", lambda line: _shortened(line[0], LONGEST_LINE), text)
    return text


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 3]} … ({len(text):,} characters) … {text[-longest // 5 :]}"


def quote(path: object) -> str:
    """A path quoted for a shell, in printable characters: ``'my data.h5'``, ``$'\\x1b.h5'``."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def quote_yaml(name: str) -> str:
    """A name quoted for YAML, in printable characters: ``inputs``, ``"a: b"``."""
    word = re.fullmatch(r"[^\W\d_][\w/.-]*|/[\w/. -]*[\w/.-]", name)
    if word and name.isprintable() and name.lower() not in ("null", "true", "false"):
        return name
    letters = name.replace("\\", r"\\").replace('"', r"\"")
    return '"' + "".join(c if c.isprintable() else rf"\U{ord(c):08x}" for c in letters) + '"'


def _escaped(letter: str) -> str:
    if letter.isprintable() and letter not in "\\'":
        return letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"


def described(value: object) -> str:
    """A value for a message: at most 60 characters, and its type."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        try:
            text = repr(value)
        except ValueError:  # Python prints no integer of more than 4,300 digits
            text = "a huge number"
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return text if value is None else f"{text} ({kind})"
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"an array of shape {shape} and type {dtype} ({kind})"
    return f"an object of type {kind}"


OTHER_NAMES = {
    "bce": "binary_cross_entropy", "binary_crossentropy": "binary_cross_entropy",
    "bce_with_logits": "binary_cross_entropy", "nll": "cross_entropy", "nll_loss": "cross_entropy",
    "categorical_crossentropy": "cross_entropy", "softmax_cross_entropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy", "l1": "mae", "l1_loss": "mae",
    "mean_absolute_error": "mae", "mean_squared_error": "mse", "smooth_l1": "huber",
    "acc": "accuracy", "val_acc": "val_accuracy", "linear": "dense", "fully_connected": "dense",
    "fc": "dense", "simplernn": "rnn", "elman": "rnn", "bilstm": "lstm", "bigru": "gru",
    "float": "float32", "single": "float32", "fp32": "float32", "double": "float64",
    "fp64": "float64", "half": "float16", "fp16": "float16", "bf16": "bfloat16",
    "numpy": "reference", "llvm": "jit", "gpu": "cuda", "tensorflow": "keras", "tf": "keras",
    "plateau": "reduce_on_plateau", "zscore": "standard", "hardsigmoid": "hard_sigmoid",
}  # fmt: skip
"""Name in lstm-cli, by the name in another program."""


def counted(count: int, noun: str, *, grouped: bool = False) -> str:
    """A number and its noun: ``1 step``, ``7 steps``; `grouped` for ``12,000 classes``."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"
    number = f"{count:,}" if grouped else str(count)
    return f"{number} {noun if count == 1 else plural}"


MOST_COMPARED, LONGEST_COMPARED = 1_000, 64
"""Number of names, and of letters in each, that are compared with a misspelled name."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to `name`, or None."""
    names = list(islice(known, MOST_COMPARED))
    if (other := OTHER_NAMES.get(name.lower())) in names:
        return other
    best = max(names, key=lambda candidate: _similarity(name, candidate), default=None)
    return best if best is not None and _similarity(name, best) >= 0.6 else None


def nearest_first(name: object, known: Iterable[str]) -> list[str]:
    """All known names: those similar to `name` first, the others in their own order."""
    names = list(known)
    if not isinstance(name, str):
        return names
    guess = nearest(name, names)
    scores = {other: _similarity(name, other) for other in names}
    return sorted(names, key=lambda other: (other != guess, -scores[other] * (scores[other] > 0.5)))


@lru_cache(maxsize=1 << 14)
def _similarity(name: str, candidate: str) -> float:
    """Similarity from 0 to 1; 1 for names that differ only in case and separators."""
    a, b = (text.lower().translate(_SEPARATORS) for text in (name, candidate))
    if not a or not b or len(a) > 3 * len(b) + 8:
        return float(a == b)
    shorter, longer = sorted((len(a), len(b)))
    alike = longer <= LONGEST_COMPARED and longer - shorter <= 0.4 * longer
    edits = _edit_distance(a, b) if alike else longer * (a != b)
    similarity = 1 - edits / longer
    if shorter >= 3 and (a in b or b in a):  # a common start or end counts more
        first, last = a[0] == b[0], a[-1] == b[-1]
        similarity = max(similarity, 0.87 if first else 0.77 if last else 0.67)
    return similarity


_SEPARATORS = {ord(letter): None for letter in "-_ "}


def _edit_distance(a: str, b: str) -> int:
    """Letters to insert, remove, replace, or swap with a neighbor, to turn `b` into `a`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, above, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
