"""Targets, windows and reversed axes in commands: numbers against NumPy, and hints that work."""

from __future__ import annotations

import json
import re
import shlex

import h5py
import numpy as np
import pytest

import lstm_cli

RNG = np.random.default_rng(3)
X = RNG.normal(size=(8, 5, 3)).astype("f4")
LENGTHS = np.array([5, 4, 3, 5, 5, 2, 1, 5])
ENGINE = ("--engine", "reference")


def net(path, *, seq, units, activation, loss, data="", more=""):
    path.write_text(
        "model:\n  input_size: 3\n  layers:\n"
        f"    - {{type: lstm, hidden_size: 4, return_sequences: {str(seq).lower()}}}\n"
        f"    - {{type: dense, units: {units}, activation: {activation}}}\n"
        f"train: {{loss: {loss}, epochs: 1{more}}}\n{data}"
    )
    return path


CLASSES = {"units": 2, "activation": "softmax", "loss": "cross_entropy"}


def file(path, **data):
    with h5py.File(path, "w") as stored:
        for name, values in data.items():
            stored[name.replace("__", "/")] = values
    return path


def sets(hint):
    """The options that a hint names, up to an `if` or a comma."""
    found = re.findall(r"--set \S+?=[^\s,;]+", hint)
    assert found, hint
    return shlex.split(found[0])


def outputs(path):
    with h5py.File(path) as stored:
        return stored["outputs"][...]


