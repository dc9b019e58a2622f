"""``run --shard`` and ``join``: the joined file and the metrics are those of one run."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, Truth, file_writer, layout_writer
from result_comparison import assert_equal_results

pytestmark = pytest.mark.usefixtures("in_tmp_path")

STEPS = """\
model:
  input_size: 5
  layers:
    - {type: lstm, hidden_size: 4, bidirectional: true, dropout: 0.1}
    - {type: dense, units: 2, activation: softmax}
  init: {seed: 4}
"""
LAST = STEPS.replace("dropout: 0.1}", "return_sequences: false}")
VALUES = STEPS.replace("2, activation: softmax", "3")


def truth(seed: int, lengths: tuple[int, ...]) -> Truth:
    rng = np.random.default_rng(seed)
    return Truth([rng.standard_normal((T, 5)).astype("f4") for T in lengths])


def write_data(folder: Path, layout: str, targets: str) -> list[str]:
    """Two files of a layout with targets; the names of sequences differ."""
    paths = []
    for k, lengths in enumerate([(3, 7, 0, 1, 6, 9, 2), (0, 5, 4, 9, 3)]):
        one = truth(k, lengths)
        one.classes %= 2
        path = layout_writer(one, file_writer(folder))(layout)
        with h5py.File(path, "a") as file:
            if layout == "groups":
                for n, steps in enumerate(one.steps):
                    file.move(f"seq{n}", f"{'ba'[k]}{n}")
                    value = one.classes[n] if targets == "class" else steps[:, :1] > 0
                    file[f"{'ba'[k]}{n}/targets"] = np.asarray(value, "i8")
            elif targets == "class":
                file["targets"] = one.classes
            elif layout in ("dense", "mask"):
                padded = np.zeros((len(lengths), 9), "i8")
                for n, steps in enumerate(one.steps):
                    padded[n, : len(steps)] = steps[:, 0] > 0
                file["targets"] = padded
            else:
                file["targets"] = (np.concatenate(one.steps)[:, 0] > 0).astype("i8")
            file.attrs["classes"] = ["no", "yes"]
        Path(path).rename(folder / f"{k}.h5")
        paths.append(str(f"{k}.h5"))
    return paths


def compared(lstm, config: str, data: list[str], of: int, *more: object) -> None:
    """Run at once and in shares, in an odd order, and compare all that they give."""
    Path("net.yaml").write_text(config)
    arguments = ("run", "net.yaml", *data, *more, "--json")
    one = lstm(*arguments, "--output", "one.h5")
    assert one.code == 0, one.err
    for number in (*range(of, 0, -2), *range(of - 1, 0, -2)):
        part = lstm(*arguments, "--output", "out.h5", "--shard", f"{number}/{of}")
        assert part.code == 0, part.err
        assert part.json["output"]["path"] == f"out.h5.shard-{number}-of-{of}"
    joined = lstm("join", "out.h5", "--json")
    assert joined.code == 0, joined.err
    assert_equal_results("out.h5", "one.h5")
    for key in ("metrics", "notes", "not_finite"):
        assert joined.json[key] == one.json[key]
    assert joined.json["output"]["shape"] == one.json["output"]["shape"]
    assert not list(Path().glob("*.shard-*"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("targets", ["class", "step"])
def test_every_layout(lstm, tmp_path, layout, targets):
    data = write_data(tmp_path, layout, targets)
    compared(lstm, LAST if targets == "class" else STEPS, data, 4)


@pytest.mark.parametrize("config", [LAST, STEPS])
def test_more_shares_than_sequences_and_rows_without_states(lstm, tmp_path, config):
    file_writer(tmp_path)(inputs=np.random.default_rng(0).standard_normal((3, 4, 5)))
    compared(lstm, config, ["x.h5"], 5, "--dtype", "float64", "--batch-size", 1)


def test_windows_of_several_sequences_and_of_a_series(lstm, tmp_path):
    rng = np.random.default_rng(0)
    file_writer(tmp_path)(u__inputs=rng.random((9, 5)), v__inputs=rng.random((17, 5)))
    file_writer(tmp_path)("s.h5", inputs=rng.random((40, 5)))
    head = LAST.replace("units: 2, activation: softmax", "units: 5")
    window = head + "data: {window: {length: 4, stride: 3}}\n"
    compared(lstm, window, ["x.h5"], 3)
    compared(lstm, window, ["s.h5"], 3)


def test_a_folder_in_seven_shares_three_of_which_are_run_again(lstm, tmp_path):
    """An interrupted share leaves no shard; a finished one is not computed again."""
    (tmp_path / "days").mkdir()
    rng = np.random.default_rng(1)
    for k in range(20):
        lengths = rng.integers(1, 9, 5)
        x = rng.standard_normal((lengths.sum(), 5))
        y = rng.integers(0, 2, lengths.sum())
        file_writer(tmp_path / "days")(f"d{k}.h5", inputs=x, lengths=lengths, targets=y)
    Path("net.yaml").write_text(STEPS)
    arguments = ("run", "net.yaml", "days", "--output", "out.h5")
    for number in (1, 2, 4, 6):
        assert lstm(*arguments, "--shard", f"{number}/7").code == 0
    gap = lstm("join", "out.h5")
    assert gap.code == 3
    assert "3 shards of 7 are missing, number 3, 5, 7" in gap.err
    before = {path: path.stat().st_mtime_ns for path in Path().glob("*.shard-*")}
    for number in range(1, 8):
        outcome = lstm(*arguments, "--shard", f"{number}/7")
        is_finished = "is finished and was not run again" in outcome.err
        assert is_finished is (number in (1, 2, 4, 6))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    one = lstm("run", "net.yaml", "days", "--output", "one.h5", "--json").json
    joined = lstm("join", "out.h5", "--json").json
    assert (joined["metrics"], joined["shards"]) == (one["metrics"], 7)
    assert {"loss", "accuracy", "auc"} == set(one["metrics"])
    assert_equal_results("out.h5", "one.h5")
    with h5py.File("out.h5") as file:
        names = file["source/file"].asstr()[:].tolist()
        assert names == [f"days/d{k}.h5" for k in range(20) for _ in range(5)]
        assert file["source/sequence"][:].tolist() == list(range(5)) * 20


@pytest.fixture
def two(tmp_path: Path) -> tuple[object, ...]:
    """Arguments of a run over ten sequences."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((10, 3, 5)), rng.integers(0, 2, 10)
    file_writer(tmp_path)(inputs=x, targets=y)
    Path("net.yaml").write_text(LAST)
    return ("run", "net.yaml", "x.h5", "--output", "out.h5")


