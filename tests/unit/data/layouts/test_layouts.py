"""Every layout gives the same sequences, however they are batched."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, window_starts, write_vlen

from lstm_cli.data import DataOptions, Window, open_data
from lstm_cli.errors import DataError, UsageError


def read_all(dataset, size=4, dtype="float64", **options):
    """The sequences a dataset gives, each cut to its length, and the targets of each."""
    sequences, targets = [], []
    for batch in dataset.batches(size, dtype, **options):
        assert batch.x.flags.c_contiguous
        assert batch.x.dtype == dtype
        lengths = np.full(batch.count, batch.x.shape[1]) if batch.lengths is None else batch.lengths
        assert batch.first == len(sequences)
        for row, length in zip(batch.x, lengths, strict=True):
            assert not row[length:].any(), "padding is 0"
            sequences.append(row[:length])
        if batch.targets is not None:
            targets.extend(batch.targets)
    return sequences, targets


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_sequences(make, truth, layout, size):
    with open_data([make(layout)]) as data:
        sequences, _ = read_all(data, size)
        assert data.count == 11
        assert data.features == 5
        assert (data.min_steps, data.max_steps, data.total_steps) == (0, 8, 46)
        assert data.varying
    assert len(sequences) == 11
    for got, true in zip(sequences, truth.sequences, strict=True):
        np.testing.assert_array_equal(got, true)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_byte_limit_splits_batches_unless_rows_are_kept(make, truth, layout):
    limit = 3 * 7 * 5 * 4
    with open_data([make(layout)]) as data:
        split = list(data.batches(8, "float32", max_bytes=limit))
        kept = list(data.batches(8, "float32", max_bytes=limit, keep_rows=True))
        tiny, _ = read_all(data, 8, max_bytes=1)
    assert all(batch.x.nbytes <= limit for batch in split)
    assert [batch.count for batch in kept] == [8, 3]
    assert sum(batch.count for batch in split) == 11
    for got, true in zip(tiny, truth.sequences, strict=True):
        np.testing.assert_array_equal(got, true)


def test_description(make):
    with open_data([make("concatenated")]) as data:
        assert data.description == "11 sequences, 0–8 steps, 5 features (concatenated)"
        assert data.input_name.endswith("concatenated.h5:/inputs")


def test_equal_dense_sequences_have_no_lengths(write):
    x = np.random.default_rng(0).normal(size=(7, 4, 3)).astype(np.float32)
    with open_data([write(x=x)]) as data:
        batches = list(data.batches(3, np.float32))
        assert not data.varying
        assert data.description == "7 sequences, 4 steps, 3 features (dense)"
    assert all(batch.lengths is None for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), x)
    assert sum(batch.nbytes for batch in batches) == x.nbytes


@pytest.mark.parametrize("stored", ["int16", ">f8", "float16", "uint8", "bool"])
def test_stored_types_are_cast(write, stored):
    x = np.random.default_rng(0).integers(0, 2, (5, 3, 2)).astype(stored)
    with open_data([write(inputs=x)]) as data:
        sequences, _ = read_all(data, dtype="float32")
    np.testing.assert_array_equal(np.stack(sequences), x.astype(np.float32))


@pytest.mark.parametrize("stored", ["complex64", "S3", [("a", "f4")]])
def test_other_types_are_refused(write, stored):
    with pytest.raises(DataError, match="does not hold numbers"):
        open_data([write(inputs=np.zeros((5, 3, 2), stored))])


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_chunks(write, truth, tmp_path, compression):
    path = write(lengths=truth.lengths)
    with h5py.File(path, "a") as file:
        file.create_dataset("inputs", data=truth.flat, chunks=(7, 2), compression=compression)
    with open_data([path]) as data:
        sequences, _ = read_all(data)
    np.testing.assert_array_equal(np.concatenate(sequences), truth.flat)


class TestNames:
    def test_usual_names_are_tried_in_order(self, write, truth):
        path = write(X=truth.flat, x=truth.flat * 2, seqLengths=truth.lengths)
        with open_data([path]) as data:
            assert data.input_name.endswith(":/x")

    def test_configured_name_wins(self, write, truth):
        path = write(inputs=truth.flat, a__frames=2 * truth.flat, len=truth.lengths)
        options = DataOptions(inputs="a/frames", lengths="len")
        with open_data([path], options) as data:
            sequences, _ = read_all(data)
        np.testing.assert_array_equal(np.concatenate(sequences), 2 * truth.flat)

    def test_the_only_fitting_dataset_is_taken(self, write, truth):
        path = write(frames=truth.flat, lengths=truth.lengths, targets=truth.classes)
        with open_data([path]) as data:
            assert data.layout == "concatenated"

    @pytest.mark.parametrize("role", ["inputs", "targets", "lengths", "mask", "offsets"])
    def test_missing_configured_name(self, write, truth, role):
        path = write(inputs=truth.flat, lengths=truth.lengths)
        options = DataOptions(**{role: "input"}, where="mine.yaml line 3")
        with pytest.raises(DataError, match="no dataset input") as error:
            open_data([path], options)
        assert "mine.yaml line 3" in str(error.value)
        assert f"--set data.{role}=inputs" in str(error.value)

    def test_nothing_fits(self, write):
        with pytest.raises(DataError, match="holds no inputs"):
            open_data([write(a=np.zeros((2, 3)), b=np.zeros((2, 4)))])


class TestForcedLayout:
    def test_unknown_layout(self, make):
        with pytest.raises(DataError, match="no layout") as error:
            open_data([make("dense")], DataOptions(layout="densse"))
        assert "data.layout: dense" in error.value.hints

    @pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen"])
    def test_misfit(self, write, layout):
        path = write(inputs=np.zeros((6, 2)))
        with pytest.raises(DataError):
            open_data([path], DataOptions(layout=layout))

    def test_series_in_spite_of_lengths(self, make):
        with open_data([make("concatenated")], DataOptions(layout="series")) as data:
            assert (data.count, data.max_steps) == (1, 46)


class TestLengths:
    def test_negative(self, write, truth):
        lengths = truth.lengths
        lengths[4] = -2
        with pytest.raises(DataError, match="sequence 4 has length -2"):
            open_data([write(inputs=truth.flat, lengths=lengths)])

    def test_above_steps(self, write):
        with pytest.raises(DataError, match="sequence 1 has length 5, but there are 4"):
            open_data([write(inputs=np.zeros((2, 4, 3)), lengths=[4, 5])])

    @pytest.mark.parametrize(("lengths", "sequence"), [([3, 4, 5], 2), ([3, 4], 1), ([12, 4], 0)])
    def test_sum(self, write, lengths, sequence):
        total = sum(lengths)
        with pytest.raises(DataError, match=f"{total} steps.*10 rows: sequence {sequence}"):
            open_data([write(inputs=np.zeros((10, 2)), lengths=lengths)])

    def test_sum_that_wraps_round(self, write):
        lengths = np.array([2**62, 2**62, 2**62, 2**62, 10])
        with pytest.raises(DataError, match="add up to"):
            open_data([write(inputs=np.zeros((10, 2)), lengths=lengths)])

    @pytest.mark.parametrize("value", [1.5, np.nan, np.inf, 1e300])
    def test_no_whole_number(self, write, value):
        with pytest.raises(DataError, match="whole numbers"):
            open_data([write(inputs=np.zeros((10, 2)), lengths=[1.0, value])])

    def test_count(self, write):
        with pytest.raises(DataError, match="3 lengths for 2 sequences"):
            open_data([write(inputs=np.zeros((2, 4, 3)), lengths=[4, 3, 2])])

    @pytest.mark.parametrize("offsets", [[0, 4, 9], [1, 4, 10], [0, 7, 5, 10]])
    def test_offsets(self, write, offsets):
        with pytest.raises(DataError):
            open_data([write(inputs=np.zeros((10, 2)), offsets=offsets)])

    def test_offsets_and_lengths_that_disagree(self, write):
        path = write(inputs=np.zeros((10, 2)), lengths=[4, 6], offsets=[0, 5, 10])
        with pytest.raises(DataError, match="disagree on sequence 0"):
            open_data([path])

    def test_mask_with_hole(self, write):
        mask = np.ones((9, 4), bool)
        mask[6] = [1, 0, 1, 0]
        with pytest.raises(DataError, match="mask of sequence 6 has a hole at step 1"):
            open_data([write(inputs=np.zeros((9, 4, 2)), mask=mask)])

    def test_mask_is_read_in_blocks(self, make, truth, monkeypatch):
        monkeypatch.setattr("lstm_cli.data.lengths.MASK_BLOCK_BYTES", 30)
        with open_data([make("mask")]) as data:
            np.testing.assert_array_equal(data.lengths(), truth.lengths)


class TestVlen:
    def test_features_from_lengths(self, write, truth, tmp_path):
        path = write(lengths=truth.lengths)
        write_vlen(path, "inputs", truth.sequences)
        with open_data([path]) as data:
            assert data.features == 5

    def test_features_from_the_config(self, write, truth):
        path = write()
        write_vlen(path, "inputs", truth.sequences)
        with pytest.raises(DataError, match="nothing says how many features"):
            open_data([path])
        with open_data([path], DataOptions(features=5)) as data:
            assert data.features == 5

    def test_no_multiple(self, write, truth):
        path = write()
        write_vlen(path, "inputs", truth.sequences)
        with pytest.raises(DataError, match="row 0 .* 15 values, which is not a multiple of 4"):
            open_data([path], DataOptions(features=4))

    def test_a_row_that_is_not_as_long_as_told(self, write, truth):
        lengths = truth.lengths
        lengths[1] -= 1
        path = write(lengths=lengths, attrs={"features": 5})
        write_vlen(path, "inputs", truth.sequences)
        with pytest.raises(DataError, match="sequence 1 has length 6, but its row holds 7"):
            open_data([path])


class TestGroups:
    def test_natural_order(self, write):
        data = {f"s{n}__inputs": np.full((2, 1), n) for n in (10, 2, 1, 33, 9)}
        with open_data([write(**data)]) as dataset:
            assert dataset.names == ["s1", "s2", "s9", "s10", "s33"]
            sequences, _ = read_all(dataset)
        assert [s[0, 0] for s in sequences] == [1, 2, 9, 10, 33]

    def test_datasets_as_children(self, write):
        data = {f"seqs__{n}": np.full((n, 3), n, float) for n in (12, 3, 4)}
        with open_data([write(**data) + ":/seqs"]) as dataset:
            assert dataset.layout == "groups"
            assert dataset.names == ["3", "4", "12"]
            sequences, _ = read_all(dataset)
        assert [s.shape for s in sequences] == [(3, 3), (4, 3), (12, 3)]
        assert [s[0, 0] for s in sequences] == [3, 4, 12]

    def test_mixed_features(self, write):
        path = write(a__inputs=np.zeros((2, 3)), b__inputs=np.zeros((2, 4)))
        with pytest.raises(DataError, match="differ in features"):
            open_data([path])

    def test_a_child_without_inputs(self, write):
        path = write(a__inputs=np.zeros((2, 3)), b__other=np.zeros((2, 4)))
        with pytest.raises(DataError, match=":/b holds no inputs"):
            open_data([path])

    def test_train_and_test_are_not_sequences(self, write, truth):
        path = write(
            train__inputs=truth.flat,
            train__lengths=truth.lengths,
            test__inputs=truth.flat,
            test__lengths=truth.lengths,
        )
        with pytest.raises(DataError) as error:
            open_data([path])
        assert f"{path}:/train" in str(error.value)
        assert f"{path}:/test" in str(error.value)
        with open_data([f"{path}:/test"]) as data:
            assert data.count == 11

    def test_train_and_test_series(self, write):
        path = write(train__inputs=np.zeros((9, 2)), test__inputs=np.zeros((5, 2)))
        with pytest.raises(DataError, match="its groups do"):
            open_data([path])
        with open_data([path], DataOptions(layout="groups")) as data:
            assert data.names == ["test", "train"]


class TestSeries:
    def test_whole(self, write):
        x = np.random.default_rng(1).normal(size=(13, 3))
        with open_data([write(inputs=x, targets=np.arange(13.0))]) as data:
            assert data.description == "1 sequence, 13 steps, 3 features (series)"
            (batch,) = data.batches(4, np.float64)
            assert data.targets.per_step is True
        np.testing.assert_array_equal(batch.x[0], x)
        np.testing.assert_array_equal(batch.targets, [np.arange(13.0)])

    @pytest.mark.parametrize("length", [1, 4, 9])
    @pytest.mark.parametrize("stride", [1, 3, 7])
    @pytest.mark.parametrize("horizon", [0, 1, 5])
    def test_windows_match_the_slow_loop(self, write, length, stride, horizon):
        T = 31
        x = np.random.default_rng(1).normal(size=(T, 3))
        y = np.random.default_rng(2).normal(size=T)
        starts = window_starts(T, length, stride)
        path = write(inputs=x, targets=y)
        options = DataOptions(window=Window(length, stride, horizon))
        with open_data([path], options) as data:
            assert data.count == len(starts)
            sequences, targets = read_all(data, 3)
            has_target = set(data.numbers.tolist())
        assert len(sequences) == len(starts)
        for n, (s, got, target) in enumerate(zip(starts, sequences, targets, strict=True)):
            np.testing.assert_array_equal(got, x[s : s + length])
            there = s + length - 1 + horizon < T
            assert (n in has_target) is there
            assert target == (y[s + length - 1 + horizon] if there else 0)

    def test_targets_are_the_inputs_by_default(self, write):
        x = np.random.default_rng(1).normal(size=(12, 2))
        with open_data([write(inputs=x)], DataOptions(window=Window(4, 2, 3))) as data:
            sequences, targets = read_all(data)
            assert data.targets.shape == (2,)
            assert data.description == "5 windows, 4 steps, 2 features (series)"
            np.testing.assert_array_equal(data.numbers, [0, 1, 2])
        np.testing.assert_array_equal(np.stack(targets[:3]), x[[6, 8, 10]])
        np.testing.assert_array_equal(sequences[2], x[4:8])

    def test_one_axis_is_one_feature(self, write):
        with open_data([write(inputs=np.arange(9.0))], DataOptions(window=Window(3))) as data:
            sequences, targets = read_all(data)
        np.testing.assert_array_equal(sequences[2], [[2], [3], [4]])
        np.testing.assert_array_equal(targets[2], [5])

    def test_only_the_rows_needed_are_read(self, write):
        path = write(inputs=np.zeros((1000, 2)))
        options = DataOptions(window=Window(5, 100, 0))
        with open_data([path], options) as data:
            assert sum(b.nbytes for b in data.batches(4, np.float32, targets=False)) == 11 * 5 * 16
        with open_data([path], DataOptions(window=Window(100))) as data:
            batch = next(data.batches(50, np.float32, targets=False))
            assert batch.nbytes == 149 * 16

    def test_too_short(self, write):
        path = write(inputs=np.arange(9.0))
        with pytest.raises(DataError, match="no window fits: the longest sequence has 9") as error:
            open_data([path], DataOptions(window=Window(10)))
        assert error.value.hints == ("--set data.window.length=8",)
        with open_data([path], DataOptions(window=Window(8))) as data:
            assert data.numbers.tolist() == [0]


class TestSeveralFiles:
    def test_order_starts_and_no_mixing(self, make, write, truth):
        other = write("b.h5", inputs=truth.flat[:3] + 1, lengths=[2, 1])
        with open_data([make("concatenated"), other]) as data:
            assert data.starts == ((0, 11), (11, 2))
            assert data.count == 13
            batches = list(data.batches(8, np.float64))
            sequences, _ = read_all(data)
        assert [(b.first, b.count, b.file) for b in batches] == [(0, 8, 0), (8, 3, 0), (11, 2, 1)]
        np.testing.assert_array_equal(np.concatenate(sequences[11:]), truth.flat[:3] + 1)

    def test_dense_of_different_steps(self, write):
        a, b = np.ones((2, 3, 2)), np.ones((1, 5, 2))
        with open_data([write("a.h5", x=a), write("b.h5", x=b)]) as data:
            assert (data.min_steps, data.max_steps, data.varying) == (3, 5, True)
            np.testing.assert_array_equal(data.lengths(), [3, 3, 5])

    def test_features_differ(self, write):
        a, b = write("a.h5", x=np.ones((2, 3, 2))), write("b.h5", x=np.ones((2, 3, 4)))
        with pytest.raises(DataError, match="features: 2 in .*a.h5:/x, 4 in .*b.h5:/x"):
            open_data([a, b])

    def test_layouts_differ(self, make):
        with pytest.raises(DataError, match="differ in layout"):
            open_data([make("dense"), make("concatenated")])

    def test_targets_differ(self, write):
        x = np.ones((2, 3, 2))
        a, b = write("a.h5", x=x, y=np.ones(2)), write("b.h5", x=x)
        with pytest.raises(DataError, match="differ in targets"):
            open_data([a, b])


def test_no_sequences(write):
    with pytest.raises(DataError, match="holds no sequences"):
        open_data([write(inputs=np.zeros((0, 3, 2)))])


def test_no_features(write):
    with pytest.raises(DataError, match="holds no features"):
        open_data([write(inputs=np.zeros((4, 3, 0)))])


def test_no_steps(write):
    with open_data([write(inputs=np.zeros((4, 0, 2)))]) as data:
        (batch,) = data.batches(8, np.float32)
    assert batch.x.shape == (4, 1, 2)
    np.testing.assert_array_equal(batch.lengths, [0, 0, 0, 0])


def test_usage(make):
    with pytest.raises(UsageError):
        open_data([])
    with open_data([make("dense")]) as data, pytest.raises(UsageError):
        next(data.batches(0, np.float32))


def test_a_config_that_sets_nothing_is_no_place(write):
    """The config's line is named only if it says how to read the data."""
    paths = [write("a.h5", inputs=np.ones((2, 3, 4))), write("b.h5", inputs=np.ones((2, 3, 5)))]
    for options, names in [
        (DataOptions(where="mine.yaml line 3"), False),
        (DataOptions(where="mine.yaml line 3", layout="dense"), True),
    ]:
        with pytest.raises(DataError, match="differ in number of features") as error:
            open_data(paths, options)
        assert ("mine.yaml line 3" in error.value.problems[0].where) is names


