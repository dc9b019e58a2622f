"""Baselines of the benchmarks: saved, read back, and compared with new results."""

import json
from dataclasses import replace

import pytest

from lstm_cli.errors import LstmCliError
from lstm_cli.workflows.bench import (
    BaselineError,
    GridSize,
    MachineInfo,
    SizeResult,
    Timing,
    compare,
    load_baseline,
    save_baseline,
)

HERE = MachineInfo(
    "Zen 4", 8, 2, "Linux x86_64", {"lstm-cli": "0.1", "numpy": "2.4", "torch": "2.13"}
)
SMALL, LARGE = GridSize(5, 1, 7, 3), GridSize(50, 2, 7, 50)


def result(size=SMALL, median=0.5, title="lstm-cli (reference, float32)", layers="lstm 3 → 5"):
    ours = Timing("lstm-cli", title, median, median * 1.5, 20, 0.25)
    theirs = Timing("torch", "PyTorch 2.13", 0.75, 0.875, 11, 0.125)
    return SizeResult(size, layers, (ours, theirs), {"torch": 1.5})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "base line.json"
    save_baseline(path, [result(), result(LARGE, 2.0)], HERE)
    return path


def test_a_baseline_comes_back_as_it_was_saved(saved):
    baseline = load_baseline(saved)
    assert baseline.machine == HERE
    assert [entry.size for entry in baseline.sizes] == [SMALL, LARGE]
    assert baseline.sizes[0].timings == result().timings
    assert baseline.mode == "forward"
    assert baseline.sizes[0].layers == "lstm 3 → 5"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_changes_are_above_one_where_it_became_faster(saved):
    comparison = compare([result(LARGE, 1.0), result(median=2.0)], load_baseline(saved), HERE)
    assert [(c.size, c.before, c.now, c.ratio) for c in comparison.changes] == [
        (LARGE, 2.0, 1.0, 2.0),
        (SMALL, 0.5, 2.0, 0.25),
    ]
    assert comparison.notes == ()


def test_another_machine_is_compared_but_named(saved):
    now = replace(HERE, processor="Zen 5", threads=4, versions=HERE.versions | {"numpy": "3.0"})
    found = compare([result()], load_baseline(saved), now)
    assert len(found.changes) == 1
    assert found.notes == (
        "the baseline was measured with processor Zen 4, this with Zen 5",
        "the baseline was measured with threads 2, this with 4",
        "the baseline was measured with numpy 2.4, this with 3.0",
    )


def test_a_new_version_of_this_program_is_what_a_baseline_is_for(saved):
    now = replace(HERE, versions=HERE.versions | {"lstm-cli": "0.2"})
    assert compare([result()], load_baseline(saved), now).notes == ()


def test_another_engine_is_named_once(saved):
    results = [
        result(title="lstm-cli (jit, float32)"),
        result(LARGE, title="lstm-cli (jit, float32)"),
    ]
    assert compare(results, load_baseline(saved), HERE).notes == (
        "the baseline is of lstm-cli (reference, float32), this is lstm-cli (jit, float32)",
    )


def test_what_the_baseline_did_not_measure_is_listed_not_compared(saved):
    results = [result(layers="gru 3 → 5"), result(GridSize(9, 1, 1, 9)), result()]
    found = compare(results, load_baseline(saved), HERE)
    assert [c.size for c in found.changes] == [SMALL]
    assert found.notes == (
        "the baseline does not have 5 × 1 × 7, D 3 (gru 3 → 5); 9 × 1 × 1 (lstm 3 → 5)",
    )


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ("forward", "train", "of forward passes, this is of training steps"),
        ("train", "forward", "of training steps, this is of forward passes"),
    ],
)
def test_a_forward_and_a_training_baseline_are_never_compared(tmp_path, then, now, words):
    path = tmp_path / "b.json"
    save_baseline(path, [replace(result(), mode=then)], HERE)
    comparison = compare([replace(result(), mode=now)], load_baseline(path), HERE)
    assert comparison.changes == ()
    assert len(comparison.notes) == 1
    assert words in comparison.notes[0]
    assert f"--mode {then}" in comparison.notes[0]
    same = compare([replace(result(), mode=then)], load_baseline(path), HERE)
    assert [c.ratio for c in same.changes] == [1.0]


def test_training_with_another_loss_is_another_thing_to_measure(tmp_path):
    path = tmp_path / "b.json"
    training = replace(result(layers="lstm 3 → 5, mse"), mode="train")
    save_baseline(path, [training], HERE)
    found = compare([replace(training, layers="lstm 3 → 5, mae")], load_baseline(path), HERE)
    assert found.changes == ()
    assert "lstm 3 → 5, mae" in found.notes[0]


def test_a_baseline_older_than_the_modes_is_of_forward_passes(saved):
    document = json.loads(saved.read_text())
    del document["mode"]
    saved.write_text(json.dumps(document))
    assert load_baseline(saved).mode == "forward"


def test_a_mode_that_there_is_not_is_named(saved):
    saved.write_text(saved.read_text().replace('"mode": "forward"', '"mode": "sideways"'))
    with pytest.raises(BaselineError, match="neither forward nor train: 'sideways'"):
        load_baseline(saved)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LstmCliError, match="no space left"):
        save_baseline(saved, [result()], HERE)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(LstmCliError, match="no such file"):
        save_baseline(tmp_path / "none" / "b.json", [result()], HERE)


def test_a_missing_baseline_says_how_to_make_one(tmp_path):
    with pytest.raises(LstmCliError, match="--save") as caught:
        load_baseline(tmp_path / "none.json")
    assert caught.value.exit_code == 1


def test_another_layout_is_named(saved):
    saved.write_text(saved.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(BaselineError, match="schema 2"):
        load_baseline(saved)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"schema": "1"}',
        b"7" * 9999,
    ],
    ids=lambda junk: repr(junk[:16]),
)
def test_junk_is_not_a_baseline(tmp_path, junk):
    path = tmp_path / "junk.json"
    path.write_bytes(junk)
    with pytest.raises(BaselineError, match="is not a baseline"):
        load_baseline(path)


def every_place(value, path=()):
    """The path of everything in a document, the document itself first."""
    yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from every_place(inner, (*path, key))


def spoiled(document, path, value):
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is every_place:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    "value", [None, [], True, -1, float("nan"), 10**400, float("inf")], ids=lambda v: repr(v)[:8]
)
def test_a_document_spoiled_anywhere_is_not_a_baseline(saved, value):
    document = json.loads(saved.read_text())
    for path in every_place(document):
        saved.write_text(json.dumps(spoiled(document, path, value)))
        with pytest.raises(BaselineError):
            load_baseline(saved)


def test_a_missing_key_is_named(saved):
    document = json.loads(saved.read_text())
    saved.write_text(json.dumps(spoiled(document, ("sizes", 1, "timings", 0, "p95"), every_place)))
    with pytest.raises(BaselineError, match="no p95"):
        load_baseline(saved)
