"""Commands on data files: what they print, and hints that do what they say."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from repository import ROOT

from lstm_cli.cli import main

VOWELS = ROOT / "data/japanese-vowels.h5"
CONFIG = ROOT / "configs/japanese-vowels.yaml"
REFERENCE = ("--engine", "reference")


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def hints(outcome):
    return re.findall(r"hint: (.*)", outcome.err)


def python_of(hint):
    """Run the Python that a hint says, and give the file that it writes."""
    words = shlex.split(re.search(r"python -c .*? writes \S+", hint)[0].rstrip(":,"))
    scope = {}
    exec(words[2], scope)
    scope["f"].close()
    return words[4].rstrip(":,")


class TestSwapped:
    def right_order(self, found):
        (hint,) = hints(found)
        words = shlex.split(hint.removeprefix("the config comes before the data: "))
        assert words[0] == "lstm-cli"
        return words[1:]

    @pytest.mark.parametrize(
        ("command", "more"),
        [
            ("run", ["--quiet", *REFERENCE]),
            ("inspect-shapes", []),
            ("train", ["--output", "o", "--set", "train.epochs=1", *REFERENCE]),
        ],
    )
    def test_the_right_order_is_printed_and_works(self, lstm, command, more):
        found = lstm(command, f"{VOWELS}:/test", CONFIG, *more)
        assert found.code == 4
        assert "CONFIG and DATA are swapped" in found.err
        assert lstm(*self.right_order(found)).code == 0

    def test_several_data_keep_their_order(self, lstm):
        found = lstm("run", f"{VOWELS}:/test", f"{VOWELS}:/train", CONFIG)
        words = self.right_order(found)
        assert words[1:] == [str(CONFIG), f"{VOWELS}:/test", f"{VOWELS}:/train"]

    @pytest.mark.parametrize("name", ["m.safetensors", "m.weights.h5", "m.keras", "m.onnx"])
    def test_a_network_in_the_place_of_data(self, lstm, config, data, name):
        shutil.copy(ROOT / "data/japanese-vowels.safetensors", "m.safetensors")
        if name != "m.safetensors":
            assert lstm("convert", "m.safetensors", name, "--quiet").code == 0
        found = lstm("run", data, name)
        assert (found.code, self.right_order(found)) == (4, ["run", name, str(data)])

    @pytest.mark.parametrize("command", [["run", VOWELS, VOWELS], ["inspect-shapes", VOWELS]])
    def test_no_config_at_all(self, lstm, command):
        found = lstm(*command)
        assert found.code == 4
        assert f"{VOWELS} holds sequences" in found.err
        (hint,) = hints(found)
        assert lstm(*shlex.split(hint)[1:3]).code == 0

    def test_a_config_in_the_place_of_data(self, lstm):
        for command in (["run", CONFIG, CONFIG], ["data", CONFIG]):
            found = lstm(*command)
            assert (found.code, f"{CONFIG} is a config" in found.err) == (3, True)
        words = shlex.split(hints(found)[0].partition(": ")[2])
        assert lstm(*words[1:-1], f"{VOWELS}:/test", *REFERENCE).code == 0


@pytest.mark.parametrize("command", ["run", "inspect-shapes"])
def test_a_forgotten_group(lstm, command):
    found = lstm(command, CONFIG, VOWELS)
    assert found.code == 3
    places = re.findall(r"\S+:/\w+", hints(found)[0])
    assert places == [f"{VOWELS}:/test", f"{VOWELS}:/train"]
    for place in places:
        assert lstm(command, CONFIG, place, *REFERENCE).code == 0


class TestOwnFiles:
    @pytest.fixture
    def results(self, lstm, config, data):
        options = ("--output", "out.h5", "--gates", "gates.h5", *REFERENCE)
        assert lstm("run", config, data, *options).code == 0
        return "out.h5"

    def test_results(self, lstm, config, data, results):
        result = lstm("data", results)
        assert result.code == 3
        assert "out.h5 holds results, as lstm-cli run --output writes them" in result.err
        assert "found outputs /outputs (7, 9, 3); final states of layers 0, 1" in result.err
        assert re.search(r"/state/0/h +\(7, 2, 7\).*final state h", result.out)
        python, _, again = hints(result)[0].partition("; ")
        values = eval(re.search(r"h5py\.File.*\]", python)[0], {"h5py": h5py})
        assert values.shape == (7, 9, 3)
        words = shlex.split(again.replace("CONFIG", str(config)).replace("DATA", str(data)))
        assert lstm(*words[1:6], *REFERENCE).code == 0

    def test_results_as_data_and_as_config(self, lstm, config, data, results):
        result = lstm("run", config, results)
        assert (result.code, "holds results" in result.err) == (3, True)
        result = lstm("run", results, data)
        assert (result.code, "holds results" in result.err) == (4, True)
        result = lstm("inspect-shapes", CONFIG, results)  # whose config names datasets
        assert (result.code, "holds results" in result.err) == (3, True)
        assert lstm(*shlex.split(hints(lstm("run", results, data))[0])[1:3]).code == 3

    def test_results_may_be_read_where_the_config_says_so(self, lstm, config, data, results):
        chosen = ("--set", "data.inputs=outputs", "--set", "model.input_size=3", *REFERENCE)
        assert lstm("run", config, results, *chosen).code == 0

    def test_results_of_groups(self, lstm, config):
        with h5py.File("g.h5", "w") as file:
            for name, steps in {"a": 3, "b": 5}.items():
                file[f"{name}/inputs"] = np.ones((steps, 5), np.float32)
        assert lstm("run", config, "g.h5", "--output", "o.h5", *REFERENCE).code == 0
        found = lstm("data", "o.h5")
        assert "found outputs /a/outputs (3, 3) and 1 more sequence; final states" in found.err

    def test_gates(self, lstm, config, results):
        result = lstm("data", "gates.h5")
        assert result.code == 3
        assert "gates.h5 holds gates and states of every step" in result.err
        assert re.search(r"/layers/0/forward/i +\(7, 9, 7\) .*gate i", result.out)
        (hint,) = hints(result)
        values = eval(re.search(r"h5py\.File.*\]", hint)[0], {"h5py": h5py})
        assert values.shape == (7, 9, 7)
        assert "holds gates" in lstm("run", config, "gates.h5").err

    def test_a_training_folder(self, lstm):
        data = f"{VOWELS}:/test"
        options = ("--output", "run", "--set", "train.epochs=1", *REFERENCE, "--quiet")
        assert lstm("train", CONFIG, data, *options).code == 0
        says = {
            "run": "the folder of a training run",
            "run/model.safetensors": "weights of a network that normalizes its inputs",
            "run/config.yaml": "is a config",
            "run/metrics.jsonl": "the metrics of a training run",
        }
        for name, words in says.items():
            result = lstm("data", name)
            assert (result.code, words in result.err) == (3, True), name
            hint = shlex.split(re.search(r"lstm-cli run \S+ DATA", result.err)[0])
            assert lstm("run", hint[2], data, *REFERENCE).code == 0
        result = lstm("data", "run/checkpoint.safetensors")
        assert "the checkpoint of a training run" in result.err
        line = hints(result)[0].partition(" continues")[0]
        for name in (
            "run",
            "run/checkpoint.safetensors",
        ):  # not config.yaml, which holds no weights
            for arguments in (("run", name, data), ("convert", name, "o.onnx")):
                refused = lstm(*arguments)
                assert (refused.code, "of a training run" in refused.err) == (4, True)
                assert "run/model.safetensors" in hints(refused)[0]
        words = shlex.split(line.replace("CONFIG", str(CONFIG)).replace("DATA", data))
        assert lstm(*words[1:], "--set", "train.epochs=1", *REFERENCE).code == 0


@pytest.mark.parametrize(
    "name",
    ["a: b", "#x", "'q", 'q"', "12", "1e3", "null", "Yes", "- k", "x #y", "{z}", "@w", "n\\x1b",
     "a\x1b[31mb", "a\u202eb", "l\u00e4ng e", "v\U000e0001"],
)  # fmt: skip
def test_a_config_that_is_proposed_has_the_name_of_the_dataset(lstm, name):
    with h5py.File("d.h5", "w") as file:
        file[name] = np.random.default_rng(1).normal(size=(4, 6, 3)).astype("f4")
    found = lstm("data", "d.h5")
    assert found.out.replace("\n", "").isprintable()
    text = found.out.partition("to begin a config with:")[2]
    Path("c.yaml").write_text(textwrap.dedent(text), encoding="utf-8")
    assert lstm("run", "c.yaml", "d.h5", *REFERENCE).code == 0
    with h5py.File("d.h5", "w") as file:
        file["inputs"], file["labels of"] = np.ones((4, 6, 3)), np.zeros(4, int)
    assert 'data.targets: "labels of"' in lstm("data", "d.h5").err


def test_masks_of_whole_numbers(lstm, config):
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    for values, code in ((mask, 0), (mask * 255, 0), (mask * [1, 1, 2, 2], 3), (-mask, 3)):
        with h5py.File("d.h5", "w") as file:
            file["inputs"], file["mask"] = np.random.default_rng(0).normal(size=(2, 4, 5)), values
        outcome = lstm("run", config, "d.h5", *REFERENCE)
        assert outcome.code == code, outcome.err
        if code:
            assert "the mask holds" in outcome.err
            assert "d.h5:/mask" in outcome.err


class TestIgnoredLabels:
    SOFTMAX = (
        "model:\n  input_size: 3\n  layers:\n    - {type: lstm, hidden_size: 4}\n"
        "    - {type: dense, units: 4, activation: softmax}\n"
        "train: {loss: cross_entropy, epochs: 1, class_weights: {3: 0}, validation: 0}\n"
    )

    @pytest.mark.parametrize("labels", [(255,), (-1,), (-100,), (99,), (40,), (9,), (-100, 255)])
    @pytest.mark.parametrize("layout", ["dense", "groups"])
    def test_what_to_do_works(self, lstm, labels, layout):
        rng = np.random.default_rng(1)
        y = rng.integers(0, 3, (9, 6))
        y[rng.random(y.shape) < 0.2] = labels[0]
        y[0, : 3 + len(labels)] = [0, 1, 2, *labels]
        x = rng.normal(size=(9, 6, 3))
        with h5py.File("d.h5", "w") as file:
            if layout == "dense":
                file["part/inputs"], file["part/targets"] = x, y
            for n in range(9 if layout == "groups" else 0):
                file[f"part/s{n}/inputs"], file[f"part/s{n}/targets"] = x[n], y[n]
        result = lstm("data", "d.h5:/part")
        assert result.code == 0
        assert (
            "looks like an ignored label" in result.err or "look like ignored labels" in result.err
        )
        assert "256" not in result.out
        assert "{type: dense, units: 4, activation: softmax}" in result.out
        hint = hints(result)[0]
        assert "units: 4 and train.class_weights: {3: 0}" in hint
        copy = python_of(hint)
        assert "ignored" not in lstm("data", f"{copy}:/part").err
        Path("c.yaml").write_text(self.SOFTMAX.replace(", validation: 0", ""))
        run = lstm("train", "c.yaml", f"{copy}:/part", "--output", "o", *REFERENCE)
        assert run.code == 0, run.err

    @pytest.mark.parametrize("labels", [[0, 1, 2], [0, 2, 5], list(range(12)), [0, 1, 2, 7]])
    def test_gaps_alone_are_no_ignored_labels(self, lstm, labels):
        with h5py.File("d.h5", "w") as file:
            file["inputs"] = np.random.default_rng(0).normal(size=(24, 3, 2))
            file["targets"] = np.resize(labels, 24)
        found = lstm("data", "d.h5")
        assert "ignored" not in found.err
        assert f"units: {max(labels) + 1}," in found.out

    def test_two_classes_as_signs(self, lstm):
        with h5py.File("d.h5", "w") as file:
            file["inputs"] = np.random.default_rng(0).normal(size=(24, 3, 2))
            file["targets"] = np.resize([-1, 1], 24)
        found = lstm("data", "d.h5")
        assert "a class index is negative" in found.err
        assert not lstm("data", python_of(hints(found)[0])).err


class TestNumbersAndNouns:
    def test_one_of_each(self, lstm):
        with h5py.File("d.h5", "w") as file:
            file["inputs"] = np.ones((1, 1, 1), np.float32)
        Path("c.yaml").write_text(
            "model:\n  input_size: 1\n  layers:\n    - {type: dense, units: 1}\n"
        )
        message = [lstm("run", "c.yaml", "d.h5", *REFERENCE), lstm("data", "d.h5")]
        message += [lstm("inspect-shapes", "c.yaml", "d.h5")]
        message += [lstm("run", "c.yaml", "d.h5", "--set", "model.input_size=12")]
        assert "1 sequence, 1 step, 1 feature (dense)" in message[0].out
        assert "the inputs have 1 feature, the network reads 12" in message[3].err
        for one in message:
            assert not re.findall(r"(?<![\d.,])1 \w+s\b(?<!is)(?<!has)", one.out + one.err)

    @pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
    def test_a_loss_that_is_a_metric_is_one_column(self, lstm, loss):
        rng = np.random.default_rng(0)
        with h5py.File("d.h5", "w") as file:
            file["inputs"], file["targets"] = rng.normal(size=(9, 4, 2)), rng.normal(size=(9, 1))
        Path("c.yaml").write_text(
            "model:\n  input_size: 2\n  layers:\n"
            "    - {type: lstm, hidden_size: 3, return_sequences: false}\n"
            "    - {type: dense, units: 1}\n"
            f"train: {{loss: {loss}, epochs: 1, validation: 0.3}}\n"
        )
        result = lstm("train", "c.yaml", "d.h5", "--output", "o", *REFERENCE)
        (head,) = [line for line in result.out.splitlines() if "the best" in line]
        names = [name for name in ("loss", "mse", "mae") if name != loss]
        assert head.split()[-len(names) :] == names
        line = next(line for line in result.err.splitlines() if line.startswith("epoch 1/1"))
        assert re.findall(r"(?:val_)?(?:loss|mse|mae)", line) == [
            *names,
            *(f"val_{name}" for name in names),
        ]
        metrics = lstm("run", "o/model.safetensors", "d.h5", "--json", *REFERENCE).json["metrics"]
        assert {"loss", "mse", "mae"} <= set(metrics)  # what a program reads stays whole


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["japanese-vowels", "sunspots", "tmva-time"])
def test_tables_of_shipped_data_fit(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(ROOT)
    data, part = f"data/{name}.h5", "" if name == "sunspots" else ":/test"
    for words in (["data", data], ["inspect-shapes", f"configs/{name}.yaml", data + part]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("dtype", ["u1", "?", "f4"])
@pytest.mark.parametrize("layout", ["dense", "offsets"])
@pytest.mark.parametrize(
    ("units", "activation", "loss"),
    [
        (1, "identity", "mse"),
        (5, "identity", "mse"),
        (2, "softmax", "cross_entropy"),
        (3, "sigmoid", "binary_cross_entropy"),
    ],
)
def test_hints_on_targets_that_do_not_fit_lead_to_a_network_that_trains(
    lstm, dtype, layout, units, activation, loss
):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 5, 3)), rng.integers(0, 2, (6, 5)).astype(dtype)
    with h5py.File("d.h5", "w") as file:
        file["inputs"], file["targets"] = x, y
        if layout == "offsets":  # one a step for certain
            del file["inputs"], file["targets"]
            file["inputs"], file["targets"] = x.reshape(-1, 3)[:27], y.reshape(-1)[:27]
            file["offsets"] = [0, 5, 9, 10, 15, 22, 27]
    Path("c.yaml").write_text(
        "model:\n  input_size: 3\n  layers:\n"
        "    - {type: lstm, hidden_size: 4, return_sequences: false}\n"
        f"    - {{type: dense, units: {units}, activation: {activation}}}\n"
        f"train: {{loss: {loss}, epochs: 1}}\n"
    )
    command = ("train", "c.yaml", "d.h5", "--quiet", *REFERENCE, "--output")
    result = lstm(*command, "o")
    if result.code == 0:  # five values a sequence
        assert (layout, units) == ("dense", 5)
        return
    parts = re.split(r", if [\w ]+(?:; (?:else )?|$)", hints(result)[0])
    # Targets of 0 and 1 are a class a step, and shares of classes only by name.
    for k, part in enumerate(parts[: 1 if loss == "cross_entropy" else 2]):
        if part:
            assert lstm(*command, f"o{k}", *part.split()).code == 0, part
