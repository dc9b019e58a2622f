"""The contract of every codec: what it writes is read back, and what it cannot hold is refused.

A new format joins with its row in `registry.FORMATS`. The first test then asks for its files and
its gate orders in `codec_cases`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_cases import (
    CASES,
    FILES,
    NATIVE,
    ORDERS,
    D,
    export_of,
    gru,
    lstm,
    outputs,
    raw_blocks,
    raw_tensors,
    restored_specs,
    rnn,
)

from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported, ReadOptions

KINDS = {"lstm": lstm, "gru": gru, "rnn": rnn}
TOLERANCE = 1e-13
PROJECTION_TOLERANCE = 1e-6  # ONNX holds the product of two matrices in float32


@pytest.fixture(
    params=[
        pytest.param((name, file), id=f"{name} {file}" if len(files) > 1 else name)
        for name, files in FILES.items()
        for file in files
    ]
)
def codec(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name of a format and of a file that it writes."""
    return request.param


def written(codec: tuple[str, str], export: Export, folder: Path) -> tuple[Path, tuple[str, ...]]:
    path = folder / codec[1]
    return path, registry.write(path, codec[0], export)


def holdable(codec: tuple[str, str], kind: str, dtype: str = "float64", **options: Any) -> Export:
    """A layer of a kind that the format holds: TMVA's candidate has no recurrent bias."""
    export = export_of([KINDS[kind](**options)], dtype)
    if codec[0] == "tmva" and kind == "gru":
        export.tensors["layers.0.bias_hh"][-export.layers[0].hidden_size :] = 0  # type: ignore[attr-defined]
    return export


def test_every_format_is_here() -> None:
    assert FILES.keys() == registry.FORMATS.keys()
    assert ORDERS.keys() == registry.FORMATS.keys()
    for name, files in FILES.items():
        for file in files:
            suffixes = registry.FORMATS[name].suffixes
            assert file.endswith((*suffixes, ".safetensors")), "no name of this format"


@pytest.mark.parametrize("name", CASES)
def test_a_network_survives_or_is_refused(
    name: str, codec: tuple[str, str], tmp_path: Path
) -> None:
    """Outputs are the same; weights are the same bits where the format has the same form."""
    case, (format, file) = CASES[name], codec
    export, path = export_of(case.layers), tmp_path / file
    if format in case.refused:
        with pytest.raises(WeightsError) as caught:
            registry.write(path, format, export)
        assert case.refused[format] in str(caught.value)
        assert any(f"layer {k} " in str(caught.value) for k in range(len(case.layers)))
        assert not list(tmp_path.iterdir())
        return
    registry.write(path, format, export)
    imported = registry.read(path)
    specs = restored_specs(imported, case.layers)
    tolerance = PROJECTION_TOLERANCE if (name, format) == ("projection", "onnx") else TOLERANCE
    np.testing.assert_allclose(
        outputs(specs, imported.tensors),
        outputs(export.layers, export.tensors),
        rtol=0,
        atol=tolerance,
    )
    if format not in case.changed:
        assert imported.tensors.keys() == export.tensors.keys()
        for tensor, value in export.tensors.items():
            np.testing.assert_array_equal(imported.tensors[tensor], value, err_msg=tensor)
        if imported.describes_layers:
            assert specs == export.layers