def dirty(shape, dtype):
    """Room for inputs whose values are none to rely on."""
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_read_into_the_room_that_is_given(make, layout, dtype):
    arrays_made = []

    def room(shape, dtype):
        arrays_made.append(dirty(shape, dtype))
        return arrays_made[-1]

    with open_data([make(layout)]) as data:
        own = list(data.batches(4, dtype))
        given = list(data.batches(4, dtype, allocate=room))
    assert [batch.x is array for batch, array in zip(given, arrays_made, strict=True)] == [True] * 3
    for one, other in zip(own, given, strict=True):
        np.testing.assert_array_equal(one.x, other.x)


@pytest.mark.parametrize("stored", ["float32", "float64", ">f4", "int16"])
@pytest.mark.parametrize(("stride", "length"), [(5, 5), (2, 5), (7, 5), (3, 1)])
def test_windows_are_read_into_the_room_that_is_given(write, stored, stride, length):
    x = (100 * np.random.default_rng(2).normal(size=(41, 3))).astype(stored)
    options = DataOptions(window=Window(length, stride, 0))
    with open_data([write(inputs=x)], options) as data:
        batches = list(data.batches(3, "float32", allocate=dirty))
    starts = window_starts(41, length, stride)
    expected = np.stack([x[s : s + length] for s in starts]).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), expected)


