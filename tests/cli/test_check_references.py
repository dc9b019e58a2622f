"""`convert --check`: damaged reference files, and networks that magnify rounding."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_cli

Command = Any
X = np.random.default_rng(0).standard_normal((3, 4, 2)).astype("f4")
CONFIG = "model: {input_size: 2, layers: [{type: lstm, hidden_size: 3}]}"


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(CONFIG)
    net = lstm_cli.build("m.yaml", engine="reference")
    net.save("m.safetensors")
    np.savez("r.npz", inputs=X, outputs=net.run(X).outputs)


def check(lstm: Command, reference: str = "r.npz", *options: str) -> Any:
    outcome = lstm("convert", "m.safetensors", "o.safetensors", "--check", reference, *options)
    assert "fault in lstm-cli" not in outcome.err
    assert "Warning" not in outcome.err
    return outcome


def with_header(text: bytes, version: int = 1) -> None:
    """Write a reference whose inputs have this header and 96 bytes of values."""
    with np.load("r.npz") as arrays:
        outputs = io.BytesIO()
        np.save(outputs, arrays["outputs"])
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    with zipfile.ZipFile("r.npz", "w") as archive:
        head = b"\x93NUMPY" + bytes([version, 0])
        archive.writestr("inputs.npy", head + length + text + X.tobytes())
        archive.writestr("outputs.npy", outputs.getvalue())


def header(shape: str = "(3, 4, 2)", descr: str = "'<f4'", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()


HEADERS = {
    "a mapping by a list": header().replace(b"'shape'", b"[]"),
    "no end": b"{'descr': (",
    "no text": bytes(30),
    "deep": b"(" * 9000,
    "long": header() + b" " * 60_000,
    "0 times all": header("(0, 4611686018427387904, 4611686018427387904)"),
    "0 times more": header("(0, 99999999999999999999999, 3)"),
    "all": header("(4611686018427387904, 4, 2)"),
    "negative": header("(-3, -4, 2)"),
    "many axes": header("(" + "1," * 100 + ")"),
    "truths": header("(True, True, True)"),
    "real sizes": header("(3.0, 4, 2)"),
    "an array of arrays": header("(1,)", "('<f4', (1000000000, 100000))"),
    "fields": header("(3,)", "[('a', '<f4'), ('b', '<f4')]"),
    "fields of one name": header("(3,)", "[('a', '<f4'), ('a', '<f4')]"),
    "bytes": header("(1,)", "'|V8'"),
    "wide text": header("(1,)", "'<U2147483647'"),
    "objects": header("(3,)", "'|O'"),
    "times": header("(3, 4, 2)", "'<M8[s]'"),
    "no order": header(order="3"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_damaged_headers(kind, lstm):
    with_header(HEADERS[kind])
    outcome = check(lstm)
    assert outcome.code == 3, outcome.err
    assert re.search("inputs(.npy)?", outcome.err)


def test_sound_headers_of_both_versions(lstm):
    for version in (1, 2):
        with_header(header(), version)
        assert check(lstm).code == 0
    with_header(header(), 9)
    assert check(lstm).code == 3


FORMS = {
    "no axes": ({"outputs": np.float32(1)}, "outputs"),
    "inputs of no axes": ({"inputs": np.float32(1)}, "inputs"),
    "text": ({"inputs": np.array(["a"])}, "inputs"),
    "objects": ({"inputs": np.array([{}], object)}, "inputs"),
    "complex": ({"inputs": X.astype("c8")}, "inputs"),
    "no sequences": ({"inputs": X[:0]}, "inputs"),
    "no steps": ({"inputs": X[:, :0]}, "inputs"),
    "a state of no axes": ({"state.0.h": np.float32(0)}, "state.0.h"),
    "a state of four axes": ({"state.0.c": np.zeros((3, 1, 3, 1))}, "state.0.c"),
    "a text as a state": ({"state.0.c": np.array("a")}, "state.0.c"),
    "a state of other sequences": ({"state.0.h": np.zeros((2, 1, 3))}, "state h"),
    "a state of no layer": ({"state.7.h": np.zeros((3, 1, 3))}, "state.7.h"),
    "lengths of no axes": ({"lengths": np.int64(3)}, "lengths"),
    "real lengths": ({"lengths": np.ones(3)}, "lengths"),
    "negative lengths": ({"lengths": -np.ones(3, int)}, "lengths"),
    "long lengths": ({"lengths": np.full(3, (1 << 64) - 1, "u8")}, "length"),
    "truths as lengths": ({"lengths": np.ones(3, bool)}, "lengths"),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_arrays_that_are_no_reference(kind, suffix, lstm):
    changes, name = FORMS[kind]
    with np.load("r.npz") as arrays:
        parts = {**arrays, **changes}
    if suffix == "npz":
        np.savez("r.npz", **parts)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File("r.h5", "w") as file:
            for key, value in parts.items():
                if value.dtype.kind in "UO":
                    value = np.asarray(value.astype(str), h5py.string_dtype())
                file[key.replace(".", "/")] = value
    outcome = check(lstm, f"r.{suffix}")
    assert outcome.code == 3, outcome.err
    assert name in outcome.err.replace("/", ".")


def test_forms_that_are_read(lstm):
    with np.load("r.npz") as arrays:
        parts = dict(arrays)
    np.savez("r.npz", inputs=np.asfortranarray(X), outputs=parts["outputs"].astype(">f8"))
    assert check(lstm).code == 0
    np.savez("r.npz", **parts, **{"state.0.h": np.zeros((3, 3)), "state.0.c": np.zeros((3, 1, 3))})
    assert check(lstm).code == 0


def test_archives(lstm):
    np.savez_compressed("r.npz", inputs=np.zeros((1 << 20, 4, 2), "f4"), outputs=X)
    assert check(lstm).code == 3
    np.save("r.npy", X)
    outcome = check(lstm, "r.npy")
    assert outcome.code == 3
    assert "numpy.savez('reference.npz', inputs=..., outputs=...)" in " ".join(outcome.err.split())


def test_outputs_without_an_axis_of_features(lstm):
    """The index in the hint adds the axis."""
    Path("m.yaml").write_text(
        "model: {input_size: 2, layers: [{type: gru, hidden_size: 3, return_sequences: false}, "
        "{type: dense, units: 1}]}"
    )
    net = lstm_cli.build("m.yaml", engine="reference")
    net.save("m.safetensors")
    outputs = net.run(X).outputs
    np.savez("r.npz", inputs=X, outputs=outputs[:, 0])
    outcome = check(lstm)
    assert outcome.code == 3
    assert "outputs[:, None]" in outcome.err
    outputs = outputs[:, 0]
    np.savez("r.npz", inputs=X, outputs=outputs[:, None])
    assert check(lstm).code == 0


class Chaotic:
    """A PyTorch network that magnifies rounding beyond the tolerance."""

    def __init__(self, kind: str, scale: float, steps: int, hidden: int = 12) -> None:
        torch = pytest.importorskip("torch")
        torch.manual_seed(1)
        self.net = getattr(torch.nn, kind)(2, hidden, batch_first=True)
        with torch.no_grad():
            self.net.weight_hh_l0.mul_(scale)
        torch.save(self.net.state_dict(), "m.pt")
        self.x = torch.from_numpy(
            np.random.default_rng(2).standard_normal((2, steps, 2)).astype("f4")
        )
        self.torch = torch

    def reference(self, dtype: str) -> None:
        with self.torch.no_grad():
            net, x = (self.net.double(), self.x.double()) if dtype == "f8" else (self.net, self.x)
            outputs = net(x)[0].numpy()
        np.savez("r.npz", inputs=self.x.numpy(), outputs=outputs)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("kind", "scale", "steps"), [("RNN", 12.0, 60), ("LSTM", 60.0, 120)])
def test_rounding_explains_what_a_chaotic_network_gives(kind, scale, steps, dtype, lstm):
    """The steps that the hint names fit, and a wrong reference still does not."""
    net = Chaotic(kind, scale, steps)
    net.reference(dtype)
    outcome = lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz")
    text = " ".join(outcome.err.split())
    assert outcome.code == 1
    assert "rounding explains that" in text
    assert "activations" not in text.split("error:")[1]
    assert dtype == "f8" or "--tolerance" not in text
    assert not Path("o.safetensors").exists()
    first = re.search(r"cut the reference to inputs\[:, :(\d+)\] and outputs\[:, :\1\]", text)
    assert first, text
    count = int(first[1])
    assert 2 < count < steps
    with np.load("r.npz") as arrays:
        cut = {name: value[:, :count] for name, value in arrays.items()}
    np.savez("r.npz", **cut)
    assert lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz").code == 0
    np.savez("r.npz", inputs=cut["inputs"], outputs=cut["outputs"] ** 3)
    outcome = lstm("convert", "m.pt", "p.safetensors", "--check", "r.npz")
    assert outcome.code == 1
    assert "an assumption may be wrong (activations" in " ".join(outcome.err.split())


def test_a_chaotic_last_step_fits_after_fewer_steps(lstm):
    net = Chaotic("RNN", 12.0, 60)
    last = ("--set", "model.layers.0.return_sequences=false")
    for steps, code in ((60, 1), (5, 0)):
        with net.torch.no_grad():
            outputs = net.net(net.x[:, :steps])[0][:, -1].numpy()
        np.savez("r.npz", inputs=net.x[:, :steps].numpy(), outputs=outputs)
        outcome = lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz", *last)
        assert outcome.code == code
        assert ("a reference of fewer steps" in " ".join(outcome.err.split())) == bool(code)


def test_a_little_rounding_may_be_accepted(lstm):
    net = Chaotic("RNN", 4.0, 12)
    net.reference("f4")
    tight = ("--tolerance", "1e-9")
    outcome = lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz", *tight)
    proposal = re.search(r"--tolerance (\S+);", " ".join(outcome.err.split()))
    assert outcome.code == 1
    assert proposal, outcome.err
    accepted = ("--tolerance", proposal[1])
    assert lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz", *accepted).code == 0


def test_a_wrong_activation_is_not_called_rounding(lstm):
    net = Chaotic("RNN", 1.0, 12)
    net.reference("f4")
    wrong = ("--set", "model.layers.0.activation=relu")
    outcome = lstm("convert", "m.pt", "o.safetensors", "--check", "r.npz", *wrong)
    assert outcome.code == 1
    assert "rounding" not in outcome.err.split("error:")[1]