@pytest.mark.parametrize("kind", KINDS)
def test_gates_stand_in_the_published_order(
    kind: str, codec: tuple[str, str], tmp_path: Path
) -> None:
    """Each block of the file, found with other code, is the block of its gate."""
    export = holdable(codec, kind)
    path, _ = written(codec, export, tmp_path)
    blocks = raw_blocks(codec[0], path, kind)
    for matrix, name in (("W", "weight_ih"), ("U", "weight_hh")):
        gates = np.split(export.tensors[f"layers.0.{name}"], len(NATIVE[kind]))
        for letter, values in zip(NATIVE[kind], gates, strict=True):
            np.testing.assert_array_equal(blocks[matrix, letter], values, err_msg=matrix + letter)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_two_swapped_gates_change_the_outputs(
    kind: str, codec: tuple[str, str], tmp_path: Path
) -> None:
    """So the comparisons of this suite notice a wrong order."""
    export = holdable(codec, kind)
    path, _ = written(codec, export, tmp_path)
    imported = registry.read(path)
    specs = restored_specs(imported, [KINDS[kind]()])
    right = outputs(specs, imported.tensors)
    for name in ("weight_ih", "weight_hh"):
        first, second, *rest = np.split(imported.tensors[f"layers.0.{name}"], len(NATIVE[kind]))
        swapped = {f"layers.0.{name}": np.concatenate([second, first, *rest])}
        assert np.abs(outputs(specs, {**imported.tensors, **swapped}) - right).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_sources_are_the_blocks_of_the_file(
    kind: str, codec: tuple[str, str], tmp_path: Path
) -> None:
    """`TensorSource.part` cuts the values of one gate out of the stored tensor."""
    path, _ = written(codec, holdable(codec, kind), tmp_path)
    imported, raw = registry.read(path), raw_tensors(path)
    assert {source.native for source in imported.sources} <= imported.tensors.keys()
    checked = 0
    for source in imported.sources:
        stored = raw[source.name]
        assert (stored.shape, str(stored.dtype)) == (source.shape, source.dtype)
        if "added" in source.change or not source.native.endswith(("weight_ih", "weight_hh")):
            continue
        part = eval(f"stored{source.part}", {"stored": stored}) if source.part else stored
        native = imported.tensors[source.native]
        if source.block:
            position = NATIVE[kind].index(source.block)
            native = np.split(native, len(NATIVE[kind]))[position]
        np.testing.assert_array_equal(part.T if "transposed" in source.change else part, native)
        checked += 1
    assert checked == 2 * (len(NATIVE[kind]) if imported.sources[0].block else 1)


