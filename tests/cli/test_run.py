"""``lstm-cli run`` as a user runs it."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

import lstm_cli
from lstm_cli.engines.jit import forward
from lstm_cli.engines.jit.runtime import compiler

pytestmark = pytest.mark.usefixtures("at_root")

VOWELS = "data/japanese-vowels.h5:/test"
VOWELS_CONFIG = "configs/japanese-vowels.yaml"


def read(path):
    with h5py.File(path) as file:
        values = {}
        file.visititems(
            lambda name, item: (
                values.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
        return values, dict(file.attrs)


@pytest.mark.parametrize("name", ["reference", "jit"])
def test_rows_of_the_timings_say_where_all_time_went(lstm, name, monkeypatch):
    arguments = ("run", "configs/japanese-vowels.yaml", "data/japanese-vowels.h5:/test", "--json")
    shares = []
    for _ in range(3):  # another process may take the core at any time
        rows = lstm(*arguments, "--engine", name).json["timings"]
        whole = {row["name"]: row["seconds"] for row in rows if not row["part"]}
        total = whole.pop("all")
        assert sum(whole.values()) == pytest.approx(total)
        shares.append(whole["rest"] / total)
        assert "between layers" in whole
    assert min(shares) < 0.1
    if name == "jit":
        monkeypatch.setattr(compiler, "_loaded", {})
        forward._compiled.cache_clear()
        rows = lstm(*arguments, "--engine", name).json["timings"]
        seconds = {row["name"]: row["seconds"] for row in rows}
        assert seconds["compile or load"] > 0
        assert seconds["pack weights"] > 0
        assert seconds["fresh memory"] > 0


def test_readme_command_shows_shapes_timings_and_metrics(lstm):
    outcome = lstm("run", VOWELS_CONFIG, VOWELS)
    assert outcome.code == 0
    told = outcome.err.startswith("jit cannot be used here: ") and outcome.err.count("\n") == 1
    assert outcome.err == "" or told
    text = outcome.out
    assert "370 sequences, 7–29 steps, 12 features (concatenated)" in text
    assert "japanese-vowels.safetensors (92,209 parameters, sha256 " in text
    for gate in ("input", "forget", "candidate", "output"):
        line = next(line for line in text.splitlines() if line.startswith(f"{gate}  "))
        assert "(100, 12)" in line
        assert "(100, 100)" in line
    for row in ("read", "layer 0 lstm", "  input projection", "  recurrence", "layer 2 dense"):
        assert any(line.startswith(row) for line in text.splitlines()), row
    accuracy = float(text.partition("accuracy ")[2].split()[0])
    assert accuracy > 0.97
    assert "cross-entropy" in text
    assert max(map(len, text.splitlines())) <= 100


def test_json_is_the_only_thing_on_stdout(lstm):
    outcome = lstm("run", VOWELS_CONFIG, VOWELS, "--json")
    document = outcome.json
    keys = {"model", "layers", "timings", "metrics", "device", "engine", "output"}
    assert keys <= set(document)
    assert document["model"]["parameters"] == 92209
    assert document["layers"][0]["directions"][0]["gates"][1]["W"] == [100, 12]
    assert document["output"]["shape"] == [370, 9]
    assert document["engine"] == lstm("devices", "--json").json["auto"]
    assert (document["passed_over"] == {}) == (document["engine"] == "jit")
    assert set(document["metrics"]) == {"loss", "accuracy"}


def test_metrics_are_those_of_the_outputs(lstm, tmp_path):
    out = tmp_path / "out.h5"
    document = lstm("run", VOWELS_CONFIG, VOWELS, "--output", out, "--json").json
    metrics, _ = read(out)
    with h5py.File("data/japanese-vowels.h5") as file:
        targets = file["test/targets"][()]
    p = metrics["outputs"][np.arange(370), targets].astype(np.float64)
    assert document["metrics"]["loss"] == pytest.approx(-np.log(p).mean(), rel=1e-5)
    accuracy = (metrics["outputs"].argmax(1) == targets).mean()
    assert document["metrics"]["accuracy"] == pytest.approx(accuracy)


def test_results_are_those_of_the_python_interface(lstm, config, data, tmp_path):
    out = tmp_path / "out.h5"
    assert lstm("run", config, data, "--output", out, "--batch-size", 3).code == 0
    with h5py.File(data) as file:
        x, lengths = file["inputs"][()], file["lengths"][()]
    result = lstm_cli.build(config).run(x, lengths)
    results, attributes = read(out)
    np.testing.assert_allclose(results["outputs"], result.outputs, atol=1e-6)
    np.testing.assert_array_equal(results["lengths"], lengths)
    np.testing.assert_allclose(results["state/0/h"], result.state[0][0], atol=1e-6)
    np.testing.assert_allclose(results["state/0/c"], result.state[0][1], atol=1e-6)
    np.testing.assert_allclose(results["state/1/h"], result.state[1][0], atol=1e-6)
    assert "state/1/c" not in results
    assert results["state/0/h"].shape == (7, 2, 7)
    assert (results["outputs"][3] == 0).all()
    assert {"lstm_cli_version", "config", "weights_sha256"} <= set(attributes)


@pytest.mark.parametrize("size", ["1", "2", "100", "auto"])
def test_no_result_depends_on_the_batch_size(lstm, config, data, tmp_path, size):
    lstm("run", config, data, "--output", tmp_path / "a.h5")
    lstm("run", config, data, "--output", tmp_path / "b.h5", "--batch-size", size)
    a, b = read(tmp_path / "a.h5")[0], read(tmp_path / "b.h5")[0]
    assert set(a) == set(b)
    for name, value in a.items():
        if name == "source/file":
            assert b[name].tolist() == value.tolist()
        else:
            np.testing.assert_allclose(b[name], value, atol=1e-6)


def test_states_of_a_results_file_continue_the_sequences(lstm, tmp_path):
    config = tmp_path / "net.yaml"
    config.write_text("model: {input_size: 2, layers: [{type: lstm, hidden_size: 3}]}")
    x = np.random.default_rng(1).standard_normal((4, 10, 2)).astype(np.float32)
    for name, part in (("all", x), ("first", x[:, :6]), ("second", x[:, 6:])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["inputs"] = part
        arguments = ["--state", tmp_path / "first.out"] if name == "second" else []
        outcome = lstm(
            "run",
            config,
            tmp_path / f"{name}.h5",
            "--output",
            tmp_path / f"{name}.out",
            "--batch-size",
            3,
            *arguments,
        )
        assert outcome.code == 0, outcome.err
    whole, second = read(tmp_path / "all.out")[0], read(tmp_path / "second.out")[0]
    np.testing.assert_allclose(second["outputs"], whole["outputs"][:, 6:], atol=1e-6)
    np.testing.assert_allclose(second["state/0/c"], whole["state/0/c"], atol=1e-6)


def test_states_of_another_network_are_refused(lstm, config, data, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("model: {input_size: 5, layers: [{type: lstm, hidden_size: 4}]}")
    lstm("run", other, data, "--output", tmp_path / "s.h5")
    outcome = lstm("run", config, data, "--state", tmp_path / "s.h5")
    assert outcome.code == 3
    assert "s.h5" in outcome.err


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_states_that_are_not_finite_are_named(lstm, tmp_path, data, value):
    config = tmp_path / "net.yaml"
    config.write_text("model: {input_size: 5, layers: [{type: gru, hidden_size: 4}]}")
    h = np.zeros((7, 1, 4), np.float32)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["state/0/h"] = h
    arguments = ("--state", tmp_path / "s.h5", "--engine", "reference", "--batch-size", 2)
    assert "NaN" not in lstm("run", config, data, *arguments).err
    h[5, 0, 2] = value
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["state/0/h"][...] = h
    outcome = lstm("run", config, data, *arguments)
    assert "s.h5:/state/0/h holds NaN or infinity, for example in sequence 5" in outcome.err


def test_gates_are_written_and_satisfy_the_equations(lstm, tmp_path, data):
    config = tmp_path / "net.yaml"
    config.write_text("model: {input_size: 5, layers: [{type: lstm, hidden_size: 4}]}")
    gates = tmp_path / "gates.h5"
    assert lstm("run", config, data, "--gates", gates, "--batch-size", 2).code == 0
    found, _ = read(gates)
    i, f, g, o, h, c = (found[f"layers/0/forward/{name}"] for name in "ifgohc")
    assert i.shape == (7, 9, 4)
    np.testing.assert_allclose(c[1, 1:], f[1, 1:] * c[1, :-1] + i[1, 1:] * g[1, 1:], atol=1e-6)
    np.testing.assert_allclose(h[1], o[1] * np.tanh(c[1]), atol=1e-6)
    assert (i[2, 1:] == 0).all()


def test_stateful_rows_continue_from_batch_to_batch(lstm, tmp_path):
    layers = "[{type: lstm, hidden_size: 3, stateful: true}]"
    config = tmp_path / "net.yaml"
    config.write_text(f"model: {{input_size: 2, layers: {layers}}}")
    x = np.random.default_rng(1).standard_normal((6, 5, 2)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = x
    out = tmp_path / "out.h5"
    assert lstm("run", config, tmp_path / "x.h5", "--output", out, "--batch-size", 3).code == 0
    model = lstm_cli.build(
        {"model": {"input_size": 2, "layers": [{"type": "lstm", "hidden_size": 3}]}}
    )
    whole = model.run(np.concatenate([x[:3], x[3:]], axis=1))
    found, _ = read(out)
    np.testing.assert_allclose(found["outputs"][3:], whole.outputs[:, 5:], atol=1e-6)
    # Another file starts anew.
    both = tmp_path / "both.h5"
    paths = [tmp_path / "x.h5", tmp_path / "x.h5"]
    lstm("run", config, *paths, "--output", both, "--batch-size", 3)
    twice, _ = read(both)
    np.testing.assert_array_equal(twice["outputs"][:6], twice["outputs"][6:])


def test_several_files_are_one_dataset(lstm, config, data, tmp_path):
    out = tmp_path / "out.h5"
    outcome = lstm("run", config, data, data, "--output", out)
    assert "14 sequences" in outcome.out
    found, _ = read(out)
    np.testing.assert_array_equal(found["outputs"][:7], found["outputs"][7:])


def test_a_weights_file_runs_without_a_config(lstm, config, data, tmp_path):
    model = lstm_cli.build(config, seed=9)
    model.save(tmp_path / "model.safetensors")
    first = lstm("run", tmp_path / "model.safetensors", data, "--output", tmp_path / "a.h5")
    assert first.code == 0
    assert "weights random" not in first.out
    lstm("run", config, data, "--seed", 9, "--output", tmp_path / "b.h5")
    a, b = read(tmp_path / "a.h5")[0], read(tmp_path / "b.h5")[0]
    np.testing.assert_array_equal(a["outputs"], b["outputs"])


def test_set_and_dtype_reach_the_network(lstm, config, data):
    outcome = lstm(
        "run",
        config,
        data,
        "--set",
        "model.layers.1.hidden_size=11",
        "--dtype",
        "float64",
        "--json",
    )
    document = outcome.json
    assert document["dtype"] == "float64"
    assert document["layers"][1]["directions"][0]["gates"][0]["U"] == [11, 11]


def test_targets_that_do_not_fit_are_noted_unless_a_loss_was_named(lstm, config, data):
    with h5py.File(data, "a") as file:
        file["targets"] = np.arange(7) % 3
    outcome = lstm("run", config, data)
    assert outcome.code == 0
    assert "targets were not used" in outcome.err
    named = lstm("run", config, data, "--set", "train.loss=mse")
    assert named.code == 3
    assert "words.h5:/targets" in named.err


def test_not_finite_outputs_are_said(lstm, config, data):
    with h5py.File(data, "a") as file:
        file["inputs"][1, 0, 0] = np.nan
    outcome = lstm("run", config, data)
    assert outcome.code == 0
    assert "1 of 7 sequences" in outcome.err
    assert "first sequence 1" in outcome.err
    assert lstm("run", config, data, "--quiet").err == ""


def test_sunspots_windows(lstm):
    outcome = lstm("run", "configs/sunspots.yaml", "data/sunspots.h5", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["output"]["shape"] == [290, 1]
    assert {"loss", "mse", "mae"} == set(outcome.json["metrics"])


def test_tmva_network(lstm):
    outcome = lstm("run", "configs/tmva-time.yaml", "data/tmva-time.h5:/test", "--json")
    assert set(outcome.json["metrics"]) == {"loss", "accuracy", "auc"}


def test_every_option(lstm):
    outcome = lstm("run", "configs/every-option.yaml", VOWELS)
    assert outcome.code == 0, outcome.err
    for direction in ("gate, forward", "gate, reverse"):
        assert direction in outcome.out


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_states_that_an_onnx_model_is_not_fed(direction, lstm, tmp_path):
    """Initial states that the model has itself stay 0 with any --state, even with h alone."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, stored = onnx.helper, onnx.numpy_helper.from_array
    rng, real = np.random.default_rng(1), onnx.TensorProto.FLOAT
    shapes = {"X": [2, 1, 4], "initial_h": [1, 1, 3]}
    tensors = {n: rng.standard_normal((1, 12, k)).astype("f4") for n, k in (("W", 4), ("R", 3))}
    slots = ["X", "W", "R", "", "", "initial_h"]
    node = helper.make_node("LSTM", slots, ["Y"], hidden_size=3, direction=direction)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, real, shape) for n, shape in shapes.items()],
        [helper.make_tensor_value_info("Y", real, None)],
        [stored(value, n) for n, value in tensors.items()],
    )
    opset, path = [helper.make_opsetid("", 14)], tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    fed = {n: rng.standard_normal(shape).astype("f4") for n, shape in shapes.items()}
    (expected,) = onnxruntime.InferenceSession(str(path)).run(None, fed)
    expected, h = expected[:, 0].transpose(1, 0, 2), fed["initial_h"].transpose(1, 0, 2)
    x = fed["X"].transpose(1, 0, 2)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["inputs"] = x
    for states in ({"h": h}, {"h": h, "c": h + 1}, {"h": h, "c": np.ones((9, 9))}):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file.update({f"state/0/{letter}": value for letter, value in states.items()})
        arguments = ("--state", tmp_path / "s.h5", "--output", tmp_path / "o.h5")
        outcome = lstm("run", path, tmp_path / "d.h5", *arguments)
        assert outcome.code == 0, outcome.err
        words = " ".join(outcome.err.split())
        assert "no input initial_c: its c (layer 0) begins with 0" in words
        assert "laid out as (T, 1, N, 3)" in words
        found, _ = read(tmp_path / "o.h5")
        np.testing.assert_allclose(found["outputs"], expected, rtol=0, atol=1e-6)
        arguments = {f"state.0.{k}": v for k, v in states.items() if v.shape == h.shape}
        arguments |= {k: v[:, 0] for k, v in arguments.items() if len(states) == 1}  # (N, H)
        np.savez(tmp_path / "r.npz", inputs=x, outputs=expected, **arguments)
        outcome = lstm(
            "convert", path, tmp_path / "m.st.safetensors", "--check", tmp_path / "r.npz"
        )
        assert outcome.code == 0, outcome.err
    assert "takes an initial c in layer 0" in " ".join(outcome.err.split())
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["state/0/c"] = h
    outcome = lstm("run", path, tmp_path / "d.h5", "--state", tmp_path / "s.h5")
    assert outcome.code == 3
    assert "state/0/h does not exist" in outcome.err
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["state/0/h"] = np.zeros((1, 4, 3))
    outcome = lstm("run", path, tmp_path / "d.h5", "--state", tmp_path / "s.h5")
    assert outcome.code == 3
    assert ("or (1, 1, 3) of the reverse" in outcome.err) is (direction == "reverse")


