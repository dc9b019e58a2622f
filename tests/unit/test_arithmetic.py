"""The files of the arithmetic task, against its rules; its scores count answers alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from repository import ROOT, load_script

from lstm_cli import config

TASK = load_script("make_arithmetic")
RUNS = load_script("run_forget_bias")
# Written out once more: the orders of symbols and classes are what the files mean.
SYMBOLS = "0123456789+-=.abcdefghijklmnopqrstuvwxyz"
CLASSES = [*"0123456789-.", "blank"]


def sequences(part: object) -> list[tuple[str, str]]:
    """Inputs and targets of each sequence as text, with a space for blank."""
    inputs, targets, lengths = part.inputs, part.targets, part.lengths  # type: ignore[attr-defined]
    assert (inputs.sum(axis=1) == 1).all()
    read = "".join(SYMBOLS[k] for k in inputs.argmax(axis=1))
    wanted = "".join(" " if CLASSES[k] == "blank" else CLASSES[k] for k in targets)
    stops = np.cumsum(lengths).tolist()
    assert stops[-1] == len(read) == len(wanted)
    return [(read[a:b], wanted[a:b]) for a, b in zip([0, *stops[:-1]], stops, strict=True)]


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    made: dict[str, object] = TASK.make_parts(700, 300, 3, 2, 11)
    return made


class TestProblem:
    @pytest.mark.parametrize(
        ("left", "sign", "right", "question", "result"),
        [
            (3369, "-", 13994433, "3369-13994433=", "-13991064."),  # the paper's own example
            (42, "+", 107, "42+107=", "149."),
            (5, "-", 5, "5-5=", "0."),
        ],
    )
    def test_is_read_and_answered(
        self, left: int, sign: str, right: int, question: str, result: str
    ) -> None:
        problem = TASK.Problem(left, sign, right)
        assert (problem.question, problem.result) == (question, result)

    def test_numbers_have_every_length_alike(self) -> None:
        rng = np.random.default_rng(1)
        sample = [TASK.draw_number(rng, 3) for _ in range(6000)]
        counts = np.bincount([len(str(number)) for number in sample], minlength=4)
        assert np.abs(counts[1:] - 2000).max() < 200
        assert len(counts) == 4
        assert {0, 9, 10, 99} <= set(sample)

    def test_encodes_the_next_character_of_the_result(self) -> None:
        inputs, targets = TASK.encode("4k-17=", "-13.")
        read = "".join(SYMBOLS[k] for k in inputs.argmax(axis=1))
        assert read == "4k-17=-13"
        assert [CLASSES[k] for k in targets] == ["blank"] * 5 + ["-", "1", "3", "."]


class TestParts:
    @pytest.mark.parametrize("name", ["train", "test"])
    def test_are_right(self, parts: dict[str, object], name: str) -> None:
        for read, expected in sequences(parts[name]):
            question, result = read.split("=")
            a, sign, b = re.fullmatch(r"(\d+)([+-])(\d+)", re.sub("[a-z]", "", question)).groups()
            value = int(a) + int(b) if sign == "+" else int(a) - int(b)
            assert expected == " " * len(question) + f"{value}."
            assert result == str(value)

    def test_have_every_kind_of_problem(self, parts: dict[str, object]) -> None:
        read = [read for read, _ in sequences(parts["train"])]
        negative = np.mean(["=-" in text for text in read])
        plus = np.mean(["+" in text for text in read])
        assert plus == pytest.approx(0.5, abs=0.08)
        assert negative == pytest.approx(0.24, abs=0.07)

    def test_have_up_to_two_letters_in_a_row(self, parts: dict[str, object]) -> None:
        gaps = [
            len(letters)
            for read, _ in sequences(parts["train"])
            for letters in re.findall(r"(?<=[^a-z])([a-z]*)(?=[^a-z])", read.split("=")[0] + "=")
        ]
        assert np.bincount(gaps) / len(gaps) == pytest.approx([1 / 3] * 3, abs=0.04)

    def test_share_no_problem(self, parts: dict[str, object]) -> None:
        train, test = (
            {re.sub("[a-z]|=.*", "", read) for read, _ in sequences(parts[name])}
            for name in ("train", "test")
        )
        assert len(train) > 500
        assert len(test) > 200
        assert not train & test

    def test_hold_out_a_tenth_of_the_problems(self) -> None:
        problems = [TASK.Problem(a, "+", b) for a in range(70) for b in range(70)]
        share = np.mean([TASK.is_held_out(problem, 11) for problem in problems])
        assert share == pytest.approx(0.1, abs=0.02)

    def test_may_have_no_letters(self) -> None:
        made = TASK.make_parts(20, 10, 2, 0, 3)
        assert not any(re.search("[a-z]", read) for read, _ in sequences(made["train"]))


class TestProgram:
    def test_repeats_to_the_bit_for_a_seed(self, tmp_path: Path) -> None:
        program = [sys.executable, str(ROOT / "scripts" / "make_arithmetic.py")]
        options = ["--sequences", "30", "--tests", "7", "--digits", "2", "--distractors", "1"]
        subprocess.run(
            [*program, str(tmp_path / "a"), *options, "--seed", "5"],
            check=True,
            capture_output=True,
        )
        names = ("sequences", "tests", "digits", "distractors", "seed")
        for name, seed in (("b", 5), ("c", 6)):
            values = (30, 7, 2, 1, seed)
            attributes = dict(zip(names, values, strict=True))
            TASK.write(tmp_path / name, TASK.make_parts(*values), attributes)
        a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
        assert a == b
        assert a != c
        with h5py.File(tmp_path / "a") as file:
            assert list(file["test"].attrs["classes"]) == CLASSES
            assert file["test/lengths"].shape == (7,)
            assert file.attrs["digits"] == 2

    @pytest.mark.parametrize("option", ["--sequences=0", "--digits=19", "--distractors=-1"])
    def test_refuses_what_cannot_be_made(self, option: str) -> None:
        program = str(ROOT / "scripts" / "make_arithmetic.py")
        failed = subprocess.run([sys.executable, program, option], capture_output=True)
        assert failed.returncode == 2
        assert re.search(b"must be at (least|most)", failed.stderr)


class TestScore:
    # Two sequences: "x = 1" answers "1.", "y = 2 3" answers "23."; classes as in the file.
    TARGETS = np.array([12, 1, 11, 12, 2, 3, 11])
    LENGTHS = np.array([3, 4])

    def probabilities(self, predicted: list[int]) -> np.ndarray:
        """0.64 for the predicted class, 0.03 for the twelve others."""
        return np.where(np.arange(13) == np.array(predicted)[:, None], 0.64, 0.03)

    def test_only_answers_count(self) -> None:
        # Wrong: both blanks, which must not count, and the second result's 3.
        p = self.probabilities([5, 1, 11, 5, 2, 9, 11])
        found = RUNS.score(p, self.TARGETS, self.LENGTHS, 12)
        assert found.accuracy == pytest.approx(4 / 5)
        assert found.loss == pytest.approx(-(4 * np.log(0.64) + np.log(0.03)) / 5)
        assert found.whole == pytest.approx(1 / 2)

    def test_blank_is_no_answer(self) -> None:
        p = self.probabilities([12] * 7)
        found = RUNS.score(p, self.TARGETS, self.LENGTHS, 12)
        assert (found.accuracy, found.whole) == (0, 0)

    def test_knows_the_place_in_a_result(self) -> None:
        assert RUNS.places(self.TARGETS, 12).tolist() == [0, 1, 0, 1, 2]

    def test_baseline_is_the_most_frequent_at_each_place(self) -> None:
        # In train: 7 first, then the end, then 4.
        train = np.array([12, 7, 11, 12, 7, 11, 12, 7, 4, 4, 12, 3, 1, 4])
        test = np.array([12, 12, 7, 11, 12, 6, 11, 12, 7, 5, 4, 4])
        # 7 . | 6 . | 7 5 4 4; the last place, unseen in train, takes what came before it.
        assert RUNS.baseline(train, test, 12) == pytest.approx(6 / 8)

    def test_row_has_mean_and_range(self) -> None:
        scores = [RUNS.Score(0.5, 1.0, 0.25), RUNS.Score(0.7, 3.0, 0.5)]
        row = RUNS.row("x", scores)
        assert row == (
            "| `x` | 0.600 (0.500 to 0.700) | 2.000 (1.000 to 3.000) | 0.375 (0.250 to 0.500) |"
        )


class TestConfigs:
    def test_differ_in_one_option(self) -> None:
        lstm, rest = {}, []
        for name in RUNS.NAMES:
            path = RUNS.CONFIGS / f"{name}.yaml"
            document = yaml.safe_load(path.read_text("utf-8"))
            lstm[name] = document["model"]["layers"].pop(0)
            rest.append(document)
            specs = config.load(path).specs
            assert (specs[0].input_size, specs[-1].output_size) == (len(SYMBOLS), len(CLASSES))
        assert rest[0] == rest[1] == rest[2]
        common = {"type": "lstm", "hidden_size": 64}
        assert lstm == {
            "forget-bias-1": common | {"forget_bias": 1.0},
            "forget-bias-0": common | {"forget_bias": 0.0},
            "no-forget-gate": common | {"forget_gate": False},
        }


def test_runs_from_data_to_table(tmp_path: Path) -> None:
    data = tmp_path / "x.h5"
    TASK.write(data, TASK.make_parts(40, 20, 1, 1, 3), {})
    process = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "run_forget_bias.py"), str(data),
            "--output", str(tmp_path / "runs"), "--seeds", "4",
            "--set", "train.epochs=1", "--set", "model.layers.0.hidden_size=3",
        ],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    rows = process.stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "`forget-bias-1`", "`forget-bias-0`", "`no-forget-gate`", "most frequent character",
    ]  # fmt: skip
    assert (tmp_path / "runs" / "no-forget-gate-4" / "model.safetensors").is_file()


def test_a_failure_is_lstm_clis_own(tmp_path: Path) -> None:
    failed = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "run_forget_bias.py"),
            str(tmp_path / "none.h5"), "--output", str(tmp_path / "runs"),
        ],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert failed.returncode == 3
    assert "none.h5" in failed.stderr
    assert "Traceback" not in failed.stderr
