"""Results are written in the input's layout, whole or not at all, and can be read back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, write_vlen

from lstm_cli.data import DataOptions, GateWriter, ResultWriter, StateReader, Window, open_data
from lstm_cli.errors import DataError, LstmCliError, UsageError
from lstm_cli.hdf5.writer import OutputFile, writing_errors

STATES = [(0, 2, 3, 4), (2, 1, 5, None)]
F = 6


def step_values(batch):
    """(N, T, 6) that differ in every place, 0 in padding."""
    number = batch.first + np.arange(batch.count)[:, None, None]
    steps = np.arange(batch.x.shape[1])[None, :, None]
    values = 1 + 100 * number + 7 * steps + np.arange(F) / 8.0
    if batch.lengths is not None:
        values = np.where(steps < batch.lengths[:, None, None], values, 0)
    return values


def states_of(batch):
    number = batch.first + np.arange(batch.count)
    return {
        0: (
            number[:, None, None] + np.arange(6.0).reshape(2, 3) / 8,
            number[:, None, None] - np.arange(8.0).reshape(2, 4) / 8,
        ),
        2: (number[:, None, None] * 2 + np.arange(5.0).reshape(1, 5), None),
    }


def run(out, paths, *, per_step, options=None, attributes=None):
    """Write made-up outputs; gives those of all sequences as a list."""
    rows = []
    with (
        open_data(paths, options) as data,
        ResultWriter(
            out,
            data,
            features=F,
            per_step=per_step,
            dtype=np.float64,
            attributes=attributes or {},
            states=STATES,
        ) as writer,
    ):
        for batch in data.batches(4, np.float32):
            values = step_values(batch)
            lengths = data.lengths(batch.first, batch.count)
            rows += [row[:T] if per_step else row[0] + 1 for row, T in zip(values, lengths)]  # noqa: B905
            writer.write(batch, values if per_step else values[:, 0] + 1, states_of(batch))
    return rows


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_a_sequence(make, out, layout):
    rows = run(out, [make(layout)], per_step=False)
    with h5py.File(out) as file:
        if layout == "groups":
            for n, row in enumerate(rows):
                np.testing.assert_array_equal(file[f"seq{n}/outputs"], row)
        else:
            np.testing.assert_array_equal(file["outputs"], rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_a_step(make, truth, out, layout):
    rows = run(out, [make(layout)], per_step=True)
    with h5py.File(out) as file:
        if layout in ("dense", "mask"):
            assert file["outputs"].shape == (11, 9, F), "T of the inputs"
            for n, row in enumerate(rows):
                np.testing.assert_array_equal(file["outputs"][n, : len(row)], row)
                assert not file["outputs"][n, len(row) :].any()
        elif layout == "vlen":
            assert file["outputs"].attrs["features"] == F
            for n, row in enumerate(rows):
                np.testing.assert_array_equal(file["outputs"][n], row.ravel())
        elif layout == "groups":
            for n, row in enumerate(rows):
                np.testing.assert_array_equal(file[f"seq{n}/outputs"], row)
        else:
            np.testing.assert_array_equal(file["outputs"], np.concatenate(rows))
        np.testing.assert_array_equal(file["lengths"], truth.lengths)


@pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen"])
def test_results_are_data(make, out, layout):
    rows = run(out, [make(layout)], per_step=True)
    with open_data([out], DataOptions(inputs="outputs")) as data:
        assert data.layout == layout
        result = [
            row[:T]
            for batch in data.batches(3, np.float64)
            for row, T in zip(batch.x, data.lengths(batch.first, batch.count), strict=True)
        ]
    for one, other in zip(result, rows, strict=True):
        np.testing.assert_array_equal(one, other)


def test_windows_are_dense(write, out):
    path = write(inputs=np.arange(20.0))
    rows = run(out, [path], per_step=True, options=DataOptions(window=Window(5, 2)))
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["outputs"], np.stack(rows))
        assert "lengths" not in file
        np.testing.assert_array_equal(file["source/sequence"], np.zeros(9))
        np.testing.assert_array_equal(file["source/step"], [0, 2, 4, 6, 8, 10, 12, 14, 15])
        assert set(file["source/file"].asstr()[:]) == {path}


def test_whole_series_keeps_its_shape(write, out):
    rows = run(out, [write(inputs=np.arange(20.0))], per_step=True)
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["outputs"], rows[0])


def test_several_files(make, write, truth, out):
    other = write("b.h5", inputs=truth.flat[:3], lengths=[2, 1])
    rows = run(out, [make("concatenated"), other], per_step=True)
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["outputs"], np.concatenate(rows))
        assert len(file["lengths"]) == 13


def test_names_labels_and_attributes(write, out):
    path = write(inputs=np.ones((2, 3, 1)), names=["a", "é"], attrs={"classes": ["x", "y"]})
    config = "key: " + "ü" * 50_000
    run(out, [path], per_step=False, attributes={"version": "1", "n": 3, "config": config})
    with h5py.File(out) as file:
        assert list(file["names"].asstr()) == ["a", "é"]
        assert list(file["classes"].asstr()) == ["x", "y"]
        assert file.attrs["version"] == "1"
        assert file.attrs["n"] == 3
        assert file["config"].asstr()[()] == config


class TestStates:
    def test_round_trip(self, make, out):
        run(out, [make("concatenated")], per_step=True)
        with h5py.File(out) as file:
            assert file["state/0/h"].shape == (11, 2, 3)
            assert "c" not in file["state/2"]
        with StateReader(out, STATES, 11) as reader:
            states = reader.read(4, 3)
        h, c = states[0]
        np.testing.assert_array_equal(
            h, np.arange(4, 7)[:, None, None] + np.arange(6).reshape(2, 3) / 8
        )
        np.testing.assert_array_equal(
            c, np.arange(4, 7)[:, None, None] - np.arange(8).reshape(2, 4) / 8
        )
        assert states[2][1] is None
        np.testing.assert_array_equal(states[2][0][:, 0, 0], [8, 10, 12])

    @pytest.mark.parametrize(
        ("states", "count", "says"),
        [
            ([(0, 2, 3, 4)], 12, r"\(12, 2, 3\)"),
            ([(0, 1, 3, 4)], 11, r"\(11, 1, 3\)"),
            ([(0, 2, 3, 5)], 11, r"\(11, 2, 5\)"),
            ([(2, 1, 5, 5)], 11, "does not exist"),
            ([(1, 1, 5, 5)], 11, "does not exist"),
        ],
    )
    def test_misfit(self, make, out, states, count, says):
        run(out, [make("concatenated")], per_step=True)
        with pytest.raises(DataError, match=says):
            StateReader(out, states, count)


class TestGates:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_values(self, make, truth, tmp_path, layout):
        path = str(tmp_path / "gates.h5")
        rows = []
        with (
            open_data([make(layout)]) as data,
            GateWriter(path, data, dtype=np.float32, attributes={"version": "1"}) as writer,
        ):
            for batch in data.batches(4, np.float32):
                values = step_values(batch)
                kept = {3: {"forward": {"i": values, "h": -values}, "reverse": {"i": 2 * values}}}
                writer.write(batch, kept)
                lengths = data.lengths(batch.first, batch.count)
                rows += [row[:T] for row, T in zip(values, lengths, strict=True)]
        with h5py.File(path) as file:
            forward = file["layers/3/forward/i"]
            np.testing.assert_array_equal(file["lengths"], truth.lengths)
            np.testing.assert_array_equal(file["layers/3/reverse/i"], 2 * forward[...])
            np.testing.assert_array_equal(file["layers/3/forward/h"], -forward[...])
            if layout in ("dense", "mask"):
                assert forward.shape == (11, 9, F)
                for n, row in enumerate(rows):
                    np.testing.assert_array_equal(forward[n, : len(row)], row)
            else:
                np.testing.assert_array_equal(forward, np.concatenate(rows))


class TestWholeOrNothing:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DataError])
    def test_an_error_leaves_the_older_file(self, make, out, tmp_path, error):
        with open(out, "wb") as file:
            file.write(b"older")
        kinds = {"features": F, "per_step": True, "dtype": np.float32, "attributes": {}}
        kinds |= {"force": True}
        path = make("dense")
        with open_data([path]) as data, pytest.raises(error):  # noqa: PT012, SIM117
            with ResultWriter(out, data, **kinds) as writer:
                batch = next(data.batches(3, np.float32))
                writer.write(batch, step_values(batch))
                raise error("stop")
        with open(out, "rb") as file:
            assert file.read() == b"older"
        assert sorted(os.listdir(tmp_path)) == ["dense.h5", "out.h5"]

    def test_it_appears_at_the_end(self, make, out):
        kinds = {"features": F, "per_step": True, "dtype": np.float32, "attributes": {}}
        with open_data([make("dense")]) as data:
            with ResultWriter(out, data, **kinds):
                assert not os.path.exists(out)
            assert os.path.exists(out)

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
    @pytest.mark.parametrize("limit", [300, 20_000])
    def test_full_disk(self, write, tmp_path, limit):
        path = write(inputs=np.ones((500, 20, 3)))
        code = f"""
