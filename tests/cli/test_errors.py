"""Every way to get it wrong: exit code, what, where, and a hint; never a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import lstm_cli


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
    assert lstm("run", config, data, "--dtype", "bfloat16").code == 5
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
        ["bench", "--hidden", "12,x"],
    ],
)
def test_usage(lstm, arguments):
    outcome = lstm(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert "hint: " in outcome.err


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


def test_interrupt(lstm, config, data, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lstm_cli.network.network.Network.run", interrupted)
    out = tmp_path / "out.h5"
    outcome = lstm("run", config, data, "--output", out)
    assert outcome.code == 130
    assert not out.exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_fault_of_ours_shows_no_traceback_without_debug(lstm, config, data, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("lstm_cli.network.network.Network.run", broken)
    outcome = lstm("run", config, data)
    assert outcome.code == 1
    assert "ZeroDivisionError: oops" in outcome.err
    assert "--debug" in outcome.err
    with pytest.raises(ZeroDivisionError):
        lstm("run", config, data, "--debug")
