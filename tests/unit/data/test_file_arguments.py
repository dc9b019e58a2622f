"""DATA arguments of several files: folders and patterns, their order, and where rows come from."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import Write

from lstm_cli.data import DataOptions, ResultWriter, Window, open_data
from lstm_cli.data.file_arguments import data_files
from lstm_cli.errors import DataError

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def days(tmp_path: Path) -> None:
    """A folder with two data files, and with files that are no data."""
    folder = tmp_path / "days"
    folder.mkdir()
    for name in ("d10.h5", "d2.nc", ".hidden.h5", "o.h5.shard-1-of-2", ".0123abcd.part.o.h5"):
        with h5py.File(folder / name, "w", userblock_size=512 * (name == "d2.nc")) as file:
            file["inputs"] = np.full((2, 3, 1), len(name))
    (folder / "notes.txt").write_text("\x89HDF is not the whole signature")
    (folder / "d3.h5").mkdir()


@pytest.mark.usefixtures("days")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["days"], ["days/d2.nc", "days/d10.h5"]),
        (["days/"], ["days/d2.nc", "days/d10.h5"]),
        (["days:/part"], ["days/d2.nc:/part", "days/d10.h5:/part"]),
        (["days/d*"], ["days/d2.nc", "days/d10.h5"]),
        (["**/d?0.h5:/"], ["days/d10.h5:/"]),
        (["days/d10.h5", "days/*.nc"], ["days/d10.h5", "days/d2.nc"]),
        (["missing.h5"], ["missing.h5"]),
    ],
)
def test_files_of_arguments(arguments: list[str], expected: list[str]) -> None:
    assert data_files(arguments) == expected


@pytest.mark.usefixtures("days")
def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "days/d2.nc").rename("[x].h5")
    assert data_files(["[x].h5"]) == ["[x].h5"]


@pytest.mark.usefixtures("days")
@pytest.mark.parametrize(
    ("argument", "what", "found"),
    [
        ("days/*.hdf5", "no file matches days/*.hdf5", "nothing, searched from "),
        ("days/d3.h5", "days/d3.h5 holds no HDF5 file", "an empty folder"),
        ("days/d[34].*", "no file matches days/d[34].*", "nothing"),
    ],
)
def test_nothing_found(argument: str, what: str, found: str) -> None:
    with pytest.raises(DataError) as error:
        open_data([argument])
    assert error.value.problems[0].what == what
    assert str(error.value.problems[0].found).startswith(found)


def results(arguments: list[str], options: DataOptions, out: str) -> dict[str, list[object]]:
    """The datasets ``source/*`` of the results on these arguments."""
    with open_data(arguments, options) as data:
        writer = ResultWriter(
            out, data, features=1, per_step=False, dtype="f4", attributes={}, states=()
        )
        with writer:
            for batch in data.batches(2, np.float32):
                writer.write(batch, np.zeros((batch.count, 1), np.float32))
    with h5py.File(out) as file:
        source = file["source"]
        text = {"file", "name"} & set(source)
        return {k: (source[k].asstr() if k in text else source[k])[:].tolist() for k in source}


def test_origins_of_sequences(write: Write) -> None:
    write("b.h5", inputs=np.zeros((2, 3, 1)))
    write("a.h5", g__inputs=np.zeros((3, 3, 1)), g__names=["x", "y", "z"])
    files = ["b.h5", "a.h5:/g"]
    expected = {"file": ["b.h5"] * 2 + ["a.h5:/g"] * 3, "sequence": [0, 1, 0, 1, 2]}
    assert results(files, DataOptions(), "o.h5") == expected
    one = results(files[1:], DataOptions(), "p.h5")
    assert one == {"file": ["a.h5:/g"] * 3, "sequence": [0, 1, 2], "name": ["x", "y", "z"]}


def test_origins_of_windows(write: Write) -> None:
    write("a.h5", u__inputs=np.zeros((4, 1)), v__inputs=np.zeros((2, 1)))
    write("b.h5", w__inputs=np.zeros((3, 1)))
    found = results(["a.h5", "b.h5"], DataOptions(window=Window(2)), "o.h5")
    assert found["name"] == ["u", "u", "u", "v", "w", "w"]
    assert found["sequence"] == [0, 0, 0, 1, 0, 0]
    assert found["step"] == [0, 1, 2, 0, 0, 1]
    assert found["file"] == ["a.h5"] * 4 + ["b.h5"] * 2