def test_biases_of_a_gru(codec: tuple[str, str], tmp_path: Path) -> None:
    """Two biases stay two, because the reset gate multiplies one; TMVA has one per gate."""
    export = holdable(codec, "gru")
    path, _ = written(codec, export, tmp_path)
    tensors = registry.read(path).tensors
    b_ih, b_hh = (f"layers.0.bias_{side}" for side in ("ih", "hh"))
    if codec[0] == "tmva":
        np.testing.assert_allclose(tensors[b_ih], export.tensors[b_ih] + export.tensors[b_hh])
        assert not tensors[b_hh].any()
        return
    np.testing.assert_array_equal(tensors[b_ih], export.tensors[b_ih])
    np.testing.assert_array_equal(tensors[b_hh], export.tensors[b_hh])


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_one_bias_stays_one(kind: str, codec: tuple[str, str], tmp_path: Path) -> None:
    """A format with two biases gets (b, 0), and its file is read as their sum."""
    export = holdable(codec, kind)
    path, _ = written(codec, export, tmp_path)
    imported = registry.read(path)
    np.testing.assert_array_equal(
        imported.tensors["layers.0.bias"], export.tensors["layers.0.bias"]
    )
    for name, value in imported.split_biases.items():
        expected = export.tensors["layers.0.bias"] if name.endswith("ih") else 0
        np.testing.assert_array_equal(value, np.broadcast_to(expected, value.shape))
    assert len(imported.split_biases) == (2 if codec[0] == "pytorch" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_biases_stay_none_or_become_zeros(
    kind: str, codec: tuple[str, str], tmp_path: Path
) -> None:
    export = export_of([KINDS[kind](bias=False)])
    path, notes = written(codec, export, tmp_path)
    biases = [name for name in registry.read(path).tensors if "bias" in name]
    if codec[0] == "tmva":
        assert "layer 0 has no biases: written with biases of 0" in notes[0]
        assert not any(registry.read(path).tensors[name].any() for name in biases)
        assert biases
    else:
        assert not biases


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_survives(dtype: str, codec: tuple[str, str], tmp_path: Path) -> None:
    """ONNX's recurrent operators compute in float32, which a note says."""
    path, notes = written(codec, holdable(codec, "lstm", dtype), tmp_path)
    dtypes = {str(value.dtype) for value in registry.read(path).tensors.values()}
    assert dtypes == {"float32" if codec[0] == "onnx" else dtype}
    assert any("from float64 to float32" in n for n in notes) == ({dtype} != dtypes)


def test_metadata_of_a_file_that_was_read(codec: tuple[str, str], tmp_path: Path) -> None:
    path, _ = written(codec, holdable(codec, "lstm"), tmp_path)
    imported = registry.read(path)
    assert (imported.path, imported.format) == (path, codec[0])
    assert imported.title
    assert imported.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert imported.gate_orders["lstm"].split() == [
        {"g": "c"}.get(letter, letter) if codec[0] in ("keras", "onnx") else letter
        for letter in ORDERS[codec[0]]["lstm"]
    ]
    assert imported.read_options == ReadOptions()


def test_equal_networks_give_equal_bytes(codec: tuple[str, str], tmp_path: Path) -> None:
    path, _ = written(codec, export_of(CASES["classes"].layers), tmp_path)
    before = path.read_bytes()
    written(codec, export_of(CASES["classes"].layers), tmp_path)
    assert path.read_bytes() == before
    written(codec, export_of(CASES["classes"].layers, seed=1), tmp_path)
    assert path.read_bytes() != before


def test_the_format_is_detected_by_content(codec: tuple[str, str], tmp_path: Path) -> None:
    """The file has no suffix, and other formats refuse it."""
    path, _ = written(codec, holdable(codec, "rnn"), tmp_path)
    unnamed = path.rename(tmp_path / "weights")
    assert registry.detect_format(unnamed).name == codec[0]
    for other in registry.FORMATS.keys() - {codec[0]}:
        if {other, codec[0]} == {"native", "pytorch"} and codec[1] == "w.safetensors":
            continue  # both are safetensors, with other names of tensors
        with pytest.raises(WeightsError, match="weights"):
            registry.read(unnamed, ReadOptions(format=other))


@pytest.mark.parametrize("content", [b"", b"0 1 2\n3 4 5\n", bytes(1000), b"\xff" * 1000])
def test_a_file_of_no_format(content: bytes, codec: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / codec[1]
    path.write_bytes(content)
    for options in (ReadOptions(), ReadOptions(format=codec[0])):
        with pytest.raises(WeightsError) as caught:
            registry.read(path, options)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 4


def test_a_missing_file_and_a_folder(codec: tuple[str, str], tmp_path: Path) -> None:
    for path, found in ((tmp_path / codec[1], "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(WeightsError, match=found):
            registry.read(path, ReadOptions(format=codec[0]))


def test_a_failed_write_keeps_the_old_file(
    codec: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = written(codec, holdable(codec, "lstm"), tmp_path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LstmCliError, match="no space left on device") as caught:
        written(codec, holdable(codec, "rnn"), tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_old_file(codec: tuple[str, str], tmp_path: Path) -> None:
    written(codec, holdable(codec, "lstm"), tmp_path)
    path, _ = written(codec, holdable(codec, "rnn"), tmp_path)
    assert len(registry.read(path).tensors["layers.0.weight_ih"]) == 3
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(LstmCliError, match="no such file or directory"):
        registry.write(tmp_path / "none" / path.name, codec[0], holdable(codec, "rnn"))


def test_a_layer_as_wide_as_its_input(codec: tuple[str, str], tmp_path: Path) -> None:
    """No shape shows the meaning of a matrix."""
    export = holdable(codec, "gru", size=D)
    path, _ = written(codec, export, tmp_path)
    imported = registry.read(path)
    for name in ("layers.0.weight_ih", "layers.0.weight_hh"):
        np.testing.assert_array_equal(imported.tensors[name], export.tensors[name])


def test_selecting_options_are_for_state_dicts(codec: tuple[str, str], tmp_path: Path) -> None:
    path, _ = written(codec, holdable(codec, "lstm"), tmp_path)
    options = ReadOptions(only=("lstm.*",))
    if codec[0] == "pytorch":
        assert isinstance(registry.read(path, options), Imported)
    else:
        with pytest.raises(LstmCliError, match="--only selects tensors of a state dict only"):
            registry.read(path, options)
