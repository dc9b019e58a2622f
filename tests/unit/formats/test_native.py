"""The native weights file: dtypes, metadata, and files that are refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.formats import native

CONFIG = "model:\n  input_size: 3 # Größe\n"


def tensors(dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "layers.0.weight_ih": rng.standard_normal((20, 3)).astype(dtype),
        "layers.0.bias": rng.standard_normal(20).astype(dtype),
    }


def write_raw(path: Path, header: Any, body: bytes = b"") -> Path:
    """A safetensors file put together by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(dtype: str, shape: list[int], nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_round_trip(dtype: str, tmp_path: Path) -> None:
    original, path = tensors(dtype), tmp_path / "w.safetensors"
    native.write(path, original, CONFIG)
    file = native.read(path)
    assert file.path == path
    assert file.config == CONFIG
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.tensors.keys() == original.keys()
    for name, value in original.items():
        assert file.tensors[name].dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(file.tensors[name], value)


def test_another_reader_understands_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    original, path = tensors(), tmp_path / "w.safetensors"
    native.write(path, original | {"t": original["layers.0.weight_ih"].T}, CONFIG)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "format": "lstm-cli", "version": lstm_cli.__version__, "config": CONFIG,
        }  # fmt: skip
        np.testing.assert_array_equal(file.get_tensor("t"), original["layers.0.weight_ih"].T)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625, 0.0, 1e30, -1e-30], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    path = write_raw(tmp_path / "w.safetensors", {"a": entry("BF16", [2, 3], 12)}, upper.tobytes())
    widened = native.read(path).tensors["a"]
    assert widened.dtype == np.float32
    assert widened.shape == (2, 3)
    np.testing.assert_allclose(widened.ravel(), values, rtol=2**-7)
    np.testing.assert_array_equal(widened.ravel()[:4], values[:4])


def test_without_a_config(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    native.write(path, tensors(), None)
    assert native.read(path).config is None


def test_without_metadata(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "w.safetensors", {"a": entry("F32", [1], 4)}, b"\0" * 4)
    assert native.read(path).config is None


def test_metadata_that_is_null(tmp_path: Path) -> None:
    header = {"__metadata__": None, "a": entry("F32", [1], 4)}
    path = write_raw(tmp_path / "w.safetensors", header, b"\0" * 4)
    assert native.read(path).config is None


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        native.read(path)
    assert error.value.exit_code == 4
    assert path.name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", ["BOOL", "I64", "U8", "F8_E4M3"])
def test_a_dtype_that_is_no_weight(dtype: str, tmp_path: Path) -> None:
    size = 8 if dtype == "I64" else 1
    path = write_raw(tmp_path / "w.safetensors", {"a": entry(dtype, [1], size)}, b"\0" * size)
    text = refused(path)
    assert f"a is stored as {dtype}" in text
    assert "F64, F32, F16, BF16" in text


@pytest.mark.parametrize(
    "shape", [[0, 2**62], [0, 2**64 - 1], [1] * 70], ids=["too big", "beyond int64", "70 axes"]
)
def test_shapes_numpy_cannot_hold(shape: list[int], tmp_path: Path) -> None:
    nbytes = 4 if 0 not in shape else 0
    header = {"a": entry("F32", shape, nbytes)}
    refused(write_raw(tmp_path / "w.safetensors", header, b"\0" * nbytes))


def test_a_path_no_file_can_have() -> None:
    with pytest.raises(LstmCliError):
        native.read("a\0b.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04 a zip file", b"\x89HDF\r\n\x1a\n" * 9]
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert "is not a safetensors file" in refused(path)
