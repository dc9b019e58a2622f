"""`lstm-cli convert`: a file appears only once it is proven right; all formats, any folder."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import h5py
import keras_files
import numpy as np
import pytest
from networks import random_inputs, random_weights, recurrent
from repository import ROOT

import lstm_cli
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.workflows.convert.equivalence import random_input

VOWELS = ROOT / "data" / "japanese-vowels.safetensors"
TEST = ROOT / "data" / "japanese-vowels.h5"

LSTM = {"type": "lstm", "hidden_size": 6, "bidirectional": True}
GRU = {"type": "gru", "hidden_size": 4, "return_sequences": False}
HEAD = {"type": "dense", "units": 3, "activation": "softmax"}
NETWORK = {
    "model": {"input_size": 5, "layers": [LSTM, {"type": "dropout", "rate": 0.1}, GRU, HEAD]}
}
TMVA = {
    "model": {
        "input_size": 5,
        "steps": 7,
        "layers": [{"type": "lstm", "hidden_size": 5}, {"type": "flatten"}, HEAD],
    }
}
TMVA["model"]["layers"][2] = {"type": "dense", "units": 3, "activation": "tanh"}
ALONE = ("--set", "model.layers.1.return_sequences=false")
ALONE += ("--set", "model.layers.2.activation=softmax")


def model(mapping, dtype="float32", seed=3):
    """A model of a config, with distinct weights."""
    specs = lstm_cli.build(mapping, engine="reference").config.specs
    weights = {name: v.astype(dtype) for name, v in random_weights(specs, seed).items()}
    return lstm_cli.build(mapping, engine="reference", dtype=dtype, weights=weights)


@pytest.fixture
def native(tmp_path):
    """The network as a native file."""
    path = tmp_path / "net.safetensors"
    model(NETWORK).save(path)
    return path


def outputs(path, **options):
    net = lstm_cli.load(path, engine="reference", dtype="float64", **options)
    return net.run(random_inputs(3, 7, 5), [7, 2, 5]).outputs


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".pt", ".weights.h5"])
def test_there_and_back(lstm, native, tmp_path, suffix):
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    first = lstm("convert", native, there, "--json")
    assert first.code == 0, first.err
    document = first.json
    assert document["destination"]["path"] == str(there)
    assert document["proof"]["largest_difference"] <= 1e-5
    assert (document["proof"]["sequences"], document["proof"]["steps"]) == (4, 7)
    assert [layer["index"] for layer in document["layers"]] == [0, 1, 2, 3]
    assert document["check"] is None
    tensors_only = suffix in (".pt", ".weights.h5")
    words = " ".join(document["notes"]).split()
    settings = [word for word in words if word.startswith("model.layers.") and "=" in word]
    assert bool(settings) == tensors_only
    alone = [part for word in settings for part in ("--set", word)]
    second = lstm("convert", there, back, *alone)
    assert second.code == 0, second.err
    np.testing.assert_allclose(outputs(back), outputs(native), rtol=0, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [native.name, there.name, back.name]
    )


def test_networks_that_tmva_can_store(lstm, tmp_path):
    path, xml, back = (tmp_path / name for name in ("a.safetensors", "a.xml", "b.safetensors"))
    model(TMVA).save(path)
    assert lstm("convert", path, xml).code == 0
    refused = lstm("convert", xml, back)
    options = ()
    if refused.code:  # as many units as features, so that nothing tells the two writers apart
        assert refused.code == 4
        assert "--tmva-order" in refused.err
        options = ("--tmva-order", "slots")
    assert lstm("convert", xml, back, *options).code == 0
    np.testing.assert_allclose(outputs(back), outputs(path), rtol=0, atol=1e-7)
    assert lstm("run", xml, "none.h5", *options).code == 3  # it is the data that are missing


def test_a_network_that_tmva_cannot_store(lstm, native, tmp_path):
    outcome = lstm("convert", native, tmp_path / "a.xml")
    assert outcome.code == 4
    assert "hint" in outcome.err or "layer 0" in outcome.err
    assert not (tmp_path / "a.xml").exists()


def test_the_report(lstm, native, tmp_path, monkeypatch):
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        outcome = lstm("convert", "--quiet", native.name, "a.onnx")
        assert outcome.code == 0
        assert outcome.err == ""
        assert "i f g o" in outcome.out
        assert "i o f c" in outcome.out
        assert "largest difference 0 (at most 1e-05); all weights have the same bits" in outcome.out
        assert max(map(len, outcome.out.splitlines())) <= columns


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def swapped(export):
    """Exchange two gates of one direction in an export."""
    tensors = dict(export.tensors)
    name = "layers.0.reverse.weight_hh"
    i, f, g, o = np.split(tensors[name], 4)
    tensors[name] = np.concatenate([f, i, g, o])
    return type(export)(**{**vars(export), "tensors": tensors})


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".pt", ".safetensors"])
def test_a_wrong_file_never_appears(lstm, native, tmp_path, monkeypatch, suffix):
    write, path = registry.write, tmp_path / f"wrong{suffix}"
    path.write_text("older")
    monkeypatch.setattr(
        registry, "write", lambda p, f, export, *rest: write(p, f, swapped(export), *rest)
    )
    outcome = lstm("convert", native, path, "--force")
    assert outcome.code == 1
    assert "does not compute" in outcome.err
    assert path.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([native.name, path.name])


def test_one_wrong_number_of_a_bias_is_noticed(lstm, native, tmp_path, monkeypatch):
    write = registry.write

    def planted(path, format, export, *rest):
        tensors = dict(export.tensors)
        tensors["layers.2.bias_hh"] = tensors["layers.2.bias_hh"].copy()
        tensors["layers.2.bias_hh"][-1] += 1e-3
        return write(path, format, type(export)(**{**vars(export), "tensors": tensors}), *rest)

    monkeypatch.setattr(registry, "write", planted)
    assert lstm("convert", native, tmp_path / "a.onnx").code == 1


def reference(path, native, **changes):
    """Write inputs, lengths and states, and the outputs of the network."""
    net = lstm_cli.load(native, engine="reference", dtype="float64")
    rng = np.random.default_rng(1)
    x, lengths = random_inputs(70, 6, 5), rng.integers(1, 7, 70)
    h, c = (rng.standard_normal((70, 2, 6)) for _ in range(2))
    g = rng.standard_normal((70, 1, 4))
    arrays = {"inputs": x, "lengths": lengths, "state.0.h": h, "state.0.c": c, "state.2.h": g[:, 0]}
    arrays["outputs"] = net.run(x, lengths, [(h, c), (g, None)]).outputs.astype(np.float32)
    arrays.update(changes)
    np.savez(path, **arrays)
    return arrays


def test_check(lstm, native, tmp_path):
    file = tmp_path / "r.npz"
    arrays = reference(file, native)
    outcome = lstm("convert", native, "a.onnx", "--check", file, "--json")
    assert outcome.code == 0, outcome.err
    check = outcome.json["check"]
    assert check["largest_difference"] < 1e-6
    assert (check["sequences"], check["states"]) == (70, True)
    with h5py.File("r.h5", "w") as h5:
        for name, value in arrays.items():
            h5[f"there/{name.replace('.', '/')}"] = value
    assert lstm("convert", native, "b.onnx", "--check", "r.h5:/there").code == 0


def test_check_in_other_shapes(lstm, native):
    net = lstm_cli.load(native, engine="reference", dtype="float64")
    rows, lengths = random_inputs(1, 9, 5)[0], np.array([4, 5])
    padded = np.zeros((2, 5, 5))
    padded[0, :4], padded[1] = rows[:4], rows[4:]
    y = net.run(padded, lengths).outputs
    np.savez("flat.npz", x=rows, y=y, lengths=lengths)
    np.savez("one.npz", input=rows[:4], output=y[0])
    for name in ("flat.npz", "one.npz"):
        outcome = lstm("convert", native, "a.onnx", "--check", name)
        assert outcome.code == 0, outcome.err


def test_check_ignores_the_padding(lstm, tmp_path):
    model({"model": {"input_size": 5, "layers": [LSTM]}}).save("seq.safetensors")
    net = lstm_cli.load("seq.safetensors", engine="reference", dtype="float64")
    x, lengths = random_inputs(3, 6, 5), np.array([6, 1, 3])
    y = net.run(x, lengths).outputs.copy()
    y[1, 1:], y[2, 3:] = 7.0, np.nan
    np.savez("r.npz", inputs=x, outputs=y, lengths=lengths)
    outcome = lstm("convert", "seq.safetensors", "a.onnx", "--check", "r.npz")
    assert outcome.code == 0, outcome.err
    y[2, 2, 4] += 1e-3
    np.savez("r.npz", inputs=x, outputs=y, lengths=lengths)
    outcome = lstm("convert", "seq.safetensors", "a.onnx", "--check", "r.npz")
    assert outcome.code == 1
    assert "sequence 2, step 2, feature 4" in outcome.err


def test_a_check_that_fails_names_the_place(lstm, native, tmp_path):
    file = tmp_path / "r.npz"
    y = reference(file, native)["outputs"].copy()
    y[65, 2] += 0.01
    reference(file, native, outputs=y)
    outcome = lstm("convert", native, "a.onnx", "--check", file)
    assert outcome.code == 1
    assert "sequence 65, feature 2" in outcome.err
    assert not Path("a.onnx").exists()
    assert lstm("convert", native, "a.onnx", "--check", file, "--tolerance", "0.1").code == 0


def damaged(name):
    arrays = {"inputs": np.zeros((2, 3, 5)), "outputs": np.zeros((2, 3))}
    if name == "pickle":
        arrays["inputs"] = np.array([{"a": 1}], dtype=object)
    if name == "no outputs":
        del arrays["outputs"]
    if name == "features":
        arrays["inputs"] = np.zeros((2, 3, 4))
    if name == "every step":
        arrays["outputs"] = np.zeros((2, 3, 3))
    if name == "state":
        arrays["state.1.h"] = np.zeros((2, 4))
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    if name == "huge":
        data = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            data, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3, 5)}
        )
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("inputs.npy", data.getvalue())
            archive.writestr("outputs.npy", data.getvalue())
    if name == "bomb":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inputs.npy", bytes(50 << 20))
    return b"PK\3\4no" if name == "cut off" else stream.getvalue()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pickle", "does not hold numbers"),
        ("no outputs", "holds no outputs"),
        ("features", "4 features"),
        ("every step", "return_sequences=true"),
        ("state", "state.1.h"),
        ("huge", "declares a shape"),
        ("bomb", "unpacks"),
        ("cut off", "r.npz"),
    ],
)
def test_a_reference_that_cannot_be_used(lstm, native, name, message):
    Path("r.npz").write_bytes(damaged(name))
    outcome = lstm("convert", native, "a.onnx", "--check", "r.npz")
    assert outcome.code == 3
    assert message in outcome.err
    assert not Path("a.onnx").exists()


def test_usage(lstm, native, tmp_path):
    def code(*arguments):
        outcome = lstm("convert", *arguments)
        assert outcome.err.startswith("error: ")
        return outcome.code, outcome.err

    number, err = code(native, "out.dat")
    assert number == 2
    assert "--to" in err
    assert code(native, "out.dat", "--to", "onxx")[0] == 2
    assert code(native, native)[0] == 2
    assert code(native, "out.pt", "--lengths")[0] == 2
    assert code(native, "out.keras", "--states")[0] == 2
    os.link(native, "hard.safetensors")
    Path("soft.safetensors").symlink_to(native)
    before = native.read_bytes()
    for name in ("hard.safetensors", "soft.safetensors"):
        assert code(native, name)[0] == 2
    assert native.read_bytes() == before
    assert code("none.pt", "a.onnx")[0] == 4
    assert code(tmp_path, "a.onnx")[0] == 4
    assert code(native, "nowhere/a.onnx")[0] == 1
    Path("folder.onnx").mkdir()
    assert code(native, "folder.onnx")[0] == 1
    assert code(native, "a.onnx", "--config", "none.yaml")[0] == 4
    assert code(native, "a.onnx", "--set", "model.layers.2.hidden_size=9")[0] == 4
    Path("words.txt").write_text("no weights")
    assert code("words.txt", "a.onnx")[0] == 4


def test_suffixes_of_another_format(lstm, native):
    assert lstm("convert", native, "a.safetensors", "--to", "pytorch").code == 0
    assert registry.detect_format(Path("a.safetensors")).name == "pytorch"
    assert lstm("convert", "a.safetensors", "b.model", "--to", "onnx", *ALONE).code == 0
    assert registry.detect_format(Path("b.model")).name == "onnx"
    np.testing.assert_allclose(outputs("b.model"), outputs(native), rtol=0, atol=1e-6)


def test_dtype(lstm, tmp_path):
    model(NETWORK, "float64").save("wide.safetensors")
    for dtype in ("float32", "float64"):
        outcome = lstm("convert", "wide.safetensors", "a.pt", "--dtype", dtype, "--json", "--force")
        assert outcome.code == 0, outcome.err
        assert outcome.json["dtype"] == dtype
        tensors = registry.read("a.pt", ReadOptions()).tensors
        assert {str(value.dtype) for value in tensors.values()} == {dtype}


def test_weights_without_layers_need_a_config(lstm, native, tmp_path):
    from lstm_cli.formats import native as codec

    codec.write("bare.safetensors", lstm_cli.load(native, engine="reference").weights, None)
    outcome = lstm("convert", "bare.safetensors", "a.onnx")
    assert outcome.code == 4
    assert "--config" in outcome.err
    Path("net.yaml").write_text(lstm_cli.load(native, engine="reference").config.to_yaml())
    assert lstm("convert", "bare.safetensors", "a.onnx", "--config", "net.yaml").code == 0
    np.testing.assert_allclose(outputs("a.onnx"), outputs(native), rtol=0, atol=1e-6)


def test_the_shipped_weights_through_onnx(lstm):
    assert lstm("convert", VOWELS, "out.onnx").code == 0
    outcome = lstm("run", "out.onnx", f"{TEST}:/test", "--json")
    assert outcome.code == 0, outcome.err
    assert round(outcome.json["metrics"]["accuracy"], 4) == 0.9865
    assert lstm("convert", "out.onnx", "back.safetensors").code == 0
    back, source = (registry.read(p, ReadOptions()).tensors for p in ("back.safetensors", VOWELS))
    assert [v.tobytes() for v in back.values()] == [v.tobytes() for v in source.values()]


def test_any_format_with_a_config(lstm, native, data):
    """Layers without weights are counted in the config, and not in the file."""
    Path("net.yaml").write_text(lstm_cli.load(native, engine="reference").config.to_yaml())
    assert lstm("convert", native, "a.pt").code == 0
    expected = lstm("run", native, data, "--output", "a.h5")
    outcome = lstm("run", "net.yaml", data, "--weights", "a.pt", "--output", "b.h5")
    assert (expected.code, outcome.code) == (0, 0)
    assert "--set" not in outcome.err
    alone = lstm("run", "a.pt", data, *ALONE, "--output", "c.h5")
    assert alone.code == 0, alone.err
    with h5py.File("a.h5") as a, h5py.File("b.h5") as b, h5py.File("c.h5") as c:
        np.testing.assert_array_equal(a["outputs"], b["outputs"])
        np.testing.assert_array_equal(a["outputs"], c["outputs"])
    assert "note: " in lstm("run", "a.pt", data).err
    wrong = Path("net.yaml").read_text().replace("hidden_size: 6", "hidden_size: 7")
    Path("wrong.yaml").write_text(wrong)
    outcome = lstm("run", "wrong.yaml", data, "--weights", "a.pt")
    assert outcome.code == 4
    assert "expected (7, 5) = (H, D)" in outcome.err


def test_python(native, lstm):
    lstm("convert", native, "a.pt")
    net = lstm_cli.load("a.pt", engine="reference")
    assert any("--set" in note for note in net.notes)
    config = lstm_cli.load(native, engine="reference").config.to_yaml()
    Path("net.yaml").write_text(config)
    net = lstm_cli.load("a.pt", config="net.yaml", engine="reference", format="pytorch")
    assert not any("--set" in note for note in net.notes)
    assert lstm_cli.build("a.pt", engine="reference").config.name == "a"
    with pytest.raises(lstm_cli.LstmCliError):
        lstm_cli.load("a.pt", format="onnx")


def test_pytorch_to_native_to_onnx_to_its_runtime(lstm):
    torch = pytest.importorskip("torch")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(5)
    lstm_layer = torch.nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    net = torch.nn.ModuleDict({"rnn": lstm_layer, "head": torch.nn.Linear(12, 3)})
    torch.save({"encoder." + key: value for key, value in net.state_dict().items()}, "net.pt")
    x = random_inputs(4, 9, 5).astype(np.float32)
    with torch.no_grad():
        y = net["head"](lstm_layer(torch.from_numpy(x))[0]).numpy()
    np.savez("r.npz", inputs=x, outputs=y)
    first = ("convert", "net.pt", "net.safetensors", "--prefix", "encoder", "--check", "r.npz")
    outcome = lstm(*first)
    assert outcome.code == 0, outcome.err
    assert lstm("convert", "net.safetensors", "net.onnx").code == 0
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], y, rtol=0, atol=2e-5)
    np.savez("r.npz", inputs=x, outputs=y[..., ::-1])
    Path("net.safetensors").unlink()
    assert lstm(*first).code == 1
    assert not Path("net.safetensors").exists()


def test_data_in_the_place_of_the_config(lstm, data, config):
    outcome = lstm("run", data, config)
    assert outcome.code == 4
    assert "hint: the config comes before the data" in outcome.err


def test_a_large_layer_takes_seconds():
    assert random_input([recurrent("lstm", 2048, 2048)], None, states=True).x.shape[:2] == (4, 7)
    assert random_input([recurrent("lstm", 16384, 8192)], 1000, states=False).x.shape[:2] == (2, 2)


ALIKE = """\
model:
  input_size: 5
  layers:
    - {type: lstm, hidden_size: 5}
    - {type: dropout, rate: 0.1}
    - {type: gru, hidden_size: 5}
    - {type: dense, units: 5}