@pytest.mark.parametrize(
    ("more", "noun"),
    [
        (("--set", "model.init.seed=5"), "weights"),
        (("--set", "data.targets=none"), "config"),
        (("--dtype", "float64"), "number type"),
        (("--engine", "reference"), "engine"),
    ],
)
def test_shards_of_another_run_are_refused_or_done_again(lstm, two, more, noun):
    assert lstm(*two, "--shard", "1/2").code == 0
    engine = lstm("devices", "--json").json["auto"]
    if noun == "engine" and engine == "reference":
        pytest.skip("there is one engine")
    assert lstm(*two, "--shard", "2/2", *more).code == 0
    refused = lstm("join", "out.h5")
    assert refused.code == 3
    assert f"out.h5.shard-2-of-2 belongs to other {noun} than out.h5.shard-1-of-2" in refused.err
    assert not Path("out.h5").exists()
    again = lstm(*two, "--shard", "2/2")
    assert f"out.h5.shard-2-of-2 is done again: it belongs to other {noun}" in again.err
    assert lstm("join", "out.h5").code == 0


def test_shards_of_changed_data(lstm, two):
    for number in (1, 2):
        lstm(*two, "--shard", f"{number}/2")
    with h5py.File("x.h5", "a") as file:
        file["inputs"][0] = 1.0
    again = lstm(*two, "--shard", "1/2")
    assert "is done again: it belongs to other data, which have changed" in again.err
    with h5py.File("x.h5", "a") as file:
        file["more"] = np.zeros(1000)
    lstm(*two, "--shard", "1/2")
    refused = lstm("join", "out.h5")
    assert refused.code == 3
    assert "out.h5.shard-2-of-2 belongs to other data than out.h5.shard-1-of-2" in refused.err


