"""A terminal gets only printable text of names from files.

Every format, its names full of control characters, through every command that reads it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import unicodedata
import zipfile
from pathlib import Path

import h5py
import keras_files
import numpy as np
import onnx
import pytest
import tmva_files
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

import lstm_cli
from lstm_cli.cli.display.console import Console
from lstm_cli.errors import Problem, printable, quote

EVIL = "a\x1b[35;5mb\x07\r\nc\x9b35md\u202ee\x7f[red]f[/red][/][link=x]g\t:bomb:h"
SHOWN = r"a\x1b[35;5mb\x07\r\nc\x9b35md\u202ee\x7f[red]f[/red][/][link=x]g\t:bomb:h"
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[[12][AK]")
"""Colors and moving bars as rich writes them; `EVIL` has other ones."""
D, H, T = 5, 3, 4


def sequences(path, name="inputs"):
    with h5py.File(path, "w") as file:
        file[name] = np.random.default_rng(2).standard_normal((3, T, D)).astype("f4")
    return path


def hdf5(path):
    sequences(path)
    with h5py.File(path, "a") as file:
        file.attrs[EVIL] = EVIL
        file[f"{EVIL}/{EVIL}"] = [EVIL]
        file["targets"] = np.array([0, 1, 1])
        file["inputs"].attrs[EVIL] = EVIL
        file[EVIL.replace("a", "z")] = np.zeros((3, T, D))
        file["link"] = h5py.SoftLink(EVIL)
        file["away"] = h5py.ExternalLink(EVIL, EVIL)
    return path


def groups(path):
    with h5py.File(path, "w") as file:
        for k in range(3):
            file[f"{EVIL}{k}/{EVIL}"] = np.zeros((T + k, D), "f4")
    return path


def labels(path):
    hdf5(path)
    with h5py.File(path, "a") as file:
        file["labels"] = ["plain", EVIL]
        file["targets"].attrs["classes"] = [EVIL, "plain"]
    return path


def config(path):
    layers = [{"type": EVIL, EVIL: EVIL}, {"type": "dense", "units": EVIL}]
    path.write_text(json.dumps({"model": {"input_size": D, "layers": layers}, EVIL: {EVIL: EVIL}}))
    return path


def half_config(path):
    layers = [{"type": "lstm", "hidden_size": H}]
    data = {"inputs": EVIL, "layout": "dense"}
    path.write_text(json.dumps({"model": {"input_size": D, "layers": layers}, "data": data}))
    return path


def broken_yaml(path):
    path.write_text('"' + EVIL.replace("\x1b", "") + ": [\n *" + "x" * 3)
    return path


NET = {"model": {"input_size": D, "layers": [{"type": "lstm", "hidden_size": H}]}}


def native(path):
    lstm_cli.build(NET, engine="reference").save(path)
    tensors = load_file(path)
    text = json.dumps(NET["model"] | {EVIL: EVIL})
    save_file(tensors | {EVIL: np.zeros(3)}, path, {"config": f"model: {text}", EVIL: EVIL})
    return path


def state_dict(path):
    tensors = {f"rnn.{name}": value for name, value in torch_tensors().items()}
    save_file(tensors | {f"{EVIL}.weight": np.zeros((2, H), "f4"), EVIL: np.zeros(3)}, path)
    return path


def torch_tensors():
    rng = np.random.default_rng(1)
    shapes = {"weight_ih_l0": (4 * H, D), "weight_hh_l0": (4 * H, H), "bias_ih_l0": (4 * H,)}
    made = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    return made | {"bias_hh_l0": np.zeros(4 * H, "f4")}


def checkpoint(path):
    """A .pt of nothing but names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({EVIL: EVIL, EVIL + "2": {EVIL: [EVIL]}}, 2))
        archive.writestr("w/version", "3\n")
    return path


def keras_h5(path, whole=True):
    keras_model = keras_files.drawn("LSTM", D, H, np.random.default_rng(1))
    keras_model = keras_files.cell_names(EVIL, keras_model)
    first = {"batch_input_shape": [None, None, D], "units": H, "return_sequences": True}
    layers = [keras_files.entry("LSTM", EVIL, **first), keras_files.entry(EVIL, EVIL)]
    model = {"class_name": "Sequential", "config": {"name": EVIL, "layers": layers}}
    return keras_files.legacy(path, {EVIL: keras_model}, model if whole else None)


def keras_weights(path):
    return keras_h5(path, whole=False)


def keras(path):
    layers = [keras_files.entry("LSTM", EVIL, units=H), keras_files.entry(EVIL, EVIL)]
    model = {"class_name": "Sequential", "config": {"name": EVIL, "layers": layers}}
    weights = path.with_name("w.h5")
    with h5py.File(weights, "w") as file:
        file[f"layers/{EVIL}/vars/0"] = np.zeros((D, 4 * H))
    parts = {"config.json": json.dumps(model).encode(), "model.weights.h5": weights.read_bytes()}
    return keras_files.packed(path, {**parts, "metadata.json": b'{"keras_version": "3.0"}'})


