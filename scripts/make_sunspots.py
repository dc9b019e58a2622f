"""Make data/sunspots.h5 from the yearly sunspot numbers that the statsmodels wheel carries.

    python -m pip download statsmodels==0.15.0 --no-deps
    python scripts/make_sunspots.py statsmodels-0.15.0-*.whl data/sunspots.h5

One number per year, 1700 to 2008, as observed: nothing is scaled. The HDF5 file has the same bits
every time, from the wheel of any platform.
"""

from __future__ import annotations

import argparse
import csv
import zipfile
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

CSV = "statsmodels/datasets/sunspots/sunspots.csv"
FIRST_YEAR, LAST_YEAR = 1700, 2008
ATTRIBUTES = {
    "title": "Yearly sunspot numbers",
    "description": "Yearly mean of the Wolf sunspot number (the series before its revision in "
    "2015), 1700 to 2008, as observed: nothing is scaled.",
    "source": "NOAA National Geophysical Data Center (SIDC, Royal Observatory of Belgium), as "
    "carried by statsmodels 0.15.0",
    "licence": "public domain, as statsmodels states",
    "citation": "SIDC, World Data Center for the Sunspot Index, Royal Observatory of Belgium: "
    "yearly sunspot number, 1700-2008. S. Seabold, J. Perktold: statsmodels: econometric and "
    "statistical modeling with Python. Proc. 9th Python in Science Conf. (2010).",
}


def parse(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Years (T,) and sunspot numbers (T, 1); ValueError if a year is missing or out of order."""
    rows = list(csv.DictReader(text.splitlines()))
    years = np.array([int(row["YEAR"]) for row in rows], np.int64)
    if not np.array_equal(years, np.arange(FIRST_YEAR, LAST_YEAR + 1)):
        raise ValueError(f"expected every year from {FIRST_YEAR} to {LAST_YEAR} once, in order")
    numbers = np.array([[float(row["SUNACTIVITY"])] for row in rows], np.float32)
    return years, numbers


def read_text(source: Path) -> str:
    """Text of the CSV file, or of the CSV file in a wheel."""
    if source.suffix == ".csv":
        return source.read_text("utf-8")
    with zipfile.ZipFile(source) as wheel:
        return wheel.read(CSV).decode("utf-8")


def write(path: Path, years: NDArray[np.int64], numbers: NDArray[np.float32]) -> None:
    """Write the series. The old file format stores no times, so the bits repeat."""
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.attrs.update(ATTRIBUTES)
        file.create_dataset("inputs", data=numbers, track_times=False)
        file.create_dataset("year", data=years, track_times=False)


def main() -> None:
    """Read the wheel or the CSV file, write the series."""
    parser = argparse.ArgumentParser(description="Make sunspots.h5 from the statsmodels wheel.")
    parser.add_argument("source", type=Path, help="the wheel, or its sunspots.csv")
    parser.add_argument("output", type=Path, nargs="?", default=Path("data/sunspots.h5"))
    args = parser.parse_args()
    try:
        write(args.output, *parse(read_text(args.source)))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(str(error))
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
