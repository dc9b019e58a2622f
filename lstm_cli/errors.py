"""What can go wrong, said in one form: what, expected, found, where, and what mends it."""

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
"""Problems of one error that are printed; `LstmCliError.problems` has them all."""

LONGEST_WORD, LONGEST_LINE = 500, 10_000
"""Characters without a blank, and in a line, above which a text is cut in the middle."""


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
            text = getattr(self, key)
            object.__setattr__(self, key, None if text is None else printable(text))
        places = tuple(printable(place) for place in self.where)
        object.__setattr__(self, "where", places)

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
    command line exits with. As a text, it is the first problems, then a count of the others.
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
        shown = self.problems[:SHOWN_PROBLEMS]
        given = Counter(problem.hint for problem in shown if problem.hint is not None)
        shared = [hint for hint, count in given.items() if count > 1 or len(self.problems) == 1]
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


_MEMORY = re.compile(
    r"allocation failed|(unable to|can't|cannot) (\w+ )?alloc|out of memory|failed to map segment"
)
"""What HDF5 and loaders say where memory runs out; or where a damaged file asks for too much."""
_ENOUGH = 1 << 30
"""Bytes that can be had where memory is not short."""


def is_memory_error(error: BaseException) -> bool:
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


def require_memory(nbytes: int, where: str) -> None:
    """Raise MemoryShortError unless so much can be had: for libraries that crash without it."""
    if not has_memory(nbytes):
        raise memory_error(where)


def _is_limited() -> bool:
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        return bool(getrlimit(RLIMIT_AS)[0] != RLIM_INFINITY)
    except ImportError:  # Windows has no such limits
        return False


def memory_error(where: str) -> MemoryShortError:
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


def printable(text: str, *, lines: bool = False) -> str:
    """The text as a terminal may be sent it; all that is shown passes here.

    Names in files may hold anything: what is not printable becomes an escape (``\\x1b``,
    ``\\u202e``), line breaks too unless the text is `lines`. What is endless is cut in the middle.
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
    """A path as a shell takes it, in printable characters: ``'my data.h5'``, ``$'\\x1b.h5'``."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def quote_yaml(name: str) -> str:
    """A name as a config takes it, in printable characters: ``inputs``, ``"a: b"``."""
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
    """Bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"


def described(value: object) -> str:
    """A value for a message: what it is, with its type and no more than 60 characters of it."""
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
"""What other programs call it."""


def counted(count: int, noun: str, *, grouped: bool = False) -> str:
    """A number and its noun: ``1 step``, ``7 steps``; `grouped` for ``12,000 classes``."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"
    number = f"{count:,}" if grouped else str(count)
    return f"{number} {noun if count == 1 else plural}"


MOST_COMPARED, LONGEST_COMPARED = 1_000, 64
"""Names, and letters of each, that are compared with a misspelled one: files may hold more."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, or None."""
    names = list(islice(known, MOST_COMPARED))
    if (other := OTHER_NAMES.get(name.lower())) in names:
        return other
    best = max(names, key=lambda candidate: _likeness(name, candidate), default=None)
    return best if best is not None and _likeness(name, best) >= 0.6 else None


def nearest_first(name: object, known: Iterable[str]) -> list[str]:
    """All known names, those that are most like `name` first; the others in their own order."""
    names = list(known)
    if not isinstance(name, str):
        return names
    guess = nearest(name, names)
    scores = {other: _likeness(name, other) for other in names}
    return sorted(names, key=lambda other: (other != guess, -scores[other] * (scores[other] > 0.5)))


@lru_cache(maxsize=1 << 14)
def _likeness(name: str, candidate: str) -> float:
    """From 0 to 1: 1 for names that differ in case and separators alone."""
    a, b = (text.lower().translate(_SEPARATORS) for text in (name, candidate))
    if not a or not b or len(a) > 3 * len(b) + 8:
        return float(a == b)
    shorter, longer = sorted((len(a), len(b)))
    alike = longer <= LONGEST_COMPARED and longer - shorter <= 0.4 * longer
    edits = _edits(a, b) if alike else longer * (a != b)
    likeness = 1 - edits / longer
    if shorter >= 3 and (a in b or b in a):  # what begins alike is likelier meant
        first, last = a[0] == b[0], a[-1] == b[-1]
        likeness = max(likeness, 0.87 if first else 0.77 if last else 0.67)
    return likeness


_SEPARATORS = {ord(letter): None for letter in "-_ "}


def _edits(a: str, b: str) -> int:
    """Letters to insert, remove, replace, or swap with their neighbor, to make `a` of `b`."""
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