def onnx_file(path, kind="LSTM", domain=""):
    rng = np.random.default_rng(1)
    tensors = {f"{EVIL}W": (1, 4 * H, D), f"{EVIL}R": (1, 4 * H, H)}
    onnx_node = [
        numpy_helper.from_array(rng.standard_normal(s).astype("f4"), n) for n, s in tensors.items()
    ]
    node = helper.make_node(
        kind, [f"{EVIL}x", *tensors], [f"{EVIL}y"], EVIL, hidden_size=H, domain=domain
    )
    ends = [
        helper.make_tensor_value_info(f"{EVIL}{n}", TensorProto.FLOAT, s)
        for n, s in (("x", [T, EVIL, D]), ("y", [T, 1, EVIL, H]))
    ]
    graph = helper.make_graph([node], EVIL, ends[:1], ends[1:], onnx_node)
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid(EVIL, 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name=EVIL, ir_version=8)
    model.metadata_props.add(key=EVIL, value=EVIL)
    onnx.save(model, path)
    return path


def onnx_unknown(path):
    return onnx_file(path, kind=EVIL)


def onnx_domain(path):
    return onnx_file(path, kind=EVIL, domain=EVIL)


def tmva(path):
    """XML holds no control character but the C1's, line ends, and the invisible ones."""
    evil = "a&#x9b;35m&#x202e;&#13;&#10;&#x7f;[red][/]"
    layer = tmva_files.recurrent("LSTMLayer", D, H, T, np.random.default_rng(1))
    text = tmva_files.text([layer], shape=(T, D), Initialization=evil, OutputFunction=evil)
    path.write_text(text.replace("TMVA_LSTM", evil).replace("4.2.1", evil))
    return path


def tmva_named(path):
    text = tmva(path).read_text().replace("a &lt; b", "a&#x9b;35m&#x202e;&#x7f;")
    path.write_text(text.replace('NTransformations="0"', 'NTransformations="&#x9b;35m&#x202e;"'))
    return path


MODELS = {
    "c.yaml": (config, half_config, broken_yaml),
    "n.safetensors": (native, state_dict),
    "s.pt": (checkpoint,),
    "k.h5": (keras_h5, keras_weights),
    "k.keras": (keras,),
    "o.onnx": (onnx_file, onnx_unknown, onnx_domain),
    "t.xml": (tmva, tmva_named),
}
"""Writers of a model in each format, by file name."""
DATA = (hdf5, groups, labels)


@pytest.fixture(params=["plain", "colors"])
def shown(request, lstm, in_tmp_path, monkeypatch):
    """Run a command; only printable characters may be written, and our own colors."""
    if request.param == "colors":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR")

    def run(*arguments):
        outcome = lstm(*arguments)
        assert "fault in lstm-cli" not in outcome.err
        text = outcome.out + outcome.err
        assert EVIL[1:7] not in text
        bad = {c for c in OURS.sub("", text) if not c.isprintable() and c != "\n"}
        assert not bad, (arguments, bad)
        if "--json" in arguments and outcome.out:
            json.loads(outcome.out)
        return outcome

    return run


FAST = ("--engine", "reference")


@pytest.mark.parametrize(
    ("name", "write"), [(name, write) for name, made in MODELS.items() for write in made]
)
def test_models(shown, tmp_path, name, write):
    write(tmp_path / name)
    sequences(tmp_path / "x.h5")
    more = [("--json",), ("--quiet",), ()]
    codes = [shown("run", name, "x.h5", *FAST, *options).code for options in more]
    shown("run", name, "x.h5", *FAST, "--state", name)
    shown("inspect-shapes", name, "x.h5")
    shown("inspect-shapes", name, "--json")
    shown("train", name, "x.h5", "--output", "run", *FAST)
    shown("convert", name, "new.safetensors", "--check", name)
    shown("convert", name, "new.onnx", "--prefix", EVIL)
    shown("compare", name, name, "--data", "x.h5")
    shown("compare", name, name, "--json")
    shown("data", name)
    half_config(tmp_path / "half.yaml")
    shown("run", "half.yaml", "x.h5", "--weights", name, *FAST)
    if codes[0] == 0:
        shown("bench", name, "--rounds", "1", "--batch", "1", "--steps", "2", *FAST)


@pytest.mark.parametrize("write", DATA)
def test_data(shown, tmp_path, write):
    write(tmp_path / "x.h5")
    (tmp_path / "c.yaml").write_text(json.dumps(NET))
    shown("data", "x.h5")
    shown("data", "x.h5", "--json")
    for part in ("x.h5", f"x.h5:/{EVIL}", f"x.h5:/{EVIL}/{EVIL}", "x.h5:/away", "x.h5:/link"):
        for more in ((), ("--set", f"data.targets={EVIL}"), ("--set", f"data.inputs={EVIL}")):
            shown("run", "c.yaml", part, *FAST, *more)
    loss = "--set", "train.loss=cross_entropy"
    shown("train", "c.yaml", "x.h5", "--output", "run", *FAST, *loss)
    shown("run", "c.yaml", "x.h5", *FAST, "--output", "o.h5", "--gates", "g.h5")
    shown("data", "g.h5")