"""


def test_weights_whose_layer_order_needs_a_config(lstm, data, tmp_path):
    """The error for such a Keras file proposes a config, in every command that takes one."""
    config, native = tmp_path / "c.yaml", tmp_path / "n.safetensors"
    weights = tmp_path / "k.weights.h5"
    config.write_text(ALIKE)
    lstm_cli.build(config).save(native)
    assert lstm("convert", native, weights).code == 0
    assert lstm("run", weights, data).code == 0  # lstm-cli wrote the order into the file
    weights.write_bytes(keras_files.copied(weights.read_bytes()))  # as Keras writes it
    outcome = lstm("run", weights, data)
    assert outcome.code == 4
    assert "several fit: layers/dense -> layers/gru -> layers/lstm" in outcome.err
    assert "lstm-cli run CONFIG DATA --weights FILE" in outcome.err
    assert "lstm-cli convert FILE DST --config CONFIG" in outcome.err

    expected, actual = tmp_path / "e.h5", tmp_path / "f.h5"
    assert lstm("run", native, data, "--output", expected).code == 0
    outcome = lstm("run", config, data, "--weights", weights, "--output", actual)
    assert outcome.code == 0
    assert "the order is that of the config" in outcome.err
    with h5py.File(expected) as one, h5py.File(actual) as other:
        np.testing.assert_array_equal(one["outputs"], other["outputs"])
    assert lstm("convert", weights, tmp_path / "o.onnx", "--config", config).code == 0
    assert lstm("inspect-shapes", config, "--weights", weights).code == 0
    assert lstm("compare", native, weights, "--config", config).code == 0
    assert lstm_cli.load(weights, config=config).config.model.input_size == 5
    config.write_text(ALIKE.replace("gru", "lstm"))
    outcome = lstm("run", config, data, "--weights", weights)
    assert outcome.code == 4
    assert "the file's layers are not those of the config" in outcome.err
