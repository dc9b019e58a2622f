"""Make data like that of TMVA's recurrent-network tutorial, such as data/tmva-time.h5.

    python scripts/make_tmva_time_data.py data/tmva-time.h5 --events 500 --seed 2020

An event is a series of 10 histograms of 30 bins over [0, 10]. Each has exactly 1000 draws of a
Gaussian inside the range. Every bin gets additional noise of mean 0 and standard deviation 10.
Background and signal differ only in how the Gaussian moves from step to step:

    background, step j:  mean 5 + 0.2 sin(pi j / 10),  sigma 4 + 0.3 sin(pi j / 10)
    signal, step j:      the same with cos for sin

1000 draws inside [0, 10] are one multinomial draw over the bins' probabilities under the
Gaussian cut to that range: exact, and quick. A Gaussian that is drawn 1000 times and only then
cut would leave a total that tells the classes apart.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

STEPS, BINS = 10, 30
LOW, HIGH = 0.0, 10.0
DRAWS = 1000
NOISE = 10.0
BACKGROUND, SIGNAL = 0, 1
PARTS = ("train", "test")
ATTRIBUTES = {
    "title": "TMVA time data",
    "description": "10 steps of a 30-bin histogram over [0, 10]: 1000 Gaussian draws, and noise. "
    "The Gaussian moves as sin (background, target 0) or cos (signal, target 1) of the step.",
    "source": "made by scripts/make_tmva_time_data.py, as ROOT's tutorial TMVA_RNN_Classification "
    "describes its data",
    "licence": "MIT, as the code",
    "citation": "A. Hoecker et al.: TMVA, toolkit for multivariate data analysis. "
    "arXiv:physics/0703039 (2007).",
}


def gaussian_of_step(kind: int, step: int) -> tuple[float, float]:
    """Mean and sigma of one class (BACKGROUND or SIGNAL) at one step."""
    wave = (math.cos if kind == SIGNAL else math.sin)(math.pi * step / STEPS)
    return 5 + 0.2 * wave, 4 + 0.3 * wave


def bin_probabilities(mean: float, sigma: float) -> NDArray[np.float64]:
    """Probability of each bin (30,) for a Gaussian cut to [0, 10]; the sum is 1."""
    edges = np.linspace(LOW, HIGH, BINS + 1)
    below = [0.5 * (1 + math.erf((edge - mean) / (sigma * math.sqrt(2)))) for edge in edges]
    inside = np.diff(below)
    return np.asarray(inside / inside.sum())


def draw_counts(rng: np.random.Generator, kind: int, events: int) -> NDArray[np.int64]:
    """Histograms before noise, (events, 10, 30); every one holds exactly 1000 draws."""
    chances = [bin_probabilities(*gaussian_of_step(kind, step)) for step in range(STEPS)]
    return rng.multinomial(DRAWS, np.array(chances), size=(events, STEPS))


def add_noise(rng: np.random.Generator, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Noise of standard deviation 10 on every bin, as float32."""
    return (counts + rng.normal(0, NOISE, counts.shape)).astype(np.float32)


def make_events(
    rng: np.random.Generator, events: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs (2 events, 10, 30) and targets (2 events, 1), `events` per class, in random order."""
    inputs = np.concatenate(
        [add_noise(rng, draw_counts(rng, kind, events)) for kind in (BACKGROUND, SIGNAL)]
    )
    targets = np.repeat(np.array([BACKGROUND, SIGNAL], np.float32), events)[:, np.newaxis]
    order = rng.permutation(len(inputs))
    return inputs[order], targets[order]


def write(path: Path, events: int, seed: int) -> None:
    """Write /train and /test, each with `events` per class, from its own random stream.

    The old file format stores no times and nothing is compressed, so the bits repeat.
    """
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.attrs.update({**ATTRIBUTES, "seed": seed})
        for part, sequence in zip(PARTS, np.random.SeedSequence(seed).spawn(2), strict=True):
            inputs, targets = make_events(np.random.default_rng(sequence), events)
            file.create_dataset(f"{part}/inputs", data=inputs, track_times=False)
            file.create_dataset(f"{part}/targets", data=targets, track_times=False)


def main() -> None:
    """Draw and write the events."""
    parser = argparse.ArgumentParser(description="Draw events of TMVA's recurrent tutorial.")
    parser.add_argument("output", type=Path, nargs="?", default=Path("data/tmva-time.h5"))
    parser.add_argument("--events", type=int, default=500, help="a class and part (500)")
    parser.add_argument("--seed", type=int, default=2020, help="of the random draws")
    args = parser.parse_args()
    if args.events < 1 or args.seed < 0:
        parser.error("--events must be at least 1 and --seed at least 0")
    try:
        write(args.output, args.events, args.seed)
    except OSError as error:
        parser.error(str(error))
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
