"""Files that are no config: each is told what it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from lstm_cli.config import load
from lstm_cli.errors import ConfigError, Problem

SOUND = "model: {input_size: 3, layers: [{type: lstm, hidden_size: 4}]}\n"


def refused(path: Path) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    return problem


def test_a_missing_file_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "vowels.yaml").write_text(SOUND)
    problem = refused(tmp_path / "vowel.yaml")
    assert problem.what == f"there is no file {tmp_path / 'vowel.yaml'}"
    assert problem.hint == "did you mean `vowels.yaml`?"


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "does not exist either" in str(refused(tmp_path / "no" / "a.yaml").hint)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vowels.yaml").write_text(SOUND)
    problem = refused(tmp_path)
    assert problem.what == f"{tmp_path} is a folder"
    assert problem.hint == f"did you mean {tmp_path / 'vowels.yaml'}?"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(SOUND)
    path.chmod(0)
    assert "cannot be read" in refused(path).what


def test_a_name_no_file_can_have() -> None:
    assert "cannot be read" in refused(Path("a\0b")).what


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    problem = refused(path)
    assert problem.what == f"{path} is empty"
    assert "model:" in str(problem.hint)


@pytest.mark.parametrize(
    ("text", "found"), [("- a", "a list of 1 item"), ("just words", "'just words'"), ("3", "3")]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    problem = refused(path)
    assert problem.expected == "a mapping with the key model"
    assert problem.found == found


def test_an_hdf5_file_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["inputs"] = np.arange(6.0)
    problem = refused(path)
    assert problem.found == "an HDF5 file"
    assert "CONFIG DATA" in str(problem.hint)


def test_a_safetensors_file_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"layers.0.bias": np.arange(8.0)}, path)
    problem = refused(path)
    assert problem.found == "a safetensors file"
    assert "--weights" in str(problem.hint)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"CDF\x01", "a NetCDF file"),
        ("model: ü".encode("utf-16"), "text in UTF-16"),
        (b"abc\0def", "a binary file"),
    ],
)
def test_other_binaries(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert str(refused(path).found).startswith(found)


def test_text_in_latin_1_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("model:\n  # gr\u00fcn\n".encode("latin-1"))
    problem = refused(path)
    assert problem.what == f"{path} is not text in UTF-8"
    assert problem.where == (f"{path} line 2",)
    assert problem.found == "byte 0xfc"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.replace("\n", "\r\n").encode() + b"weights: w\r\n")
    config = load(path)
    assert config.name == "a"
    assert config.weights == tmp_path / "w"
    assert config.where("weights") == f"{path} line 2"


def test_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    layers = [{"type": "lstm", "hidden_size": 4}]
    path.write_text(json.dumps({"model": {"input_size": 3, "layers": layers}}))
    assert load(path).specs == load_text(tmp_path, SOUND)


def load_text(folder: Path, text: str) -> object:
    path = folder / "sound.yaml"
    path.write_text(text)
    return load(path).specs