@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4, 1), (1, 1, 1)])
def test_full_sequences_are_read_straight_into_the_room(write, shape, monkeypatch):
    N, T, D = shape
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    flat = write("flat.h5", inputs=x.reshape(N * T, D), lengths=np.full(N, T))
    with open_data([write(inputs=x)]) as dense, open_data([flat]) as concatenated:
        for data in (dense, concatenated):
            monkeypatch.setattr(type(data.files.layouts[0].dataset), "read", None)
            (batch,) = data.batches(N, "float32", allocate=dirty)
            np.testing.assert_array_equal(batch.x, x)
            monkeypatch.undo()


@pytest.mark.parametrize("layout", ["dense", "vlen", "concatenated"])
def test_lengths_of_several_columns_that_differ_are_refused(make, truth, layout):
    path = make(layout)
    with h5py.File(path, "a") as file:
        if "lengths" in file:
            del file["lengths"]
        file["lengths"] = np.stack([truth.lengths, truth.lengths], axis=1)
    with open_data([path]) as data:
        np.testing.assert_array_equal(data.lengths(), truth.lengths)
    with h5py.File(path, "a") as file:
        file["lengths"][4, 1] = 2
    with pytest.raises(DataError, match="2 columns, which differ in sequence 4"):
        open_data([path])
