"""Make data/japanese-vowels.h5 from the .ts files that the aeon wheel carries.

    python -m pip download aeon==1.6 --no-deps
    python scripts/make_japanese_vowels.py aeon-1.6.0-py3-none-any.whl data/japanese-vowels.h5

A line of a .ts file is one utterance: twelve coefficients separated by colons, each with the
values of all frames, then the label. Lengths are the recordings' own; the wheel's ``_eq`` files,
stretched to 25 frames, are not used. The HDF5 file has the same bits every time.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

FOLDER = "aeon/datasets/data/JapaneseVowels"
FEATURES = 12
DOCUMENTED = {"train": (270, 4274, 7, 26), "test": (370, 5687, 7, 29)}
"""Utterances, frames, shortest and longest utterance of UCI's ae.train and ae.test."""
ATTRIBUTES = {
    "title": "Japanese Vowels",
    "description": "Nine speakers (the classes) say /ae/; 12 LPC cepstrum coefficients a frame.",
    "source": "UCI, https://doi.org/10.24432/C5NS47, as carried by aeon 1.6; stored as float32",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "citation": "M. Kudo, J. Toyama, M. Shimbo: Multidimensional curve classification using "
    "passing-through regions. Pattern Recognition Letters 20 (1999) 1103-1111.",
}


@dataclass(frozen=True)
class Utterances:
    """Concatenated frames (sum T, 12), lengths (N,), targets (N,), and the classes' labels."""

    inputs: NDArray[np.float32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    classes: list[str]


def parse_utterance(line: str) -> tuple[NDArray[np.float64], str]:
    """Frames (T, 12) and label; ValueError if coefficients are missing or differ in length."""
    *series, label = line.strip().split(":")
    columns = [[float(value) for value in values.split(",")] for values in series]
    lengths = sorted({len(column) for column in columns})
    if len(columns) != FEATURES or len(lengths) != 1:
        raise ValueError(f"expected 12 series of one length, found {len(columns)} of {lengths}")
    frames = np.array(columns, np.float64).T
    if not np.isfinite(frames).all():
        raise ValueError("the frames are padded or have gaps; their true length is not known")
    return frames, label


def parse_ts(text: str) -> Utterances:
    """Read a .ts file: @ lines are the header, # lines are comments."""
    classes: list[str] = []
    frames, labels = [], []
    for line in text.splitlines():
        if line.startswith("@classLabel"):
            classes = line.split()[2:]  # after "@classLabel true"
        elif line.strip() and line[0] not in "#@":
            utterance, label = parse_utterance(line)
            frames.append(utterance)
            labels.append(label)
    return Utterances(
        inputs=np.concatenate(frames).astype(np.float32),
        lengths=np.array([len(utterance) for utterance in frames], np.int64),
        targets=np.array([classes.index(label) for label in labels], np.int64),
        classes=classes,
    )


def read_part(source: Path, part: str) -> Utterances:
    """Read `train` or `test` and refuse what does not agree with UCI's description."""
    root = source if source.is_dir() else zipfile.Path(source)
    path = root / FOLDER / f"JapaneseVowels_{part.upper()}.ts"
    if not path.is_file():
        raise ValueError(f"{source} holds no {FOLDER}/{path.name}")
    data = parse_ts(path.read_text(encoding="utf-8"))
    lengths = data.lengths.tolist()
    found = (len(lengths), sum(lengths), min(lengths), max(lengths))
    if found != DOCUMENTED[part]:
        raise ValueError(f"{part} has {found}, UCI's has {DOCUMENTED[part]}")
    return data


def write(path: Path, parts: dict[str, Utterances]) -> None:
    """Write a group per part. The old file format stores no times, so the bits repeat."""
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.attrs.update(ATTRIBUTES)
        for part, data in parts.items():
            group = file.create_group(part)
            group.attrs["classes"] = data.classes
            for name in ("inputs", "lengths", "targets"):
                group.create_dataset(name, data=getattr(data, name), track_times=False)


def main() -> None:
    """Read the wheel, compare it with UCI's figures, and write the file."""
    parser = argparse.ArgumentParser(description="Make japanese-vowels.h5 from the aeon wheel.")
    parser.add_argument("source", type=Path, help="the wheel, or the folder it was unpacked in")
    parser.add_argument("output", type=Path, nargs="?", default=Path("data/japanese-vowels.h5"))
    args = parser.parse_args()
    try:
        write(args.output, {part: read_part(args.source, part) for part in DOCUMENTED})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        parser.error(str(error))
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