def test_archives_of_arrays_and_baselines(shown, tmp_path):
    np.savez(tmp_path / "r.npz", **{EVIL: np.zeros(3), "inputs": np.zeros((2, T, D)), "outputs": 1})
    native(tmp_path / "n.safetensors")
    (tmp_path / "c.yaml").write_text(json.dumps(NET))
    shown("convert", "n.safetensors", "o.onnx", "--check", "r.npz")
    measured = "--hidden", "2", "--batch", "1", "--steps", "2", "--rounds", "1", *FAST
    assert shown("bench", *measured, "--save", "b.json").code == 0
    text = json.loads((tmp_path / "b.json").read_text())
    text["machine"] = {k: EVIL if isinstance(v, str) else v for k, v in text["machine"].items()}
    for changed in (text, text | {"mode": EVIL}, text | {EVIL: 1}, {EVIL: EVIL}, text["machine"]):
        (tmp_path / "b.json").write_text(json.dumps(changed))
        shown("bench", *measured, "--compare", "b.json")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_names_of_files_and_arguments(shown, tmp_path):
    name = EVIL.replace("/", "_") + os.fsdecode(b"\xff")
    (tmp_path / f"{name}.yaml").write_text(json.dumps(NET))
    sequences(tmp_path / f"{name}.h5")
    out = "--output", f"{name}.out.h5"
    for more in ((), ("--json",)):
        assert shown("run", f"{name}.yaml", f"{name}.h5", *FAST, *out, *more).code == 0
    shown("data", f"{name}.h5")
    shown("inspect-shapes", f"{name}.yaml", f"{name}.h5", "--weights", f"{name}.h5")
    shown("train", f"{name}.yaml", f"{name}.h5", "--output", name, "--set", "train.loss=mse")
    shown(EVIL)
    shown("run", EVIL, EVIL, f"--{EVIL}")
    for option in ("--set", "--batch-size", "--dtype", "--engine", "--device", "--threads"):
        shown("run", f"{name}.yaml", f"{name}.h5", option, EVIL)
    shown("run", f"{name}.yaml", f"{name}.h5", "--set", f"{EVIL}={EVIL}")
    shown("run", f"{name}.yaml", f"{name}.h5", "--set", f"model.layers={EVIL}")


def test_names_of_files_stand_in_commands_as_a_shell_takes_them(tmp_path):
    import subprocess

    for name in ("a b.h5", EVIL, "it's\x1b", "\\x41\x07", os.fsdecode(b"\xff\xfe")):
        assert quote(name).isprintable()
        if sys.platform == "linux" and Path("/bin/bash").exists():
            done = subprocess.run(
                ["/bin/bash", "-c", f"printf %s {quote(name)}"], capture_output=True, check=True
            )
            assert done.stdout == os.fsencode(name)


def test_a_traceback_is_printable_too(lstm, tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(NET))

    def broken(*_, **__):
        raise RuntimeError(EVIL)

    monkeypatch.setattr("lstm_cli.network.network.Network.run", broken)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(RuntimeError) as caught:
        lstm("run", tmp_path / "c.yaml", sequences(tmp_path / "x.h5"), *FAST, "--debug")
    sys.excepthook(caught.type, caught.value, caught.tb)
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert r"\x1b[35;5m" in text
    assert "\x1b" not in text


def test_problems_stand_on_their_own_lines():
    problem = Problem(EVIL, EVIL, EVIL, (EVIL,), EVIL)
    assert problem.lines() == [SHOWN, f"  expected {SHOWN}", f"  found {SHOWN}", f"  {SHOWN}"]
    assert problem.hint == SHOWN


def test_names_without_end_are_cut(lstm, tmp_path):
    for text in ("x" * 64_000, "漢" * 64_000, "a b " * 16_000, "\u202e" * 64_000):
        cut = printable(text)
        assert len(cut) < 6_000
        assert "characters) …" in cut
        assert printable(cut) == cut
    name = "x" * 60_000
    path = sequences(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file[f"{name}/{name[:50_000]}"] = [1]
    (tmp_path / "c.yaml").write_text(json.dumps(NET))
    for arguments in (
        ("data", path),
        ("run", tmp_path / "c.yaml", path, "--set", f"data.inputs={name}"),
        ("run", tmp_path / "c.yaml", f"{path}:/{name}"),
    ):
        outcome = lstm(*arguments)
        assert len(outcome.out + outcome.err) < 6_000
        assert "characters)" in outcome.out + outcome.err
    assert name in lstm("data", path, "--json").out  # whole where a program reads it


def test_wide_and_combined_letters_keep_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    from lstm_cli.cli.display.tables import plain_table

    table = plain_table("name", "|")
    for name in ("plain", "漢字テスト", "e\u0301e\u0301", EVIL, "x[bold]y"):
        table.add_row(printable(name), "|")
    Console().show(table)
    lines = capsys.readouterr().out.splitlines()
    wide = [sum(_width(c) for c in line.partition("|")[0]) for line in lines]
    assert len(lines) == 6
    assert len(set(wide)) == 1
    assert any("x[bold]y" in line for line in lines)


def _width(letter):
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