def test_damaged_missing_and_foreign_shards(lstm, two):
    none = lstm("join", "out.h5")
    assert (none.code, "out.h5 has no shards" in none.err) == (3, True)
    for number in (1, 2):
        lstm(*two, "--shard", f"{number}/2")
    shard = Path("out.h5.shard-2-of-2")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    damaged = lstm("join", "out.h5")
    assert damaged.code == 3
    assert str(shard) in damaged.err
    lstm("run", *two[1:3], "--output", "results.h5")
    shard.write_bytes(Path("results.h5").read_bytes())
    foreign = lstm("join", "out.h5")
    assert (foreign.code, f"{shard} is no shard of results" in foreign.err) == (3, True)
    shard.write_bytes(Path("out.h5.shard-1-of-2").read_bytes())
    copied = lstm("join", "out.h5")
    assert (copied.code, "found sequences from 0" in copied.err) == (3, True)
    shard.write_bytes(whole)
    lstm(*two, "--shard", "1/3")
    both = lstm("join", "out.h5")
    assert both.code == 3
    assert "found 2 of 2, 1 of 3" in both.err
    Path("out.h5.shard-1-of-3").unlink()
    Path("out.h5").write_text("mine")
    assert lstm("join", "out.h5").code == 2
    assert lstm("join", "out.h5", "--force").code == 0


def test_metrics_that_one_share_cannot_have(lstm, two):
    """A class that the network lacks, in the last share alone: no metrics, as in one run."""
    with h5py.File("x.h5", "a") as file:
        file["targets"][9] = 7
    compared(lstm, LAST, ["x.h5"], 3)
    assert lstm("run", "net.yaml", "x.h5", "--json").json["metrics"] == {}


def test_outputs_that_are_not_finite(lstm, tmp_path):
    x = np.zeros((9, 3, 5))
    x[[4, 7], 1] = np.nan
    file_writer(tmp_path)(inputs=x)
    compared(lstm, STEPS, ["x.h5"], 3)
    one = lstm("run", "net.yaml", "x.h5", "--json").json
    assert one["not_finite"] == {"sequences": 2, "first": 4}


def test_initial_states(lstm, two):
    lstm("run", *two[1:3], "--output", "first.h5")
    compared(lstm, LAST, ["x.h5"], 3, "--state", "first.h5")


def test_options_that_do_not_go_together(lstm, two):
    run, out = two[:3], two[3:]
    for more, text in (
        (("--shard", "1/2"), "a shard is written beside the results"),
        ((*out, "--shard", "1/2", "--gates", "g.h5"), "--shard and --gates exclude one another"),
        ((*out, "--shard", "0/2"), "'0/2' is not K/N"),
        ((*out, "--shard", "3/2"), "'3/2' is not K/N"),
        ((*out, "--shard", "half"), "'half' is not K/N"),
        (
            (*out, "--shard", "1/2", "--set", "model.layers.0.stateful=true"),
            "a stateful network cannot run with --shard",
        ),
    ):
        refused = lstm(*run, *more)
        assert refused.code == 2, refused.err
        assert text in refused.err
    assert not list(Path().glob("out.h5*"))
    assert json.loads(lstm(*run, "--shard", "1/2", "--json").out)["error"]["exit_code"] == 2