CASES = {
    "5 labels a sequence": (False, 5, "sigmoid", "binary_cross_entropy"),
    "1 value a step": (True, 1, "identity", "mse"),
    "a class a step": (True, 2, "softmax", "cross_entropy"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["f4", "u1", "?", "i8"])
@pytest.mark.parametrize("varying", [False, True])
def test_what_the_network_returns_decides_on_targets(lstm, tmp_path, case, dtype, varying):
    seq, units, activation, loss = CASES[case]
    config = net(tmp_path / "c.yaml", seq=seq, units=units, activation=activation, loss=loss)
    y = np.random.default_rng(0).integers(0, 2, (8, 5)).astype(dtype)
    more = {"lengths": LENGTHS} if varying else {}
    data = file(tmp_path / "d.h5", inputs=X, targets=y, **more)
    out = tmp_path / "o.h5"
    outcome = lstm("run", config, data, "--json", "--output", out, *ENGINE)
    assert outcome.code == 0, outcome.err
    p = outputs(out)
    valid = np.arange(5) < (LENGTHS if varying else np.full(8, 5))[:, None]
    if case == "5 labels a sequence":
        expected = -np.where(y, np.log(p), np.log(1 - p)).mean()
    elif case == "1 value a step":
        expected = np.square(p[..., 0] - y)[valid].mean()
    else:
        expected = -np.log(np.take_along_axis(p, y.astype(int)[..., None], 2)[valid]).mean()
    assert outcome.json["metrics"]["loss"] == pytest.approx(expected, rel=1e-5)
    if dtype in ("u1", "f4"):
        outcome = lstm("train", config, data, "--output", tmp_path / "o", "--quiet", *ENGINE)
        assert outcome.code == 0, outcome.err


MISFITS = {
    "one a step wanted": (True, 5, "sigmoid", "binary_cross_entropy", (8,)),
    "several a sequence, one a step given": (True, 5, "identity", "mse", (8, 5)),
    "one a step, several a sequence given": (False, 1, "identity", "mse", (8, 5)),
    "a class a step, several given": (False, 2, "softmax", "cross_entropy", (8, 5)),
    "too few units": (False, 2, "identity", "mse", (8, 5)),
    "too many units": (True, 2, "identity", "mse", (8, 5, 4)),
    "classes under mse": (False, 3, "softmax", "mse", (8,)),
    "one number under mse": (False, 3, "identity", "mse", (8,)),
    "values a step": (False, 2, "identity", "mse", (8, 5, 2)),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("command", ["run", "train"])
def test_a_misfit_is_mended_as_the_hint_says(lstm, tmp_path, name, command):
    seq, units, activation, loss, shape = MISFITS[name]
    config = net(tmp_path / "c.yaml", seq=seq, units=units, activation=activation, loss=loss)
    y = np.random.default_rng(0).integers(0, 2, shape)
    data = file(tmp_path / "d.h5", inputs=X, targets=y)
    arguments = [command, config, data, *ENGINE, "--quiet"]
    arguments += ["--output", tmp_path / "o"] if command == "train" else []
    outcome = lstm(*arguments)
    assert outcome.code == 3
    assert not (tmp_path / "o").exists()
    hint = outcome.err.rpartition("hint: ")[2]
    changes = sets(hint)
    if "units" in changes[-1] and name == "one a step wanted":
        pytest.fail(hint)
    for _ in range(2):  # of two misfits, the first hint leads to the second
        outcome = lstm(*arguments, *changes)
        if outcome.code == 0:
            return
        changes += sets(outcome.err.rpartition("hint: ")[2])
    assert lstm(*arguments, *changes).code == 0


WINDOW = "data: {{window: {{length: 4, stride: 3, horizon: {horizon}, predict: {predict}}}}}\n"


def forecaster(tmp_path, horizon=1, predict=1, units=1, names=""):
    data = WINDOW.format(horizon=horizon, predict=predict).replace("{window", f"{{{names}window")
    path = tmp_path / "c.yaml"
    return net(path, seq=False, units=units, activation="identity", loss="mse", data=data)


def basins(path, *, targets=True, lengths=(13, 9, 3, 6)):
    rng = np.random.default_rng(1)
    parts = {}
    for n, T in enumerate(lengths):
        parts[f"b{n}__inputs"] = rng.normal(size=(T, 3)).astype("f4")
        parts[f"b{n}__targets"] = rng.normal(size=T).astype("f4")
    kept = {name: v for name, v in parts.items() if targets or name.endswith("inputs")}
    return file(path, **kept), parts


def test_a_forecaster_forecasts_from_the_newest_data(lstm, tmp_path):
    config = forecaster(tmp_path)
    data, parts = basins(tmp_path / "d.h5")
    outcome = lstm("train", config, data, "--output", tmp_path / "o", *ENGINE)
    assert outcome.code == 0, outcome.err
    assert "1 of 4 sequences" in outcome.err
    model, out = tmp_path / "o" / "model.safetensors", tmp_path / "p.h5"
    outcome = lstm("run", model, data, "--output", out, "--json", *ENGINE)
    assert outcome.code == 0, outcome.err
    network = lstm_cli.load(model, engine="reference")
    result, at = outputs(out), 0
    errors = []
    for n, starts in {0: [0, 3, 6, 9], 1: [0, 3, 5], 3: [0, 2]}.items():
        x, y = parts[f"b{n}__inputs"], parts[f"b{n}__targets"]
        windows = np.stack([x[s : s + 4] for s in starts])
        values = network.run(windows).outputs
        np.testing.assert_allclose(result[at : at + len(starts)], values, rtol=1e-6)
        at += len(starts)
        errors += [
            (p[0] - y[s + 4]) ** 2 for s, p in zip(starts, values, strict=True) if s + 4 < len(x)
        ]
    assert at == len(result)
    assert outcome.json["metrics"]["mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    with h5py.File(out) as stored:
        assert stored["source/name"].asstr()[:].tolist() == ["b0"] * 4 + ["b1"] * 3 + ["b3"] * 2
        assert stored["source/step"][:].tolist() == [0, 3, 6, 9, 0, 3, 5, 0, 2]


@pytest.mark.parametrize("validation", ["none", "v.h5"])
def test_training_learns_from_windows_that_have_targets(lstm, tmp_path, monkeypatch, validation):
    """With steps of almost nothing, the losses are those that `run` measures."""
    monkeypatch.chdir(tmp_path)
    config = forecaster(tmp_path)
    data, _ = basins(tmp_path / "d.h5")
    held_out, _ = basins(tmp_path / "v.h5", lengths=(9, 20, 7))
    out = tmp_path / "o"
    sets = ["--set", "train.optimizer={type: sgd, learning_rate: 1e-30}"]
    sets += ["--set", f"train.validation={validation}"] if validation != "none" else []
    assert lstm("train", config, data, "--output", out, "--quiet", *sets, *ENGINE).code == 0
    (row,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, path in {"loss": data, "val_loss": held_out}.items():
        if name in row:
            outcome = lstm("run", out / "model.safetensors", path, "--json", *ENGINE)
            assert row[name] == pytest.approx(outcome.json["metrics"]["mse"], rel=1e-5)
    assert ("val_loss" in row) is (validation != "none")


def test_a_model_that_learned_targets_is_not_compared_with_inputs(lstm, tmp_path):
    """Data of one feature and one target, so that the inputs would fit."""
    config = forecaster(tmp_path)
    config.write_text(config.read_text().replace("input_size: 3", "input_size: 1"))
    series = np.random.default_rng(0).normal(size=30)
    taught = file(tmp_path / "t.h5", g__inputs=series, g__y=-series)
    train = ["train", config, f"{taught}:/g", "--output", tmp_path / "o", "--quiet", *ENGINE]
    assert lstm(*train).code == 0
    model = tmp_path / "o" / "model.safetensors"
    plain = file(tmp_path / "p.h5", inputs=series)
    outcome = lstm("run", model, plain, "--json", *ENGINE)
    assert outcome.json["metrics"] == {}
    assert "holds no targets y" in outcome.json["notes"][0]
    assert "mse" in lstm("run", model, f"{taught}:/g", "--json", *ENGINE).json["metrics"]
    assert lstm(*train, "--resume", "--set", "train.epochs=2").code == 0


def test_windows_all_without_targets_are_said(lstm, tmp_path):
    data, _ = basins(tmp_path / "d.h5")
    far = ["--set", "data.window.horizon=20", "--json"]
    outcome = lstm("run", forecaster(tmp_path), data, *far, *ENGINE)
    assert outcome.json["metrics"] == {}
    assert any("beyond the end" in note for note in outcome.json["notes"])


@pytest.mark.parametrize("names", ["", "targets: targets, ", "targets: target, "])
def test_data_without_targets_are_no_error_in_run(lstm, tmp_path, names):
    config = forecaster(tmp_path, names=names)
    data, _ = basins(tmp_path / "d.h5", targets=False)
    outcome = lstm("run", config, data, "--json", *ENGINE)
    assert outcome.code == 0, outcome.err
    assert outcome.json["metrics"] == {}
    assert outcome.json["output"]["shape"] == [9, 1]
    notes = " ".join(outcome.json["notes"])
    assert ("holds no targets target" in notes) is bool(names)
    assert ("targets were not used" in notes) is not bool(names)
    outcome = lstm("train", config, data, "--output", tmp_path / "o", *ENGINE)
    assert outcome.code == 3


def test_a_name_of_targets_with_a_slip_is_said(lstm, tmp_path):
    config = forecaster(tmp_path, names="targets: target, ")
    data, _ = basins(tmp_path / "d.h5")
    outcome = lstm("run", config, data, *ENGINE)
    assert outcome.code == 0
    assert "did you mean targets?" in outcome.err


@pytest.mark.parametrize(("horizon", "predict"), [(0, 1), (2, 1), (0, 3), (1, 2)])
@pytest.mark.parametrize("split", ["lengths", "dense"])
def test_targets_of_windows(lstm, tmp_path, horizon, predict, split):
    """Metrics of windows of ragged sequences, against a loop."""
    rng = np.random.default_rng(2)
    lengths = [11, 4, 3, 8]
    x = [rng.normal(size=(T, 3)).astype("f4") for T in lengths]
    y = [rng.normal(size=(T, 2)).astype("f4") for T in lengths]
    if split == "lengths":
        parts = {"inputs": np.concatenate(x), "targets": np.concatenate(y)}
    else:
        parts = {"inputs": np.full((4, 12, 3), np.nan), "targets": np.full((4, 12, 2), np.nan)}
        for n, (a, b) in enumerate(zip(x, y, strict=True)):
            parts["inputs"][n, : len(a)], parts["targets"][n, : len(b)] = a, b
    data = file(tmp_path / "d.h5", **parts, lengths=np.array(lengths))
    config, out = forecaster(tmp_path, horizon, predict, 2 * predict), tmp_path / "o.h5"
    outcome = lstm("run", config, data, "--output", out, "--json", *ENGINE)
    assert outcome.code == 0, outcome.err
    network = lstm_cli.build(str(config), engine="reference")
    errors, count = [], 0
    for a, b in zip(x, y, strict=True):
        starts = [*range(0, len(a) - 3, 3)]
        starts += [len(a) - 4] if len(a) >= 4 and starts[-1] + 4 < len(a) else []
        count += len(starts)
        for s in starts:
            own = b[s + 3 + horizon : s + 3 + horizon + predict]
            if len(own) == predict:
                errors.append(network.run(a[None, s : s + 4]).outputs[0] - own.ravel())
    assert outcome.json["output"]["shape"] == [count, 2 * predict]
    assert outcome.json["metrics"]["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-5)


def test_windows_that_do_not_fit_are_mended_as_the_hints_say(lstm, tmp_path):
    data, _ = basins(tmp_path / "d.h5", lengths=(5, 3))
    config = forecaster(tmp_path)
    long = ["--set", "data.window.length=6"]
    for command in (["run"], ["train", "--output", tmp_path / "o", "--quiet"]):
        outcome = lstm(command[0], config, data, *command[1:], *long, *ENGINE)
        assert outcome.code == 3
        assert "the longest sequence has 5 steps" in outcome.err
        hint = sets(outcome.err.rpartition("hint: ")[2])
        assert lstm(command[0], config, data, *command[1:], *hint, *ENGINE).code == 0
    far = ["--set", "data.window.length=5"]
    train = ["train", config, data, "--output", tmp_path / "far", "--quiet", *ENGINE]
    outcome = lstm(*train, *far)
    assert outcome.code == 3
    assert "beyond the end of its sequence" in outcome.err
    assert lstm(*train, *sets(outcome.err.rpartition("hint: ")[2])).code == 0
    assert lstm("run", config, data, *far, *ENGINE).code == 0, "run forecasts without targets"


def test_classes_of_several_steps_are_refused(lstm, tmp_path):
    data = file(
        tmp_path / "d.h5", inputs=X, targets=np.random.default_rng(0).integers(0, 2, (8, 5))
    )
    cut = "data: {window: {length: 2, predict: 2}}\n"
    config = net(tmp_path / "c.yaml", seq=False, data=cut, **CLASSES)
    outcome = lstm("run", config, data, *ENGINE)
    assert outcome.code == 3
    hint = sets(outcome.err.rpartition("hint: ")[2])
    assert "accuracy" in lstm("run", config, data, *hint, "--json", *ENGINE).json["metrics"]
    config.write_text(re.sub("train: .*", "", config.read_text()))
    outcome = lstm("run", config, data, "--json", *ENGINE)
    assert outcome.json["metrics"] == {}
    assert "data.window.predict is 2" in outcome.json["notes"][0]


def test_classes_a_step_are_no_shares(lstm, tmp_path):
    """A network that returns one output per sequence, for data of as many classes as steps."""
    y = np.random.default_rng(0).integers(0, 5, (8, 5))
    config = net(tmp_path / "c.yaml", seq=False, **CLASSES | {"units": 5})
    data = file(tmp_path / "d.h5", inputs=X, targets=y)
    outcome = lstm("run", config, data, *ENGINE)
    assert outcome.code == 3
    assert "no shares of classes" in outcome.err
    turn = ["--set", "model.layers.0.return_sequences=true"]
    assert "accuracy" in lstm("run", config, data, *turn, "--json", *ENGINE).json["metrics"]
    for shares in (np.eye(5)[y[:, 0]], np.full((8, 5), 0.2), 0 * y):
        assert lstm("run", config, file(data, inputs=X, targets=shares), *ENGINE).code == 0


def test_a_forced_series_of_several_sequences_is_refused(lstm, tmp_path):
    data = file(tmp_path / "d.h5", inputs=X.reshape(-1, 3), lengths=np.full(8, 5))
    config = forecaster(tmp_path, units=3)
    outcome = lstm("run", config, data, "--set", "data.layout=series", *ENGINE)
    assert outcome.code == 3
    assert "divides the rows" in outcome.err
    hint = sets(outcome.err.rpartition("hint: ")[2])
    outcome = lstm("run", config, data, *hint, "--json", *ENGINE)
    assert outcome.json["output"]["shape"] == [16, 3]
    options = ["--set", "data.layout=series", "--set", "data.lengths=lengths"]
    outcome = lstm("run", config, data, *options, *ENGINE)
    assert outcome.code == 3
    assert "the series layout does not use data.lengths" in outcome.err
    hint = sets(outcome.err.rpartition("hint: ")[2])
    outcome = lstm("run", config, data, *options, *hint, "--json", *ENGINE)
    assert outcome.json["output"]["shape"] == [16, 3]


@pytest.mark.parametrize("layout", ["dense", "concatenated", "groups", "vlen", "series", "windows"])
@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_a_nan_is_named(lstm, tmp_path, layout, what):
    """The errors of `run`, `train` and `data` name dataset, sequence, step and value."""
    x = X.astype("f8").copy()
    y = np.random.default_rng(0).normal(size=(8, 5, 2))
    {"inputs": x, "targets": y}[what][6, 4, 1] = np.nan
    path = tmp_path / "d.h5"
    sequence, step, config_data = "sequence 6", "step 4", ""
    place = f"d.h5:/{what}"
    if layout == "dense":
        file(path, inputs=x, targets=y)
    elif layout in ("concatenated", "windows"):
        file(path, inputs=x.reshape(40, 3), targets=y.reshape(40, 2), lengths=np.full(8, 5))
        if layout == "windows":
            horizon = 1 if what == "targets" else 0
            config_data = f"data: {{window: {{length: 3, horizon: {horizon}}}}}\n"
    elif layout == "series":
        file(path, inputs=x.reshape(40, 3), targets=y.reshape(40, 2))
        sequence, step = "sequence 0", "step 34"
    elif layout == "groups":
        file(path, **{f"b{n}__{k}": v[n] for n in range(8) for k, v in
                      {"inputs": x, "targets": y}.items()})  # fmt: skip
        sequence, place = "sequence 6 (b6)", f"d.h5:/b6/{what}"
    else:
        with h5py.File(path, "w") as stored:
            for name, values in {"inputs": x, "targets": y}.items():
                rows = stored.create_dataset(name, (8,), h5py.vlen_dtype("f8"))
                for n, row in enumerate(values):
                    rows[n] = row.ravel()
            stored["inputs"].attrs["features"] = 3
    config = net(tmp_path / "c.yaml", seq=layout != "windows", units=2, activation="identity",
                 loss="mse", data=config_data)  # fmt: skip
    noun = "value 1" if what == "targets" else "feature 1"
    for command in (["run"], ["train", "--output", tmp_path / "o", "--quiet"]):
        outcome = lstm(command[0], config, path, *command[1:], *ENGINE)
        assert outcome.code == 3, outcome.err
        assert f"{place}, " in outcome.err
        assert f"{sequence}, {step}, {noun}" in outcome.err
    outcome = lstm("data", path)
    assert outcome.code == 0
    said = outcome.err[outcome.err.index("NaN") :]
    assert f"the first in {sequence}, {step}" in said
    assert place in said


def test_a_nan_in_targets_that_are_one_a_sequence_or_padding(lstm, tmp_path):
    y = np.random.default_rng(0).normal(size=8)
    y[3] = np.nan
    config = net(tmp_path / "c.yaml", seq=False, units=1, activation="identity", loss="mse")
    data = file(tmp_path / "d.h5", inputs=X, targets=y)
    outcome = lstm("run", config, data, *ENGINE)
    assert outcome.code == 3
    assert "d.h5:/targets, sequence 3\n" in outcome.err
    assert "the first in sequence 3\n" in lstm("data", data).err
    padded = np.where(np.arange(5) < LENGTHS[:, None], 1.0, np.nan)
    file(data, inputs=X, targets=padded, lengths=LENGTHS)
    config = net(tmp_path / "c.yaml", seq=True, units=1, activation="identity", loss="mse")
    assert lstm("run", config, data, *ENGINE).code == 0
    assert "NaN" not in lstm("data", data).err


def test_a_nan_in_class_targets(lstm, tmp_path):
    y = np.array([0.0, 1, 1, 0, np.nan, 0, 1, 1])
    config = net(
        tmp_path / "c.yaml", seq=False, units=2, activation="softmax", loss="cross_entropy"
    )
    outcome = lstm("run", config, file(tmp_path / "d.h5", inputs=X, targets=y), *ENGINE)
    assert outcome.code == 3
    assert "found nan at" in outcome.err
    assert "sequence 4" in outcome.err


def test_a_nan_in_an_input_that_the_network_swallows(lstm, tmp_path):
    x = X.copy()
    x[2, 1, 0] = np.nan
    config = net(tmp_path / "c.yaml", seq=False, units=1, activation="relu", loss="mse")
    outcome = lstm("run", config, file(tmp_path / "d.h5", inputs=x, targets=np.ones(8)), *ENGINE)
    assert outcome.code == 3
    assert "d.h5:/inputs, sequence 2, step 1, feature 0" in outcome.err


@pytest.mark.parametrize("square", [False, True])
def test_a_matlab_file_is_refused_and_read_as_the_hint_says(lstm, tmp_path, square):
    x = RNG.normal(size=(3 if square else 7, 5, 3))
    y = np.arange(len(x)) % 2
    config = net(
        tmp_path / "c.yaml", seq=False, units=2, activation="softmax", loss="cross_entropy"
    )
    right = file(tmp_path / "right.h5", inputs=x, targets=y)
    turned = tmp_path / "m.mat"
    with h5py.File(turned, "w", userblock_size=512) as stored:
        stored.create_dataset("inputs", data=x.T).attrs["MATLAB_class"] = b"double"
        stored.create_dataset("targets", data=y[None] * 1.0).attrs["MATLAB_class"] = b"double"
    outcome = lstm("run", config, turned, *ENGINE)
    assert outcome.code == 3
    assert f"{x.shape} reversed" in outcome.err
    hint = sets(outcome.err.rpartition("hint: ")[2])
    result = []
    for data, more in ((right, []), (turned, hint)):
        outcome = lstm("run", config, data, *more, "--output", tmp_path / "o.h5", "--json", *ENGINE)
        assert outcome.code == 0, outcome.err
        result.append((outputs(tmp_path / "o.h5"), outcome.json["metrics"]))
    np.testing.assert_array_equal(result[0][0], result[1][0])
    assert result[0][1] == result[1][1]
    train = ["train", config, turned, "--output", tmp_path / "o", "--quiet", *ENGINE]
    assert lstm(*train).code == 3
    assert lstm(*train, *hint).code == 0
    suggested = tmp_path / "s.yaml"
    suggested.write_text(lstm("data", turned, "--json").json["suggestion"])
    assert lstm("run", suggested, turned, *ENGINE).code == 0


@pytest.mark.parametrize("layout", ["dense", "series", "lengths", "dense lengths"])
def test_sizes_that_fit_in_reversed_order_are_said(lstm, tmp_path, layout):
    """Files that do not say who wrote them: MATLAB's h5write, Julia, Fortran, R."""
    parts = {"inputs": X.T}
    if layout in ("series", "lengths"):
        parts = {"inputs": X.reshape(40, 3).T}
    if "lengths" in layout:
        parts["lengths"] = LENGTHS * 0 + 5
    data = file(tmp_path / "d.h5", **parts)
    config = net(tmp_path / "c.yaml", seq=True, units=1, activation="identity", loss="mse")
    outcome = lstm("run", config, data, *ENGINE)
    assert outcome.code == 3
    hint = sets(outcome.err.rpartition("hint: ")[2])
    assert hint == ["--set", "data.transpose=true"]
    outcome = lstm("run", config, data, *hint, "--json", *ENGINE)
    assert outcome.json["data"]["features"] == 3
    right = file(tmp_path / "d.h5", inputs=X)
    outcome = lstm("run", config, right, *hint, *ENGINE)
    assert outcome.code == 3
    back = sets(outcome.err.rpartition("hint: ")[2])
    assert lstm("run", config, right, *hint, *back, *ENGINE).code == 0


def test_what_is_passed_over_is_said(lstm, tmp_path):
    data = file(tmp_path / "d.h5", a=X[0], b=X[1], label=np.arange(2))
    assert "inputs:" not in lstm("data", data, "--json").json["suggestion"]
    config = net(tmp_path / "c.yaml", seq=False, units=3, activation="identity", loss="mse",
                 data="data: {inputs: a, window: {length: 2}}\n")  # fmt: skip
    for command in (["run"], ["train", "--output", tmp_path / "o", "--quiet"]):
        outcome = lstm(command[0], config, data, *command[1:-1], *ENGINE)
        assert outcome.code == 0, outcome.err
        assert "d.h5:/b: shaped like" in outcome.err.replace("\n", " ")
    outcome = lstm("run", config, data, "--set", "data={}", "--json", *ENGINE)
    assert outcome.json["data"]["sequences"] == 2
    assert any("d.h5:/label: next to the sequences" in note for note in outcome.json["notes"])


def test_parts_without_a_part_are_said_or_refused(lstm, tmp_path):
    config = net(tmp_path / "c.yaml", seq=True, units=1, activation="identity", loss="mse")
    flat = X.reshape(40, 3)
    mask = np.arange(40) < 35
    data = file(tmp_path / "d.h5", inputs=flat, lengths=np.full(8, 5), mask=mask)
    outcome = lstm("run", config, data, "--json", *ENGINE)
    (note,) = outcome.json["notes"]
    assert "d.h5:/mask: not used by the concatenated layout" in note
    outcome = lstm("run", config, data, "--set", "data.mask=mask", *ENGINE)
    assert outcome.code == 3
    assert "the concatenated layout does not use data.mask" in outcome.err
    hint = sets(outcome.err.rpartition("hint: ")[2])
    assert lstm("run", config, data, "--set", "data.mask=mask", *hint, *ENGINE).code == 0
    data = file(tmp_path / "d.h5", inputs=X, lengths=LENGTHS, offsets=np.arange(9) * 5)
    assert "d.h5:/offsets: not used by the dense layout" in lstm("run", config, data, *ENGINE).err
    assert lstm("run", config, data, "--set", "data.offsets=offsets", *ENGINE).code == 3


def test_a_label_beside_data_and_a_text_beside_values(lstm, tmp_path):
    data = file(tmp_path / "d.h5", data=X, label=np.arange(8) % 2)
    config = net(
        tmp_path / "c.yaml", seq=False, units=2, activation="softmax", loss="cross_entropy"
    )
    outcome = lstm("run", config, data, "--json", *ENGINE)
    assert outcome.json["metrics"] == {}
    (note,) = outcome.json["notes"]
    assert "data.targets: label reads them" in note
    outcome = lstm("run", config, data, "--set", "data.targets=label", "--json", *ENGINE)
    assert "accuracy" in outcome.json["metrics"]
    data = file(tmp_path / "d.h5", features=[b"a", b"b", b"c"], values=X)
    outcome = lstm("data", data)
    assert "    data:\n      inputs: values" in outcome.out
    assert "d.h5:/features holds text" in outcome.err


def test_targets_that_are_text_are_encoded_as_the_hint_says(lstm, tmp_path):
    texts = np.array([b"cat", b"dog", b"cat", b"cow"] * 2)
    data = file(tmp_path / "d.h5", inputs=X, targets=texts)
    config = net(
        tmp_path / "c.yaml", seq=False, units=3, activation="softmax", loss="cross_entropy"
    )
    train = ["train", config, data, "--output", tmp_path / "o", "--quiet", *ENGINE]
    for more in ([], ["--set", "data.targets=targets"]):
        outcome = lstm(*train, *more)
        assert outcome.code == 3
        assert "text" in outcome.err
        assert "np.unique(texts, return_inverse=True)" in outcome.err
    classes, indices = np.unique(texts, return_inverse=True)
    file(data, inputs=X, targets=indices)
    with h5py.File(data, "a") as stored:
        stored.attrs["classes"] = classes
    assert lstm(*train).code == 0


@pytest.mark.parametrize(
    ("shape", "window", "batch", "fits"),
    [
        ((12, 3), (3, 3), 1, True),
        ((12, 3), (4, 2), 2, True),  # every second window continues the one before the last
        ((12, 3), (4, 2), 1, False),
        ((13, 3), (3, 3), 1, False),  # the window at the end overlaps
        ((2, 12, 3), (3, 3), 1, False),
        ((2, 12, 3), (3, 3), 8, True),  # one batch: nothing is continued
    ],
)
def test_windows_of_a_stateful_network(lstm, tmp_path, shape, window, batch, fits):
    """States that go from window to window are right, or a note says so and its hint mends it."""
    config = net(tmp_path / "c.yaml", seq=False, units=2, activation="identity", loss="mse")
    x = np.random.default_rng(5).normal(size=shape)
    data, out = file(tmp_path / "d.h5", inputs=x), tmp_path / "o.h5"
    length, stride = window
    arguments = ("run", config, data, "--batch-size", batch, "--output", out, *ENGINE)
    arguments += ("--set", f"data.window={{length: {length}, stride: {stride}}}")
    result = lstm(*arguments, "--set", "model.layers.0.stateful=true")
    assert (result.code, "is stateful, but window" not in result.err) == (0, fits)
    twin = lstm_cli.build(str(config), engine="reference")
    if x.ndim == 2 and fits:
        ends = range(length, 13, stride)
        expected = [twin.run(x[None, (e - length) % length : e]).outputs[0] for e in ends]
        np.testing.assert_allclose(outputs(out), expected, atol=1e-6)
    if not fits:
        hint = re.search(r"--set (model\S+=false)", result.err)[1]
        again = lstm(*arguments, "--set", "model.layers.0.stateful=true", "--set", hint)
        assert (again.code, "is stateful" in again.err) == (0, False)
    if not fits and shape == (13, 3):
        return  # nothing is learned from the window at the end
    more = ("--set", "model.layers.0.stateful=true", "--set", "model.layers.1.units=3")
    train = (
        "train",
        config,
        data,
        *arguments[3:5],
        *arguments[-2:],
        "--output",
        tmp_path / "t",
        *more,
    )
    result = lstm(*train, *ENGINE)
    assert (result.code, "is stateful, but window" not in result.err) == (0, fits), result.err


def test_validation_whose_targets_are_missing(lstm, tmp_path):
    """Windows of it are not compared with the inputs, and no other network is proposed."""
    config = net(tmp_path / "c.yaml", seq=False, units=2, activation="identity", loss="mse")
    data = file(tmp_path / "d.h5", inputs=X, targets=X[..., :2])
    bare = file(tmp_path / "n.h5", inputs=X)
    arguments = ("train", config, data, "--output", tmp_path / "o", *ENGINE)
    arguments += ("--set", "data.window={length: 2}")
    refused = lstm(*arguments, "--set", f"train.validation={bare}")
    assert refused.code == 3
    assert "the inputs themselves" in refused.err.partition("hint: ")[0]
    hint = refused.err.partition("hint: ")[2]
    assert "--set train.validation=0.2 holds out a share" in " ".join(hint.split())
    assert lstm(*arguments, "--set", "train.validation=0.2").code == 0
