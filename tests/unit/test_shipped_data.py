"""The shipped files hold what they are documented to hold, and their scripts make them again."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from repository import ROOT, load_script

DATA = ROOT / "data"
FILES = ("japanese-vowels.h5", "sunspots.h5", "tmva-time.h5")
LARGEST = {"japanese-vowels.h5": 1_000_000, "sunspots.h5": 100_000, "tmva-time.h5": 3_000_000}


VOWELS = load_script("make_japanese_vowels")
SUNSPOTS = load_script("make_sunspots")
TMVA = load_script("make_tmva_time_data")


def read(name: str, *paths: str) -> list[Any]:
    with h5py.File(DATA / name) as file:
        return [file[path][()] for path in paths]


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, counted pair by pair."""
    return float((scores[positive][:, np.newaxis] > scores[~positive]).mean())


class TestEveryFile:
    @pytest.mark.parametrize("name", FILES)
    def test_is_the_one_that_the_readme_describes(self, name: str) -> None:
        digest = hashlib.sha256((DATA / name).read_bytes()).hexdigest()
        row = re.search(
            rf"`{name}` \| \w+ \| `([0-9a-f]+)`", (DATA / "README.md").read_text("utf-8")
        )
        assert row is not None
        assert row[1] == digest

    @pytest.mark.parametrize("name", FILES)
    def test_is_small_and_says_where_it_is_from(self, name: str) -> None:
        assert (DATA / name).stat().st_size < LARGEST[name]
        with h5py.File(DATA / name) as file:
            for key in ("source", "licence", "citation"):
                assert len(file.attrs[key]) > 10

    @pytest.mark.parametrize("name", FILES)
    def test_is_contiguous_and_finite(self, name: str) -> None:
        def check(path: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                assert item.chunks is None, path
                assert item.external is None, path
                assert np.isfinite(item[()]).all(), path

        with h5py.File(DATA / name) as file:
            file.visititems(check)

    def test_there_is_no_other(self) -> None:
        assert {path.name for path in DATA.glob("*.h5")} == set(FILES)


class TestJapaneseVowels:
    """Against the description that UCI gives of its files ae.train, ae.test and size_ae.*."""

    @pytest.mark.parametrize(
        ("part", "frames", "longest", "speakers"),
        [
            ("train", 4274, 26, [30] * 9),
            ("test", 5687, 29, [31, 35, 88, 44, 29, 24, 40, 50, 29]),
        ],
    )
    def test_has_the_documented_utterances(
        self, part: str, frames: int, longest: int, speakers: list[int]
    ) -> None:
        inputs, lengths, targets = read(
            "japanese-vowels.h5", f"{part}/inputs", f"{part}/lengths", f"{part}/targets"
        )
        assert (inputs.shape, inputs.dtype) == ((frames, 12), np.float32)
        assert (lengths.shape, lengths.dtype) == ((sum(speakers),), np.int64)
        assert (targets.shape, targets.dtype) == ((sum(speakers),), np.int64)
        assert (lengths.min(), lengths.max(), lengths.sum()) == (7, longest, frames)
        # Speaker by speaker, in the original order.
        np.testing.assert_array_equal(targets, np.repeat(np.arange(9), speakers))

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_has_the_labels_of_the_classes(self, part: str) -> None:
        with h5py.File(DATA / "japanese-vowels.h5") as file:
            assert list(file[part].attrs["classes"]) == list("123456789")

    def test_begins_with_the_first_frame_of_ae_train(self) -> None:
        (inputs,) = read("japanese-vowels.h5", "train/inputs")
        first = (1.860936, -0.207383, 0.261557, -0.214562, -0.171253, -0.118167)
        np.testing.assert_array_equal(inputs[0, :6], np.array(first, np.float32))

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_has_no_padding(self, part: str) -> None:
        (inputs,) = read("japanese-vowels.h5", f"{part}/inputs")
        assert (inputs != 0).any(axis=1).all()
        # A frame that repeats the one before, in all coefficients, would be padding too.
        assert (np.diff(inputs, axis=0) != 0).any(axis=1).all()


def ts(utterances: list[np.ndarray], labels: list[str]) -> str:
    """A .ts file that holds these frames (T, 12)."""
    lines = ["#a comment: with a colon", "@problemName x", "@classLabel true b a c", "@data"]
    for frames, label in zip(utterances, labels, strict=True):
        columns = (",".join(repr(float(value)) for value in column) for column in frames.T)
        lines.append(":".join([*columns, label]))
    return "\n".join(lines) + "\n"


class TestReadingTs:
    def test_keeps_frames_lengths_and_labels(self) -> None:
        rng = np.random.default_rng(1)
        utterances = [rng.normal(size=(T, 12)) for T in (3, 1, 5)]
        recording = VOWELS.parse_ts(ts(utterances, ["c", "b", "a"]))
        np.testing.assert_array_equal(recording.inputs, np.vstack(utterances).astype(np.float32))
        assert recording.lengths.tolist() == [3, 1, 5]
        assert recording.targets.tolist() == [2, 0, 1]
        assert recording.classes == ["b", "a", "c"]

    def test_refuses_padding(self) -> None:
        frames = np.ones((4, 12))
        frames[2:] = np.nan
        with pytest.raises(ValueError, match="padded"):
            VOWELS.parse_ts(ts([frames], ["a"]))

    def test_refuses_coefficients_of_different_lengths(self) -> None:
        text = ts([np.ones((4, 12))], ["a"]).replace("1.0:a", "1.0,1.0:a")
        with pytest.raises(ValueError, match="one length"):
            VOWELS.parse_ts(text)

    @pytest.mark.parametrize("packed", [True, False])
    def test_refuses_what_is_not_all_of_ucis_utterances(self, tmp_path: Path, packed: bool) -> None:
        text = ts([np.ones((8, 12))] * 270, ["a"] * 270)
        folder = tmp_path / VOWELS.FOLDER
        folder.mkdir(parents=True)
        (folder / "JapaneseVowels_TRAIN.ts").write_text(text, "utf-8")
        (folder / "JapaneseVowels_eq_TRAIN.ts").write_text("must not be read", "utf-8")
        with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
            for path in folder.iterdir():
                wheel.write(path, path.relative_to(tmp_path).as_posix())
        with pytest.raises(ValueError, match=r"train has \(270, 2160, 8, 8\)"):
            VOWELS.read_part(tmp_path / "x.whl" if packed else tmp_path, "train")

    def test_names_the_file_that_is_missing(self, tmp_path: Path) -> None:
        zipfile.ZipFile(tmp_path / "x.whl", "w").close()
        for source in (tmp_path, tmp_path / "x.whl"):
            with pytest.raises(ValueError, match=r"holds no .*/JapaneseVowels_TEST\.ts"):
                VOWELS.read_part(source, "test")

    def test_writes_the_same_bits_again(self, tmp_path: Path) -> None:
        with h5py.File(DATA / "japanese-vowels.h5") as file:
            parts = {
                part: VOWELS.Utterances(
                    *(group[name][()] for name in ("inputs", "lengths", "targets")),
                    classes=list(group.attrs["classes"]),
                )
                for part, group in ((part, file[part]) for part in ("train", "test"))
            }
        VOWELS.write(tmp_path / "again.h5", parts)
        assert (tmp_path / "again.h5").read_bytes() == (DATA / "japanese-vowels.h5").read_bytes()


class TestSunspots:
    def test_is_the_known_series(self) -> None:
        inputs, years = read("sunspots.h5", "inputs", "year")
        assert (inputs.shape, inputs.dtype) == ((309, 1), np.float32)
        np.testing.assert_array_equal(years, np.arange(1700, 2009))
        np.testing.assert_array_equal(inputs[:5, 0], np.array([5, 11, 16, 23, 36], np.float32))
        np.testing.assert_array_equal(inputs[-3:, 0], np.array([15.2, 7.5, 2.9], np.float32))
        # The highest maximum on record, and the only years without a spot.
        assert years[inputs[:, 0].argmax()] == 1957
        assert years[inputs[:, 0] == 0].tolist() == [1711, 1712, 1810]

    def test_writes_the_same_bits_again(self, tmp_path: Path) -> None:
        inputs, years = read("sunspots.h5", "inputs", "year")
        rows = [
            f"{year},{value:.1f}" for year, value in zip(years, inputs[:, 0].tolist(), strict=True)
        ]
        SUNSPOTS.write(tmp_path / "x.h5", *SUNSPOTS.parse("\n".join(["YEAR,SUNACTIVITY", *rows])))
        assert (tmp_path / "x.h5").read_bytes() == (DATA / "sunspots.h5").read_bytes()

    def test_refuses_a_gap(self) -> None:
        rows = [f"{year},1.5" for year in range(1700, 2009) if year != 1850]
        with pytest.raises(ValueError, match="every year"):
            SUNSPOTS.parse("\n".join(["YEAR,SUNACTIVITY", *rows]))


def expected_counts(kind: int, step: int) -> np.ndarray:
    """1000 times the cut Gaussian's share of each bin, by integrating its density."""
    phase = math.pi * step / 10
    wave = math.cos(phase) if kind else math.sin(phase)
    fine = (np.arange(30 * 200) + 0.5) / 600  # midpoints, 200 a bin
    density = np.exp(-0.5 * ((fine - 5 - 0.2 * wave) / (4 + 0.3 * wave)) ** 2)
    shares: np.ndarray = density.reshape(30, 200).sum(axis=1) / density.sum()
    return 1000 * shares


def log_likelihood_ratio(inputs: np.ndarray) -> np.ndarray:
    """Likelihood ratios (N,) of signal over background, with Gaussian counts."""
    score = np.zeros(len(inputs))
    for kind, sign in ((1, 1), (0, -1)):
        for step in range(10):
            mean = expected_counts(kind, step)
            covariance = np.diag(mean + 100) - np.outer(mean, mean) / 1000
            off = inputs[:, step] - mean
            distance = (off @ np.linalg.inv(covariance) * off).sum(axis=1)
            score -= sign * (distance + np.linalg.slogdet(covariance)[1]) / 2
    return score


class TestTmvaGenerator:
    @pytest.mark.parametrize("kind", [0, 1])
    def test_draws_exactly_1000_inside_the_range(self, kind: int) -> None:
        counts = TMVA.draw_counts(np.random.default_rng(2), kind, 37)
        assert counts.shape == (37, 10, 30)
        assert (counts >= 0).all()
        assert (counts.sum(axis=2) == 1000).all()

    @pytest.mark.parametrize("kind", [0, 1])
    def test_fills_bins_as_the_cut_gaussian(self, kind: int) -> None:
        events = 4000
        counts = TMVA.draw_counts(np.random.default_rng(3), kind, events)
        expected = np.array([expected_counts(kind, step) for step in range(10)])
        error = np.sqrt(expected * (1 - expected / 1000) / events)
        pull = (counts.mean(axis=0) - expected) / error
        assert np.abs(pull).max() < 5
        # The draws of two events are independent: the spread is the multinomial's.
        np.testing.assert_allclose(counts.var(axis=0), error**2 * events, rtol=0.2)

    def test_adds_noise_of_deviation_10(self) -> None:
        noise = TMVA.add_noise(np.random.default_rng(4), np.zeros((400, 10, 30), np.int64))
        assert noise.dtype == np.float32
        assert abs(noise.mean()) < 5 * 10 / math.sqrt(noise.size)
        assert noise.std() == pytest.approx(10, rel=0.01)

    def test_repeats_to_the_bit_for_a_seed(self, tmp_path: Path) -> None:
        for name, seed in (("a", 5), ("b", 5), ("c", 6)):
            TMVA.write(tmp_path / name, 7, seed)
        a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
        assert a == b
        assert a != c

    def test_program_takes_events_and_seed(self, tmp_path: Path) -> None:
        program = [sys.executable, str(ROOT / "scripts" / "make_tmva_time_data.py")]
        options = [str(tmp_path / "x.h5"), "--events", "7", "--seed", "5"]
        subprocess.run([*program, *options], check=True, capture_output=True)
        TMVA.write(tmp_path / "y.h5", 7, 5)
        assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()
        failed = subprocess.run([*program, *options[:1], "--events", "0"], capture_output=True)
        assert failed.returncode == 2
        assert b"--events must be at least 1" in failed.stderr


class TestTmvaFile:
    @pytest.mark.parametrize("part", ["train", "test"])
    def test_has_500_mixed_events_a_class(self, part: str) -> None:
        inputs, targets = read("tmva-time.h5", f"{part}/inputs", f"{part}/targets")
        assert (inputs.shape, inputs.dtype) == ((1000, 10, 30), np.float32)
        assert (targets.shape, targets.dtype) == ((1000, 1), np.float32)
        assert sorted(set(targets[:, 0])) == [0, 1]
        assert targets.sum() == 500
        # Mixed: no tenth of the file is of one class, or nearly so.
        assert np.abs(targets.reshape(10, 100).sum(axis=1) - 50).max() < 20

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_tells_the_classes_apart_as_well_as_it_should(self, part: str) -> None:
        inputs, targets = read("tmva-time.h5", f"{part}/inputs", f"{part}/targets")
        signal = targets[:, 0] == 1
        # 0.930 for many events; the spread with 500 a class is 0.008.
        assert auc(log_likelihood_ratio(inputs.astype(float)), signal) == pytest.approx(
            0.930, abs=0.025
        )
        # Were draws outside the range dropped, the total alone would do.
        assert auc(inputs.sum(axis=(1, 2)), signal) == pytest.approx(0.5, abs=0.06)

    def test_parts_are_different_events(self) -> None:
        train, test = read("tmva-time.h5", "train/inputs", "test/inputs")
        assert len(np.unique(np.concatenate([train, test]).reshape(2000, -1), axis=0)) == 2000

    def test_is_what_the_script_makes(self, tmp_path: Path) -> None:
        with h5py.File(DATA / "tmva-time.h5") as file:
            seed = int(file.attrs["seed"])
        assert f"--events 500 --seed {seed}" in (DATA / "README.md").read_text("utf-8")
        TMVA.write(tmp_path / "again.h5", 500, seed)
        # Another platform's logarithm may end in another bit: values, not bytes.
        with h5py.File(tmp_path / "again.h5") as again, h5py.File(DATA / "tmva-time.h5") as file:
            for path in ("train/inputs", "train/targets", "test/inputs", "test/targets"):
                np.testing.assert_allclose(again[path][()], file[path][()], rtol=1e-5, atol=1e-5)
