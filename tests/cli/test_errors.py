"""Errors of every command: exit code, what, where, and a hint; never a traceback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from repository import ROOT

import lstm_cli
from lstm_cli.cli.main import COMMANDS, cli
from lstm_cli.engines import selection, threads


def one(path, text):
    path.write_text(text)
    return path


def test_wrong_feature_count(lstm, config, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = np.zeros((2, 3, 6), np.float32)
    outcome = lstm("run", config, tmp_path / "x.h5")
    assert outcome.code == 3
    assert "the inputs have 6 features, the network reads 5" in outcome.err
    assert "net.yaml line 2" in outcome.err
    assert "x.h5:/inputs" in outcome.err
    assert "hint: --set model.input_size=6" in outcome.err


def test_unknown_key_names_line_and_nearest(lstm, data, tmp_path):
    text = "model:\n  input_size: 5\n  layers:\n    - {type: dense, unit: 3}\n"
    outcome = lstm("run", one(tmp_path / "c.yaml", text), data)
    assert outcome.code == 4
    assert "model.layers[0].unit" in outcome.err
    assert "c.yaml line 4" in outcome.err
    assert "`units`" in outcome.err


def test_unknown_layer(lstm, data, tmp_path):
    text = "model:\n  input_size: 5\n  layers:\n    - {type: lsmt, hidden_size: 3}\n"
    outcome = lstm("run", one(tmp_path / "c.yaml", text), data)
    assert outcome.code == 4
    assert "`lstm`" in outcome.err


def test_not_hdf5_and_truncated_and_missing(lstm, config, data, tmp_path):
    cases = {
        "text.h5": b"hello, this is no HDF5 file",
        "empty.h5": b"",
        "half.h5": data.read_bytes()[: data.stat().st_size // 2],
        "classic.nc": b"CDF\x01" + bytes(64),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        outcome = lstm("run", config, tmp_path / name)
        assert outcome.code == 3, name
        assert name in outcome.err
    assert lstm("run", config, tmp_path / "none.h5").code == 3
    assert lstm("run", config, tmp_path).code == 3
    assert lstm("run", tmp_path / "none.yaml", data).code == 4
    assert lstm("run", config, data, "--weights", tmp_path / "none.safetensors").code == 4


def test_links_out_of_the_file(lstm, config, data, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(data, other)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["inputs"] = h5py.ExternalLink("other.h5", "/inputs")
        file["lengths"] = np.array([1])
    with h5py.File(tmp_path / "middle.h5", "w") as file:
        file["a/b"] = h5py.ExternalLink("other.h5", "/")
    for path in ("linked.h5", "middle.h5:/a/b"):
        outcome = lstm("run", config, tmp_path / path)
        assert outcome.code == 3
        assert "external" in outcome.err
    assert lstm("run", config, f"{tmp_path}/middle.h5:/a/b", "--allow-external").code == 0


def test_external_storage_and_shape_bomb(lstm, config, tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(4 * 30))
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset(
            "inputs", (2, 3, 5), "f4", external=[(str(tmp_path / "raw.bin"), 0, 120)]
        )
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("inputs", (10**6, 10**4, 5), "f4", chunks=(1, 100, 5))
    for name in ("raw.h5", "bomb.h5"):
        outcome = lstm("run", config, tmp_path / name)
        assert outcome.code == 3, name
        assert "--allow-external" in outcome.err


@pytest.mark.parametrize(
    "arguments", [["--device", "cuda"], ["--engine", "cuda"], ["--device", "cuda:1"]]
)
def test_absent_gpu(lstm, config, data, arguments):
    outcome = lstm("run", config, data, *arguments)
    assert outcome.code == 5
    assert outcome.out == ""
    assert "hint:" in outcome.err


def test_dtype_that_the_engine_lacks(lstm, config, data):
    assert lstm("run", config, data, "--dtype", "float16").code == 5
    assert lstm("run", config, data, "--dtype", "bfloat16", "--engine", "reference").code == 5
    assert lstm("run", config, data, "--dtype", "float23").code == 2


def test_wrong_weights(lstm, config, data, tmp_path):
    other = lstm_cli.build(config).config.to_yaml().replace("hidden_size: 7", "hidden_size: 8")
    lstm_cli.build(one(tmp_path / "o.yaml", other)).save(tmp_path / "o.safetensors")
    outcome = lstm("run", config, data, "--weights", tmp_path / "o.safetensors")
    assert outcome.code == 4
    assert "U_i, U_f, U_g, U_o are (8, 8), expected (7, 7) = (H, H)" in outcome.err
    assert "net.yaml line 4" in outcome.err
    assert "layers.1.weight_ih" in outcome.err
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert lstm("run", config, data, "--weights", tmp_path / "junk.safetensors").code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "only-config.yaml"],
        ["rnu"],
        ["run", "c", "d", "--batch-size", "0"],
        ["run", "c", "d", "--threads", "0"],
        ["run", "c", "d", "--no-such-option"],
        ["run", "c", "d", "--set", "foo"],
        ["bench", "--hidden", "12,x"],
    ],
)
def test_usage(lstm, arguments):
    outcome = lstm(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert "hint: " in outcome.err


@pytest.mark.parametrize(
    ("command", "option", "hint"),
    [
        ("run", "--wieghts", "did you mean --weights?"),
        ("run", "--Weights", "did you mean --weights?"),
        ("run", "--batch_size", "did you mean --batch-size?"),
        ("run", "--outptu", "did you mean --output?"),
        ("convert", "--ckeck", "did you mean --check?"),
        ("devices", "--jsno", "did you mean --json?"),
        ("train", "--epochs", "the config has this key: --set train.epochs=…"),
        ("train", "--lr", "the config has this key: --set train.optimizer.learning_rate=…"),
    ],
)
def test_an_unknown_option_proposes_the_nearest(lstm, command, option, hint):
    outcome = lstm(command, "a", "b", option, "3")
    assert outcome.code == 2
    assert outcome.err.splitlines()[:2] == [
        f"error: {option} is not an option of lstm-cli {command}",
        f"hint: {hint}",
    ]


@pytest.mark.parametrize(
    ("option", "value", "hint", "first"),
    [
        ("--engine", "JIT", "`jit`", "jit"),
        ("--engine", "numpy", "`reference`", "reference"),
        ("--dtype", "Float32", "`float32`", "float32"),
        ("--dtype", "double", "`float64`", "float64"),
        ("--device", "GPU", "`cuda`", "auto"),
        ("--from", "tf", "`keras`", "native"),
        ("--from", "ONXX", "`onnx`", "native"),
    ],
)
def test_an_unknown_value_proposes_the_nearest(lstm, config, data, option, value, hint, first):
    weights = ("--weights", config.parent / "w.safetensors")
    lstm_cli.build(config, engine="reference").save(weights[1])
    outcome = lstm("run", config, data, option, value, *weights)
    assert outcome.code == 2
    assert f"hint: did you mean {hint}?" in outcome.err
    assert f"expected {first}" in outcome.err.replace("one of ", "")


HINTED = re.compile(r"`(\w+)`")


@pytest.mark.parametrize(
    ("key", "value", "guess"),
    [
        ("model.layers.2.activation", "gelu", "elu"),
        ("model.layers.2.activation", "Softmax", "softmax"),
        ("model.layers.2.activation", "sofmax", "softmax"),
        ("model.layers.1.activation", "tanhh", "tanh"),
        ("model.layers.1.recurrent_activation", "hardsigmoid", "hard_sigmoid"),
        ("model.layers.1.type", "GRUU", "gru"),
        ("model.layers.2.type", "Linear", "dense"),
        ("train.optimizer", "Adam", "adam"),
        ("train.loss", "crossentropy", "cross_entropy"),
        ("train.loss", "categorical_crossentropy", "cross_entropy"),
        ("train.schedule", "plateau", "reduce_on_plateau"),
        ("train.monitor", "acc", "accuracy"),
        ("train.normalize", "Standard", "standard"),
        ("model.init.scheme", "glorot", "glorot_uniform"),
        ("data.layout", "concat", "concatenated"),
    ],
)
def test_a_value_that_is_proposed_can_be_used_there(lstm, config, key, value, guess):
    loss = "cross_entropy" if guess == "accuracy" or "cross" in guess else "mse"
    base = ["inspect-shapes", config, "--set", f"train.loss={loss}"]
    base += ["--set", "model.layers.2.activation=softmax"]
    outcome = lstm(*base, "--set", f"{key}={value}")
    assert outcome.code == 4
    assert HINTED.findall(outcome.err.rpartition("hint: ")[2]) == [guess]
    assert f"expected one of {guess}, " in outcome.err
    assert lstm(*base, "--set", f"{key}={guess}").code == 0


def test_softmax_in_a_gate_is_not_proposed(lstm, config):
    outcome = lstm("inspect-shapes", config, "--set", "model.layers.1.activation=Sofmax")
    assert outcome.code == 4
    assert "only a dense layer has softmax" in outcome.err
    assert "did you mean" not in outcome.err
    assert "softmax," not in outcome.err.partition("expected")[2].partition("\n")[0]


def test_many_problems_are_counted_and_json_has_all(lstm, config, data):
    keys = "".join(f"k{k}: 1\n" for k in range(304))
    outcome = lstm(
        "run", one(config.parent / "many.yaml", config.read_text() + keys), data, "--json"
    )
    assert outcome.code == 4
    assert outcome.err.count("is not a key of a config") == 20
    assert "error: 304 problems" in outcome.err
    assert "\n  and 284 more\n" in outcome.err
    error = outcome.json["error"]
    assert (error["exit_code"], len(error["problems"])) == (4, 304)
    assert error["problems"][303]["where"] == [f"{config.parent / 'many.yaml'} line 311"]


def test_json_is_one_document_whatever_fails(lstm, config, data):
    outcome = lstm("inspect-shapes", config, data, "--set", "model.input_size=6", "--json")
    assert outcome.code == 3
    assert outcome.json["data_problems"]
    assert lstm("data", config.parent / "none.h5", "--json").json["error"]["exit_code"] == 3
    for arguments in (
        ["train", config, data],
        ["devices", "--thing"],
        ["run", config, "--nothing"],
    ):
        outcome = lstm(*arguments, "--json")
        error = outcome.json["error"]
        assert (outcome.code, error["exit_code"], len(error["problems"])) == (2, 2, 1)
        assert f"error: {error['problems'][0]['what']}\n" in outcome.err
        assert f"hint: {error['problems'][0]['hint']}\n" in outcome.err


@pytest.mark.parametrize("command", ["run", "inspect-shapes"])
def test_sizes_that_the_configs_weights_do_not_have(lstm, config, data, command):
    lstm_cli.build(config, engine="reference").save(config.parent / "w.safetensors")
    own = one(config.parent / "own.yaml", config.read_text() + "weights: w.safetensors\n")
    arguments = (
        command,
        own,
        data,
        "--engine",
        "reference",
        "--set",
        "model.layers.0.hidden_size=4",
    )
    outcome = lstm(*arguments)
    assert outcome.code == 4
    assert "hint: --set weights=null draws new weights" in outcome.err
    assert lstm(*arguments, "--set", "weights=null").code == 0
    beside = lstm(*arguments, "--weights", config.parent / "w.safetensors")
    assert beside.code == 4
    assert "weights=null" not in beside.err


def test_weights_of_a_config_that_are_missing_can_be_left_out(lstm, config, data):
    own = one(config.parent / "own.yaml", config.read_text() + "weights: none.safetensors\n")
    outcome = lstm("run", own, data, "--engine", "reference")
    assert "--set weights=null" in outcome.err
    assert lstm("run", own, data, "--engine", "reference", "--set", "weights=null").code == 0


def test_a_path_in_set_begins_where_it_is_typed(lstm, config, data, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    one(tmp_path / "configs" / "own.yaml", config.read_text() + "weights: w.safetensors\n")
    for folder, seed in (("configs", 1), ("here", 2)):
        path = tmp_path / folder / "w.safetensors"
        lstm_cli.build(config, engine="reference", seed=seed).save(path)
    monkeypatch.chdir(tmp_path / "here")
    given = ("run", "../configs/own.yaml", "../words.h5", "--engine", "reference", "--json")
    of_config = lstm(*given).json["model"]
    assert of_config["weights"] == "../configs/w.safetensors"
    typed = lstm(*given, "--set", "weights=w.safetensors").json["model"]
    assert typed["weights"] == "w.safetensors"
    assert typed["weights_sha256"] != of_config["weights_sha256"]


def test_unknown_peer(lstm):
    outcome = lstm("bench", "--against", "tensorflow")
    assert outcome.code == 2
    assert "onnxruntime" in outcome.err


def test_unwritable_output(lstm, config, data, tmp_path):
    outcome = lstm("run", config, data, "--output", tmp_path / "none" / "out.h5")
    assert outcome.code == 1
    assert "out.h5" in outcome.err


def test_same_file_for_two_outputs(lstm, config, data, tmp_path):
    out = tmp_path / "o.h5"
    assert lstm("run", config, data, "--output", out, "--gates", out).code == 2


def test_output_onto_the_input(lstm, config, data):
    before = Path(data).read_bytes()
    assert lstm("run", config, data, "--output", data).code == 2
    assert Path(data).read_bytes() == before


@pytest.mark.parametrize("option", ["--output", "--gates"])
def test_output_onto_what_is_read(lstm, config, data, tmp_path, option):
    weights = tmp_path / "w.safetensors"
    lstm_cli.build(config).save(weights)
    local = one(tmp_path / "own.yaml", config.read_text() + "weights: w.safetensors\n")
    for arguments, target in (
        ([config], config),
        ([config, "--weights", weights], weights),
        ([weights], weights),
        ([local], weights),
    ):
        before = target.read_bytes()
        outcome = lstm("run", arguments[0], data, *arguments[1:], option, target)
        assert outcome.code == 2
        assert target.read_bytes() == before


def test_missing_weights_of_a_config_name_its_line(lstm, config, data, tmp_path):
    own = one(tmp_path / "own.yaml", config.read_text() + "weights: none.safetensors\n")
    outcome = lstm("run", own, data)
    assert outcome.code == 4
    assert "own.yaml line 8" in outcome.err


def test_targets_that_a_named_loss_cannot_take_are_a_misfit(lstm, config, data):
    with h5py.File(data, "a") as file:
        file["targets"] = np.zeros((7, 9, 2), np.float32)
    for command in ("run", "inspect-shapes"):
        outcome = lstm(command, config, data, "--set", "train.loss=mse")
        assert outcome.code == 3
        assert "a target has shape (2,), an output (3,)" in outcome.err
        assert "hint:" in outcome.err
    last = "--set", "model.layers.1.return_sequences=false"
    outcome = lstm("run", config, data, "--set", "train.loss=mse", *last)
    assert outcome.code == 3
    assert "one per step, the outputs one per sequence" in outcome.err


def test_weights_beyond_the_memory(lstm, config, data):
    outcome = lstm("run", config, data, "--set", "model.layers.0.hidden_size=200000")
    assert outcome.code == 4
    assert "net.yaml" in outcome.err or "--set" in outcome.err
    assert "layer 0" in outcome.err


def shell(arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "lstm_cli", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        check=False,
        **options,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_in_any_encoding(config, data, tmp_path, encoding):
    process = shell(
        ["run", config, data, "--output", tmp_path / "o.h5"],
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONIOENCODING=encoding),
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "o.h5").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_no_fault(config, data):
    with open("/dev/full", "wb") as full:
        done = shell(["run", config, data], stdout=full)
    assert done.returncode == 1
    assert b"cannot be written" in done.stderr
    assert b"fault" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_between_batches(tmp_path, config, number):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = np.zeros((40000, 20, 5), np.float32)
    gates = tmp_path / "gates.h5"
    command = [sys.executable, "-m", "lstm_cli", "run", config, tmp_path / "x.h5"]
    with subprocess.Popen(
        [*map(str, command), "--gates", str(gates)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*gates*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        err = process.stderr.read()
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.yaml", "x.h5"]


def test_interrupt(lstm, config, data, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lstm_cli.network.network.Network.run", interrupted)
    out = tmp_path / "out.h5"
    outcome = lstm("run", config, data, "--output", out)
    assert outcome.code == 130
    assert not out.exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_an_internal_error_shows_no_traceback_without_debug(lstm, config, data, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("lstm_cli.network.network.Network.run", broken)
    outcome = lstm("run", config, data)
    assert outcome.code == 1
    assert "ZeroDivisionError: oops" in outcome.err
    assert "--debug" in outcome.err
    with pytest.raises(ZeroDivisionError):
        lstm("run", config, data, "--debug")


@pytest.mark.parametrize("least", ["reference 60", "reference 170", "jit 250"])
def test_little_memory(least):
    """Libraries that end the process where they find no memory are asked first."""
    resource = pytest.importorskip("resource")
    if sys.platform != "linux":
        pytest.skip("addresses are limited on Linux")
    engine, megabytes = least.split()
    limit = int(megabytes) << 20
    given = ["configs/japanese-vowels.yaml", "data/japanese-vowels.h5:/test", "--engine", engine]
    process = subprocess.run(
        [sys.executable, "-m", "lstm_cli", "run", *given],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        timeout=60,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: not enough memory")
    assert "hint: " in process.stderr
    assert "fault" not in process.stderr


def test_threads_that_cannot_be_started(lstm, monkeypatch):
    def refused(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(selection, "choose_engine", refused)
    outcome = lstm("run", "configs/japanese-vowels.yaml", "data/japanese-vowels.h5:/test")
    assert outcome.code == 1
    assert outcome.err.startswith("error: no more threads can be started")
    assert "fault" not in outcome.err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
@pytest.mark.parametrize("command", COMMANDS)
def test_hints_to_need_less_name_options_of_the_command(lstm, monkeypatch, command, error):
    def refused(*_):
        raise error

    own = cli.get_command(None, command)
    options = {name for each in own.params for name in each.opts}
    monkeypatch.setattr(own, "make_context", refused)
    outcome = lstm(command)
    assert outcome.code == 1
    assert "hint: " in outcome.err
    assert set(re.findall(r"--[a-z-]+", outcome.err)) <= options


@pytest.mark.parametrize(
    "value", ["99999999999999999999", "5000", "0", "-1", "1.5", "x", "", "9" * 5000]
)
def test_threads_that_are_no_number_of_threads(lstm, value):
    outcome = lstm("run", "c", "d", "--threads", value)
    assert outcome.code == 2
    assert "is not a whole number from 1 to 1024" in outcome.err
    assert len(outcome.err) < 300


def test_more_threads_than_can_run(lstm, monkeypatch):
    monkeypatch.setattr(threads, "allowed_threads", lambda: 1)
    given = ("run", "configs/japanese-vowels.yaml", "data/japanese-vowels.h5:/test", "--json")
    outcome = lstm(*given, "--threads", 192, "--engine", "reference")
    assert "192 threads were requested, but only 1 can run here at once; using 1" in outcome.err
    assert outcome.json["threads"] == 1


@pytest.mark.parametrize("name", ["x" * 5000, "é" * 130, "x" * 300 + ".yaml", "a/" * 2500 + "m"])
def test_names_that_no_file_can_have(lstm, config, data, tmp_path, monkeypatch, name):
    weights = Path("data/japanese-vowels.safetensors").resolve()
    monkeypatch.chdir(tmp_path)
    reading = ("run", "net.yaml", "words.h5", "--engine", "reference")
    learning = ("train", "net.yaml", "words.h5", "--engine", "reference", "--output")
    for arguments in (
        ("data", name), ("run", name, "words.h5"), ("inspect-shapes", name), (*reading, name),
        *((*reading, option, name) for option in ("--weights", "--state", "--output", "--gates")),
        ("convert", name, "o.onnx"), ("convert", weights, name, "--to", "onnx"),
        ("convert", weights, "o.onnx", "--config", name), ("compare", name, weights),
        ("convert", weights, "o.onnx", "--check", name), (*learning, name),
        ("compare", weights, weights, "--config", name), (*learning, name, "--resume"),
    ):  # fmt: skip
        outcome = lstm(*arguments)
        assert outcome.code in (1, 2, 3, 4), arguments[0]
        assert "error: " in outcome.err, arguments[0]
        assert "fault in lstm-cli" not in outcome.err, arguments


def test_a_name_that_the_system_cannot_spell(lstm, tmp_path):
    weights = "data/japanese-vowels.safetensors"
    outcome = lstm("convert", weights, tmp_path / "o.onnx", "--check", "\ud800")
    assert outcome.code == 3
    assert "fault in lstm-cli" not in outcome.err
