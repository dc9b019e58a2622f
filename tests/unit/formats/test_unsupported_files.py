"""Files of other tools are called what they are, as CONFIG and as weights, and hints work."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import LstmCliError
from lstm_cli.formats import registry

rng = np.random.default_rng(6)
LSTM = {
    "lstm.weight_ih_l0": rng.standard_normal((12, 2)).astype(np.float32),
    "lstm.weight_hh_l0": rng.standard_normal((12, 3)).astype(np.float32),
    "lstm.bias_ih_l0": rng.standard_normal(12).astype(np.float32),
    "lstm.bias_hh_l0": rng.standard_normal(12).astype(np.float32),
}


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **LSTM)  # type: ignore[arg-type]
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


# A SavedModel: schema version 1, then a message whose first field is a message.
SAVED_MODEL = b"\x08\x01\x12\x90\x4e\n\x85\x40\x12\x06tensor" + bytes(300)
FILES = {
    "npz": (npz(), "NumPy archive"),
    "npy": (b"\x93NUMPY\1\0v\0{'descr': '<f4'", "NumPy array"),
    "tflite": (b"\x20\0\0\0TFL3" + bytes(90), "TensorFlow Lite"),
    "tar.gz": (gzip.compress(tarred("a/model.pt")), "compressed archive"),
    "gz": (gzip.compress(b"abc"), r"compressed file \(gzip"),
    "cut gz": (gzip.compress(bytes(9000))[:20], r"compressed file \(gzip"),
    "tar": (tarred("a/model.pt", "b"), r"archive \(tar\)(.|\n)*a/model.pt"),
    "zip": (zipped("readme", "m/model.onnx"), "zip archive(.|\n)*m/model.onnx"),
    "savedmodel zip": (zipped("m/saved_model.pb"), "SavedModel"),
    "torch.export": (zipped("m/archive_format", "m/models/model.json"), "torch.export"),
    "elf": (b"\x7fELF\2\1\1" + bytes(99), "ELF"),
    "exe": (b"MZ\x90\0" + bytes(99), "Windows"),
    "saved_model.pb": (SAVED_MODEL, "SavedModel"),
    "frozen.pb": (b"\n\x28\n\x01x\x12\x0bPlaceholder" + bytes(99), "frozen graph"),
    "mlmodel": (b"\x08\x04\x12\x20\n\x10\n\x05input" + bytes(99), "Core ML"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
    "mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(99), "MATLAB"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(99), "image"),
    "parquet": (b"PAR1" + bytes(99), "Parquet"),
    "nam": (text({"architecture": "LSTM", "config": {}, "weights": [0.5]}), "nam"),
    "rtneural": (text({"in_shape": [None, 1], "layers": [{"type": "lstm"}]}), "RTNeural"),
    "keras json": (text({"class_name": "Sequential", "config": {}}), "Keras model's description"),
    "tfjs": (text({"modelTopology": {}, "weightsManifest": []}), "TensorFlow.js"),
    "index": (text({"metadata": {}, "weight_map": {}}), "index of safetensors"),
    "hugging face": (text({"architectures": ["X"], "model_type": "x"}), "Hugging Face"),
    "csv": (b"t,x,y\n0,1.5,2\n1,1.75,-3e5\n2,0,1\n", "table of text"),
    "html": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "openvino": (b'<?xml version="1.0"?>\n<net name="m" version="11"/>', "OpenVINO"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "Git LFS"),
    "pickle": (pickle.dumps(LSTM, 4), "Python pickle of numpy"),
    "joblib": (pickle.dumps(LSTM, 2).replace(b"numpy", b"joblib.numpy_pickle", 1), "joblib"),
    "zlib": (b"\x78\x9c" + bytes(99), "zlib"),
}  # fmt: skip


def refused(call: Any, path: Path) -> str:
    with pytest.raises(LstmCliError) as caught:
        call(path)
    assert caught.value.exit_code == 4
    said = str(caught.value)
    assert "UTF-8" not in said
    assert "YAML 1.2" not in said
    return said


@pytest.mark.parametrize("suffix", [".bin", "", ".yaml", ".pth.tar"])
@pytest.mark.parametrize("kind", FILES)
def test_what_a_file_is(kind: str, suffix: str, tmp_path: Path) -> None:
    data, text = FILES[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    for call in (lstm_cli.build, registry.read):
        assert re.search(text, refused(call, path)), refused(call, path)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("saved_model.pb", "variables/variables.index"), "SavedModel"),
        (("coremldata.bin",), "Core ML"),
        (("data.pkl", "data/0", "version"), "unpacked file of torch.save"),
        (("zarr.json",), "Zarr"),
        (("config.json", "w.safetensors"), "name the file in the folder: .*w.safetensors"),
        (("model.safetensors", "config.yaml"), "training run(.|\n)*/model.safetensors"),
        (("readme",), "folder|directory"),
    ],
)
def test_what_a_folder_is(names: tuple[str, ...], text: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for call in (lstm_cli.build, registry.read):
        assert re.search(text, refused(call, folder))


def test_an_empty_file(tmp_path: Path) -> None:
    for name in ("m", "m.pt", "m.yaml", "m.keras", "m.onnx"):
        (tmp_path / name).touch()
        assert re.search("empty|nothing", refused(lstm_cli.build, tmp_path / name))
        assert "empty" in refused(registry.read, tmp_path / name)


def test_configs_are_no_foreign_files(tmp_path: Path) -> None:
    config = {"model": {"input_size": 2, "layers": [{"type": "lstm", "hidden_size": 3}]}}
    for name in ("c.json", "c.yaml", "c"):
        (tmp_path / name).write_text(json.dumps(config))
        assert lstm_cli.build(tmp_path / name, engine="reference").config.model.input_size == 2


@pytest.mark.parametrize("kind", ["npz", "pickle"])
def test_the_line_that_makes_a_state_dict_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{kind}"
    path.write_bytes(FILES[kind][0])
    code = re.search(r"import .*save_file\(.*?\.safetensors'\)", refused(registry.read, path))
    assert code is not None
    exec(code[0])
    found = registry.read(tmp_path / "model.safetensors").tensors
    np.testing.assert_array_equal(found["layers.0.weight_ih"], LSTM["lstm.weight_ih_l0"])


def test_damaged_files_give_an_lstm_cli_error(tmp_path: Path) -> None:
    path = tmp_path / "m"
    for kind, (data, _) in FILES.items():
        for k in range(12):
            random = np.random.default_rng(k)
            at, stop = sorted(int(n) for n in random.integers(0, len(data) + 1, 2))
            path.write_bytes(data[:at] + bytes(random.integers(0, 256, 5, np.uint8)) + data[stop:])
            for call in (lstm_cli.build, registry.read):
                with pytest.raises(LstmCliError) as caught:
                    call(path)
                assert caught.value.exit_code == 4, kind
