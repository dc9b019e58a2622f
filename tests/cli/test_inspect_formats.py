"""``inspect-shapes`` of files of other programs, against the tensors that the files have."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from networks import random_weights

from lstm_cli import build
from lstm_cli.config import from_mapping
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export

FLAT = [
    {"type": "lstm", "hidden_size": 6},
    {"type": "flatten"},
    {"type": "dense", "units": 3, "activation": "tanh"},
]
STACKED = [
    {"type": "lstm", "hidden_size": 6, "bidirectional": True},
    {"type": "dropout", "rate": 0.5},
    {"type": "gru", "hidden_size": 4},
    {"type": "rnn", "hidden_size": 5, "return_sequences": False},
    {"type": "dense", "units": 3, "activation": "softmax"},
]

Raw = Mapping[str, np.ndarray]


def _tmva(path: Path) -> Raw:
    arrays = {}
    layers = next(ElementTree.parse(path).iter("Weights"))
    for k, layer in enumerate(layers):
        for matrix in layer:
            shape = int(matrix.get("Rows")), int(matrix.get("Columns"))
            values = np.array(matrix.text.split(), np.float64).reshape(shape)
            arrays[f"{layer.tag}[{k}]/{matrix.tag}"] = values
    return arrays


def _keras(path: Path) -> Raw:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        data = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(data) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return arrays


def _onnx(path: Path) -> Raw:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(path).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _torch(path: Path) -> Raw:
    torch = pytest.importorskip("torch")
    found = torch.load(path, weights_only=True)
    return {name: np.asarray(value) for name, value in found.items() if hasattr(value, "shape")}


FORMATS: dict[str, tuple[str, list, Callable[[Path], Raw]]] = {
    "tmva": ("net.xml", FLAT, _tmva),
    "keras": ("net.keras", STACKED, _keras),
    "onnx": ("net.onnx", STACKED, _onnx),
    "pytorch": ("net.pt", STACKED, _torch),
}


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    """A file of one format, the tensors it was written from, and its own."""
    name, layers, load = FORMATS[request.param]
    config = from_mapping({"model": {"input_size": 5, "steps": 4, "layers": layers}})
    tensors = {k: v.astype(np.float32) for k, v in random_weights(config.specs, 3).items()}
    path = tmp_path / name
    export = Export("net", 5, 4, config.specs, tensors, config.to_yaml())
    registry.write(path, request.param, export)
    return path, list(tensors.values()), load(path)


def _cut(raw: np.ndarray, place: dict) -> np.ndarray:
    """The part of the stored array that a place names."""
    part = place["part"].strip("[]")
    index = tuple(
        slice(*(int(n) if n else None for n in piece.split(":"))) if ":" in piece else int(piece)
        for piece in filter(None, re.split(r",\s*", part))
    )
    return raw[index]


def test_every_block_stands_where_it_is_said_to(lstm, written):
    path, tensors, raw = written
    outcome = lstm("inspect-shapes", path, "--json")
    assert outcome.code == 0
    blocks = [block for layer in outcome.json["layers"] for block in layer["blocks"]]
    names = list(dict.fromkeys(block["stored"].partition("[")[0] for block in blocks))
    assert len(names) == len(tensors)
    local = dict(zip(names, tensors, strict=True))
    for block in blocks:
        name, _, rows = block["stored"].partition("[")
        start, stop = map(int, rows.rstrip("]").split(":")) if rows else (0, len(local[name]))
        expected = local[name][start:stop]
        assert block["places"], block["stored"]
        total = 0
        for place in block["places"]:
            assert list(raw[place["name"]].shape) == place["shape"]
            found = _cut(raw[place["name"]], place)
            found = found.T if "transposed" in place["change"] else found
            total = total + found.reshape(expected.shape)
        np.testing.assert_allclose(total, expected, rtol=1e-6, err_msg=block["stored"])


def test_the_table_names_every_stored_tensor(lstm, written, monkeypatch):
    path, _, raw = written
    outcome = lstm("inspect-shapes", path)
    weights = [name for name, value in raw.items() if np.ndim(value) and value.dtype.kind == "f"]
    assert any(name in outcome.out for name in weights)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = lstm("inspect-shapes", path)
    assert max(map(len, narrow.out.splitlines()[2:])) <= 80
    assert "…" not in narrow.out


def test_a_config_with_a_foreign_file(lstm, written, tmp_path):
    path, _, _ = written
    layers = FORMATS["tmva"][1] if path.suffix == ".xml" else STACKED
    wider = [dict(layer) for layer in layers]
    wider[0]["hidden_size"] = 7
    config = tmp_path / "net.yaml"
    model = {"model": {"input_size": 5, "steps": 4, "layers": wider}}
    config.write_text(from_mapping(model).to_yaml())
    outcome = lstm("inspect-shapes", config, "--weights", path)
    assert outcome.code == 4
    assert "✗ H" in outcome.out
    assert "W_i, W_f, W_g, W_o are (6, 5), expected (7, 5)" in outcome.err
    blocks = lstm("inspect-shapes", config, "--weights", path, "--json").json["layers"][0]["blocks"]
    assert blocks[0]["found"] == [6, 5]
    assert blocks[0]["places"][0]["name"] in outcome.out.replace("\n", "")


def test_names_that_a_terminal_would_obey(lstm, tmp_path):
    from lstm_cli.formats import native

    path = tmp_path / "odd.safetensors"
    native.write(path, {"[/red]x\x1b[31m": np.ones(3, np.float32)}, None)
    outcome = lstm("inspect-shapes", path, "--from", "native")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert "[/red]x" in outcome.out


LONG = "a_rather_long_name_of_an_encoder_module_that_goes_on_and_on_until_no_screen_holds_it"


@pytest.fixture
def screen(lstm, monkeypatch):
    """Run a command on a screen of so many columns; None is a pipe."""

    def run(width, *arguments):
        if width is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(width))
        return lstm(*arguments).out.splitlines()

    return run


def test_names_of_tensors_are_whole_on_every_screen(screen, tmp_path):
    config = from_mapping({"model": {"input_size": 5, "layers": STACKED}})
    native = tmp_path / "m.safetensors"
    build(config_path(tmp_path, config), engine="reference").save(native)
    torch = pytest.importorskip("torch")
    state = torch.nn.LSTM(5, 6, bidirectional=True).state_dict()
    torch.save({f"{LONG}.{name}": value for name, value in state.items()}, tmp_path / "t.pt")
    names = {f"{LONG}.{name}[0:6]" for name in state}
    for width in (80, 120, None):
        lines = screen(width, "inspect-shapes", tmp_path / "t.pt")
        assert all(any(name in line for line in lines) for name in names), width
        row = next(line for line in lines if line.startswith("W_i"))
        assert (LONG in row) == (width is None or width > 120)
        # Against weights, which make the widest table: nothing there is broken, all fits.
        lines = screen(width, "inspect-shapes", tmp_path / "c.yaml", "--weights", native)
        table = [line for line in lines if line.startswith(("W_", "U_", "b_"))]
        assert all(re.search(r"  (weight|bias)(_ih|_hh)?(\[\d+:\d+\])?$", line) for line in table)
        assert len(table) == 39
        assert max(map(len, table)) <= 80


def test_names_of_datasets_are_whole_on_every_screen(screen, tmp_path):
    path = tmp_path / f"{LONG}.h5"
    with h5py.File(path, "w") as file:
        file[f"{LONG}/inputs"] = np.zeros((2, 3, 5), np.float32)
    for width in (80, 120, None):
        lines = screen(width, "data", path)
        assert any(f"/{LONG}/inputs" in line for line in lines), width
        assert (
            any(re.match(r"(/a_rather.*)?\(2, 3, 5\) +float32", line) for line in lines)
            or width is None
        )


def config_path(folder: Path, config) -> Path:
    path = folder / "c.yaml"
    path.write_text(config.to_yaml())
    return path