def test_an_onnx_attribute_of_another_type(lstm, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(np.ones((1, 4, 1), "f4"), name) for name in ("W", "R")]
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], name="cell", hidden_size=1, clip=1)
    values = [helper.make_tensor_value_info(name, real, [3, 1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], weights)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]), path)
    outcome = lstm("run", path, VOWELS)
    assert outcome.code == 4
    for part in ("node cell (LSTM)", "attribute clip", "expected type FLOAT", "found type INT"):
        assert part in outcome.err


STREAMED = """\
model:
  input_size: 2
  layers: [{type: lstm, hidden_size: 4}, {type: dense, units: 3}]
"""


def test_steps_from_standard_input(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(STREAMED)
    command = [sys.executable, "-m", "lstm_cli", "run", str(path), "--stream", "csv"]
    result = subprocess.run(command, input=b"1,2\n3,-1\n", capture_output=True)
    assert result.returncode == 0
    outputs = [[float(n) for n in line.split(b",")] for line in result.stdout.splitlines()]
    net = lstm_cli.build(str(path))
    expected = net.run(np.array([[[1, 2], [3, -1]]], np.float32)).outputs[0]
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    assert b"2 steps, computed on cpu" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("x.h5",),
        ("--output", "o.h5"),
        ("--gates", "g.h5"),
        ("--state", "s.h5"),
        ("--shard", "1/2"),
        ("--workers", "2"),
        ("--dask", "tcp://x"),
        ("--batch-size", "64"),
        ("--json",),
    ],
)
def test_a_stream_excludes_what_belongs_to_files(lstm, tmp_path, arguments):
    path = tmp_path / "s.yaml"
    path.write_text(STREAMED)
    outcome = lstm("run", path, "--stream", "f32", *arguments)
    assert outcome.code == 2
    name = arguments[0] if arguments[0].startswith("--") else "DATA"
    assert f"a stream and {name} exclude one another" in outcome.out + outcome.err


def test_a_network_of_both_directions_has_no_stream(lstm, config):
    outcome = lstm("run", config, "--stream", "csv")
    assert outcome.code == 4
    assert "layer 0 (lstm) reads every sequence from its end" in outcome.err