import resource, signal, sys
import numpy as np
from lstm_cli.data import ResultWriter, open_data
from lstm_cli.errors import LstmCliError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
kinds = dict(features=9, per_step=True, dtype="f8", attributes={{}})
try:
    out = {str(tmp_path / "out.h5")!r}
    with open_data([{path!r}]) as data, ResultWriter(out, data, **kinds) as w:
        for b in data.batches(50, "f4"):
            w.write(b, np.ones((b.count, 20, 9)))
except LstmCliError as error:
    print(error)
    sys.exit(error.exit_code)
"""
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert process.returncode == 1, process.stderr
        assert "out.h5 cannot be written" in process.stdout
        assert "found file too large: the limit on the size of files" in process.stdout
        assert "hint: ulimit -f unlimited" in process.stdout
        assert os.listdir(tmp_path) == ["x.h5"]

    @pytest.mark.parametrize(
        ("error", "result"),
        [
            (OSError(errno.ENOSPC, "Can't write data (buf = 0x55)"), os.strerror(errno.ENOSPC)),
            (
                RuntimeError(
                    "Can't decrement id ref count (time = Mon, errno = 28, "
                    "error message = 'No space left on device', buf = 0x55)"
                ),
                os.strerror(28),
            ),
            (
                RuntimeError(
                    "Disable slist on flush dest failure failed "
                    "(file write failed: time = Mon, buf = 0x55)"
                ),
                "the system refuses the data",
            ),
            (ValueError("Unable to create dataset (name already exists)"), None),
        ],
    )
    def test_reasons_are_the_systems_words(self, error, result):
        with pytest.raises(LstmCliError) as told, writing_errors("out.h5", "--gates"):
            raise error
        (problem,) = told.value.problems
        assert problem.found == (result.lower() if result else "Unable to create dataset")
        assert problem.hint == "--gates PATH writes elsewhere"

    @pytest.mark.parametrize("writer", [ResultWriter, GateWriter])
    def test_an_interrupt_leaves_nothing(self, make, tmp_path, out, writer, monkeypatch):
        kinds = {"dtype": np.float32, "attributes": {}}
        if writer is ResultWriter:
            kinds |= {"features": F, "per_step": True}

        def interrupted(*_):
            raise KeyboardInterrupt

        with open_data([make("dense")]) as data:
            with pytest.raises(KeyboardInterrupt), writer(out, data, **kinds):
                raise KeyboardInterrupt
            for name in ("describe", "put"):  # while it is prepared
                monkeypatch.setattr(OutputFile, name, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    writer(out, data, **kinds).__enter__()
                monkeypatch.undo()
            monkeypatch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt), writer(out, data, **kinds):
                pass
        assert os.listdir(tmp_path) == ["dense.h5"]

    def test_hints_of_the_gates_file_name_its_option(self, make):
        path = make("dense")
        kinds = {"dtype": np.float32, "attributes": {}}
        with open_data([path]) as data, pytest.raises(UsageError) as error:
            GateWriter(path, data, **kinds)
        assert error.value.hints == ("--gates OTHER.h5",)

    def test_a_name_that_cannot_be_given(self, make, out, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        path = make("dense")
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(LstmCliError, match="out.h5 cannot be written") as error:
            run(out, [path], per_step=True)
        assert error.value.exit_code == 1
        assert os.listdir(tmp_path) == ["dense.h5"]

    def test_no_folder(self, make, tmp_path):
        with pytest.raises(LstmCliError, match="folder does not exist") as error:
            run(str(tmp_path / "no" / "out.h5"), [make("dense")], per_step=True)
        assert error.value.exit_code == 1
        assert error.value.hints[0].startswith("mkdir -p")

    def test_a_folder(self, make, tmp_path):
        with pytest.raises(LstmCliError, match="no regular file"):
            run(str(tmp_path), [make("dense")], per_step=True)

    def test_a_device(self, make):
        with pytest.raises(LstmCliError, match="no regular file"):
            run(os.devnull, [make("dense")], per_step=True)

    def test_its_own_input(self, make):
        path = make("dense")
        with pytest.raises(UsageError, match="replace their own input"):
            run(path, [path], per_step=True)

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_a_link_is_followed(self, make, out, tmp_path):
        os.symlink("out.h5", tmp_path / "link.h5")
        run(str(tmp_path / "link.h5"), [make("dense")], per_step=True)
        assert os.path.islink(tmp_path / "link.h5")
        assert h5py.is_hdf5(out)


def test_groups_whose_names_collide(make, out):
    path = make("groups")
    with pytest.raises(LstmCliError, match="two sequences are called seq0"):
        run(out, [path, path], per_step=True)


def test_groups_of_a_reserved_name(write, out):
    path = write(a__inputs=np.ones((2, 1)), state__inputs=np.ones((2, 1)))
    with pytest.raises(LstmCliError, match="called state"):
        run(out, [path], per_step=True)


def test_vlen_of_one_a_sequence(write, truth, out):
    path = write(attrs={"features": 5})
    write_vlen(path, "inputs", truth.sequences)
    rows = run(out, [path], per_step=False)
    with h5py.File(out) as file:
        assert file["outputs"].dtype == np.float64
        np.testing.assert_array_equal(file["outputs"], rows)
