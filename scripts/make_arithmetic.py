"""Make the arithmetic task of Jozefowicz, Zaremba and Sutskever, at a size for a laptop.

    python scripts/make_arithmetic.py arithmetic.h5 --sequences 20000 --seed 2015

A sequence is a sum or difference of two numbers, and then its result, character by character. A
random number of meaningless letters stands between successive characters:

    read      4 k 2 - x q 1 0 7 b = - 6 5
    predict                       - 6 5 .

From ``=`` on, every step's target is the next character of the result, and ``.`` ends it. The
inputs are the correct characters so far, as in the paper. Every step before ``=`` has the target
`blank`, which is soon learned and shows nothing about arithmetic. So scripts/run_forget_bias.py
scores the other targets alone.

The paper's numbers have up to 8 digits and are negative too; here they have up to 3 and only the
result may be negative. Its 40 symbols are the same. No problem of /test is in /train, even with
other letters.

R. Jozefowicz, W. Zaremba, I. Sutskever: An Empirical Exploration of Recurrent Network
Architectures. Proc. 32nd International Conference on Machine Learning, PMLR 37 (2015) 2342-2350.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = "0123456789+-=." + LETTERS
"""Input symbols; a step is one-hot in this order."""
CLASSES = (*"0123456789-.", "blank")
"""Classes of the targets."""
BLANK = CLASSES.index("blank")
ATTRIBUTES = {
    "title": "Arithmetic with distractors",
    "description": "A sum or difference of two numbers, letters in between that mean nothing, and "
    "its result. Target of a step: the next character of the result, before it blank.",
    "source": "made by scripts/make_arithmetic.py",
    "licence": "MIT, as the code",
    "citation": "R. Jozefowicz, W. Zaremba, I. Sutskever: An Empirical Exploration of Recurrent "
    "Network Architectures. Proc. 32nd ICML, PMLR 37 (2015) 2342-2350.",
}


@dataclass(frozen=True)
class Problem:
    """A sum (`sign` is +) or a difference (-)."""

    left: int
    sign: str
    right: int

    @property
    def question(self) -> str:
        """The input without letters: ``42-107=``."""
        return f"{self.left}{self.sign}{self.right}="

    @property
    def result(self) -> str:
        """The target with its end: ``-65.``."""
        value = self.left + self.right if self.sign == "+" else self.left - self.right
        return f"{value}."


@dataclass(frozen=True)
class Part:
    """Concatenated steps (sum T, 40) and their classes (sum T,), and lengths (N,)."""

    inputs: NDArray[np.uint8]
    targets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def draw_number(rng: np.random.Generator, digits: int) -> int:
    """A number of 1 to `digits` digits, every length as likely, without leading zeros."""
    length = int(rng.integers(1, digits + 1))
    return int(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def draw_problem(rng: np.random.Generator, digits: int) -> Problem:
    """A problem of numbers of up to `digits` digits."""
    sign = "+-"[int(rng.integers(2))]
    return Problem(draw_number(rng, digits), sign, draw_number(rng, digits))


def distract(rng: np.random.Generator, text: str, most: int) -> str:
    """Put 0 to `most` letters, every count as likely, between successive characters."""
    found = [text[0]]
    for character in text[1:]:
        count = int(rng.integers(most + 1))
        found += [LETTERS[k] for k in rng.integers(len(LETTERS), size=count)]
        found.append(character)
    return "".join(found)


def encode(question: str, result: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One-hot steps (T, 40) and classes (T,): the question, then all of the result but its end."""
    read = question + result[:-1]
    inputs = np.zeros((len(read), len(SYMBOLS)), np.uint8)
    inputs[np.arange(len(read)), [SYMBOLS.index(character) for character in read]] = 1
    targets = np.full(len(read), BLANK, np.int64)
    targets[len(question) - 1 :] = [CLASSES.index(character) for character in result]
    return inputs, targets


def make_part(rng: np.random.Generator, problems: list[Problem], most: int) -> Part:
    """The problems' sequences, with up to `most` letters between successive characters."""
    steps = [encode(distract(rng, problem.question, most), problem.result) for problem in problems]
    return Part(
        inputs=np.concatenate([inputs for inputs, _ in steps]),
        targets=np.concatenate([targets for _, targets in steps]),
        lengths=np.array([len(targets) for _, targets in steps], np.int64),
    )


def is_held_out(problem: Problem, seed: int) -> bool:
    """True if a problem belongs to the tenth of all problems that is kept for /test."""
    digest = hashlib.sha256(f"{seed} {problem.question}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def draw_problems(
    rng: np.random.Generator, count: int, digits: int, wanted: Callable[[Problem], bool]
) -> list[Problem]:
    """Draw problems of one part; short problems may repeat."""
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(rng, digits)
        if wanted(problem):
            problems.append(problem)
    return problems


def make_parts(sequences: int, tests: int, digits: int, most: int, seed: int) -> dict[str, Part]:
    """Parts `train` and `test`, each from its own stream of random numbers."""
    train, test = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    learnt = draw_problems(train, sequences, digits, lambda problem: not is_held_out(problem, seed))
    held_out = draw_problems(test, tests, digits, lambda problem: is_held_out(problem, seed))
    return {"train": make_part(train, learnt, most), "test": make_part(test, held_out, most)}


def write(path: Path, parts: dict[str, Part], attributes: dict[str, int]) -> None:
    """Write a group per part. The old file format stores no times, so the bits repeat."""
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.attrs.update({**ATTRIBUTES, **attributes})
        for name, part in parts.items():
            group = file.create_group(name)
            group.attrs["classes"] = CLASSES
            for key in ("inputs", "targets", "lengths"):
                group.create_dataset(key, data=getattr(part, key), track_times=False)


def main() -> None:
    """Draw and write the sequences."""
    parser = argparse.ArgumentParser(description="Draw sums and differences with distractors.")
    parser.add_argument("output", type=Path, nargs="?", default=Path("arithmetic.h5"))
    parser.add_argument("--sequences", type=int, default=20_000, help="of /train (20000)")
    parser.add_argument("--tests", type=int, default=2_000, help="sequences of /test (2000)")
    parser.add_argument("--digits", type=int, default=3, help="of a number, at most (3)")
    parser.add_argument("--distractors", type=int, default=2, help="in a row, at most (2)")
    parser.add_argument("--seed", type=int, default=2015, help="of the random draws")
    args = parser.parse_args()
    if min(args.sequences, args.tests, args.digits) < 1 or min(args.distractors, args.seed) < 0:
        parser.error("--distractors and --seed must be at least 0, the others at least 1")
    if args.digits > 18:
        parser.error("--digits must be at most 18: numbers are drawn as 64-bit integers")
    names = ("sequences", "tests", "digits", "distractors", "seed")
    options: dict[str, int] = {name: getattr(args, name) for name in names}
    try:
        write(args.output, make_parts(*options.values()), options)
    except OSError as error:
        parser.error(str(error))
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
