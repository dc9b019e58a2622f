"""Train the configs in configs/arithmetic with several seeds and print a Markdown table.

    python scripts/make_arithmetic.py arithmetic.h5
    python scripts/run_forget_bias.py arithmetic.h5 --output forget-bias

Every training and every test is a call of ``lstm-cli``; finished runs are not repeated. Scores
count the answering steps only: steps before ``=`` have the target `blank` and are left out. The
table's last row needs no network: it predicts the character that is most frequent in /train at
each place of a result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

CONFIGS = Path(__file__).parents[1] / "configs" / "arithmetic"
NAMES = ("forget-bias-1", "forget-bias-0", "no-forget-gate")
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """Scores: share of correct characters and mean loss at answering steps, share of results."""

    accuracy: float
    loss: float
    whole: float


def call(*arguments: str) -> None:
    """Run lstm-cli; CalledProcessError if it fails, after its own message on stderr."""
    command = [sys.executable, "-m", "lstm_cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def score(p: NDArray[np.float32], targets: Classes, lengths: Classes, blank: int) -> Score:
    """Score probabilities (sum T, K) by classes (sum T,) of sequences of these lengths (N,)."""
    answering = targets != blank
    right = p.argmax(axis=1) == targets
    of_target = p[np.arange(len(p)), targets][answering].astype(np.float64)
    wrong = np.add.reduceat(answering & ~right, np.cumsum(lengths) - lengths)
    return Score(
        accuracy=float(right[answering].mean()),
        loss=float(-np.log(np.maximum(of_target, np.finfo(np.float32).tiny)).mean()),
        whole=float((wrong == 0).mean()),
    )


def places(targets: Classes, blank: int) -> Classes:
    """Place of every answering step in its result, from 0, in the order of the steps."""
    answering = np.flatnonzero(targets != blank)
    first = np.r_[True, np.diff(answering) > 1]  # a blank step, `=` not yet read, lies between
    count = np.arange(len(answering))
    return count - np.maximum.accumulate(np.where(first, count, 0))


def baseline(train: Classes, test: Classes, blank: int) -> float:
    """Accuracy on `test` of the character most frequent at each place of a result in `train`."""
    where, wanted = places(train, blank), train[train != blank]
    best = [np.bincount(wanted[where == place]).argmax() for place in range(where.max() + 1)]
    at = np.minimum(places(test, blank), len(best) - 1)
    return float((np.array(best)[at] == test[test != blank]).mean())


def train_and_score(data: Path, name: str, seed: int, output: Path, extra: list[str]) -> Score:
    """Train one config with one seed on /train, run it on /test, and score its outputs."""
    folder = output / f"{name}-{seed}"
    common = ("--threads", "1", "--quiet")
    call(
        "train", str(CONFIGS / f"{name}.yaml"), f"{data}:/train", "--output", str(folder),
        "--resume", "--seed", str(seed), *common, *extra,
    )  # fmt: skip
    results = folder / "test.h5"
    call("run", str(folder / "model.safetensors"), f"{data}:/test", "--output", str(results),
         *common)  # fmt: skip
    with h5py.File(results) as outputs, h5py.File(data) as file:
        test = file["test"]
        blank = list(test.attrs["classes"]).index("blank")
        return score(outputs["outputs"][()], test["targets"][()], test["lengths"][()], blank)


def spread(values: list[float], form: str) -> str:
    """Mean and range: ``0.61 (0.60 to 0.62)``."""
    mean, least, most = (format(v, form) for v in (np.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def row(name: str, scores: list[Score]) -> str:
    """A row of the table."""
    cells = (
        spread([s.accuracy for s in scores], ".3f"),
        spread([s.loss for s in scores], ".3f"),
        spread([s.whole for s in scores], ".3f"),
    )
    return f"| {' | '.join((f'`{name}`', *cells))} |"


def print_table(data: Path, seeds: list[int], output: Path, extra: list[str]) -> None:
    """Train all configs with all seeds; print each row when it is complete."""
    print("| config | accuracy on answers | loss on answers | whole results right |")
    print("|---|---|---|---|")
    for name in NAMES:
        scores = [train_and_score(data, name, seed, output, extra) for seed in seeds]
        print(row(name, scores), flush=True)
    with h5py.File(data) as file:
        blank = list(file["train"].attrs["classes"]).index("blank")
        share = baseline(file["train/targets"][()], file["test/targets"][()], blank)
    print(f"| most frequent character | {share:.3f} | | |")


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description="Compare forget biases on the arithmetic task.")
    parser.add_argument("data", type=Path, help="file that make_arithmetic.py wrote")
    parser.add_argument("--output", type=Path, default=Path("forget-bias"), help="folder of runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--set", action="append", default=[], help="passed on to lstm-cli train")
    args = parser.parse_args()
    extra = [part for value in args.set for part in ("--set", value)]
    try:
        print_table(args.data, args.seeds, args.output, extra)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except (OSError, KeyError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
