"""Files of both TMVA writers, written by hand, read, and compared with TMVA's equations.

The expected outputs are computed from the matrices before they were written, in plain NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tmva_files as tmva
from codec_cases import imported_outputs
from tmva_files import Layer, dense, flat, recurrent

from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Imported, ReadOptions

WRITERS = ("slots", "labels")


def check(path: Path, layers: list[Layer], order: Any = None, **options: Any) -> Imported:
    """Read a file of these layers and compare its outputs with the equations'."""
    first = layers[0].attributes
    shape = (first["TimeSteps"], first["InputSize"])
    tmva.write(path, layers, shape=shape, **options)
    imported = registry.read(path, ReadOptions(tmva_order=order))
    assert imported.format == "tmva"
    x = np.random.default_rng(9).normal(size=(5, *shape))
    expected = tmva.evaluate(layers, x, options.get("output", "I"))
    found = imported_outputs(imported, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    return imported


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("sizes", [(4, 3), (3, 5), (1, 2), (2, 1), (4, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("tag", ["LSTMLayer", "GRULayer", "RNNLayer"])
def test_a_layer(tag: str, sizes: tuple[int, int], writer: str, tmp_path: Path) -> None:
    D, H = sizes
    rng = np.random.default_rng([D, H])
    order = writer if D == H else None
    for sequence in (0, 1):
        layers = [recurrent(tag, D, H, 6, rng, ReturnSequence=sequence)]
        imported = check(tmp_path / "w.xml", layers, order, writer=writer)
        if tag != "RNNLayer":
            said = any("older writer" in note for note in imported.notes)
            assert said == (writer == "labels")


def test_the_reset_gate_after_the_product(tmp_path: Path) -> None:
    layers = [recurrent("GRULayer", 3, 4, 5, np.random.default_rng(1), ResetGateAfter=1)]
    check(tmp_path / "w.xml", layers)


@pytest.mark.parametrize("output", ["I", "S", "M"])
def test_the_tutorial_network(output: str, tmp_path: Path) -> None:
    """``LSTM|10|30|10|0|1,RESHAPE|FLAT,DENSE|64|TANH,LINEAR``."""
    rng = np.random.default_rng(2)
    units = 3 if output == "M" else 1
    lstm = recurrent("LSTMLayer", 30, 10, 10, rng)
    layers = [lstm, flat(100), dense(100, 64, 3, rng), dense(64, units, 0, rng)]
    imported = check(tmp_path / "w.xml", layers, output=output)
    assert imported.title == "TMVA XML of ROOT 6.30/02"
    assert imported.config is not None
    last = {"type": "dense", "units": units}
    last |= {"S": {"activation": "sigmoid"}, "M": {"activation": "softmax"}}.get(output, {})
    assert imported.config["model"] == {
        "input_size": 30,
        "steps": 10,
        "layers": [
            {"type": "lstm", "hidden_size": 10},
            {"type": "flatten"},
            {"type": "dense", "units": 64, "activation": "tanh"},
            last,
        ],
    }


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([40, seed])
    size, T = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    layers: list[Layer] = []
    count = int(rng.integers(1, 4))
    for k in range(count):
        # Every layer is wider than its input, so that each says by whom it was written.
        H = size + int(rng.integers(1, 4))
        tag = ("LSTMLayer", "GRULayer", "RNNLayer")[rng.integers(3)]
        more = {"ResetGateAfter": int(rng.integers(2))} if tag == "GRULayer" else {}
        sequence = int(k < count - 1 or rng.integers(2))
        layers.append(recurrent(tag, size, H, T, rng, ReturnSequence=sequence, **more))
        size = H
    size *= T if layers[-1].attributes["ReturnSequence"] else 1
    layers.append(flat(size))
    for _ in range(int(rng.integers(0, 3))):
        width = int(rng.integers(1, 6))
        layers.append(dense(size, width, int(rng.integers(7)), rng))
        size = width
    check(
        tmp_path / "w.xml",
        layers,
        writer=WRITERS[rng.integers(2)],
        output="ISM"[rng.integers(3)],
        bare=bool(rng.integers(2)),
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_a_layer_that_decides_tells_of_the_others(writer: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    wide, square = recurrent("LSTMLayer", 2, 3, 4, rng), recurrent("LSTMLayer", 3, 3, 4, rng)
    gru, last = recurrent("GRULayer", 3, 3, 4, rng), recurrent("GRULayer", 3, 4, 4, rng)
    check(tmp_path / "w.xml", [wide, square, gru], writer=writer)
    check(tmp_path / "w.xml", [square, gru, last], writer=writer)


def test_the_older_spelling_decides(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    old = recurrent("LSTMLayer", 3, 3, 4, rng)
    old.renamed = {"CandidateWeights": "Candidateeights"}
    check(tmp_path / "w.xml", [old], writer="labels")
    check(tmp_path / "w.xml", [old], "labels", writer="labels")
    with pytest.raises(WeightsError, match="cannot be read in the order slots"):
        check(tmp_path / "w.xml", [old], "slots", writer="labels")


@pytest.mark.parametrize("tag", ["LSTMLayer", "GRULayer"])
def test_what_neither_decides_is_asked(tag: str, tmp_path: Path) -> None:
    """Read the other way the file would run, and give something else."""
    layers = [recurrent(tag, 3, 3, 4, np.random.default_rng(5))]
    path = tmp_path / "w.xml"
    with pytest.raises(WeightsError, match=rf"{tag}\[0\] can be read in two ways") as caught:
        check(path, layers)
    assert "--tmva-order slots" in str(caught.value)
    check(path, layers, "slots")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(path, layers, "labels")


@pytest.mark.parametrize("writer", WRITERS)
def test_an_order_against_the_shapes_is_an_error(writer: str, tmp_path: Path) -> None:
    layers = [recurrent("LSTMLayer", 2, 3, 4, np.random.default_rng(6))]
    other = WRITERS[writer == "slots"]
    with pytest.raises(WeightsError, match=f"--tmva-order {writer}, which its matrices fit"):
        check(tmp_path / "w.xml", layers, other, writer=writer)
    check(tmp_path / "w.xml", layers, writer, writer=writer)


def test_single_precision_and_six_decimals(tmp_path: Path) -> None:
    """Few digits are read as float32; nine give every bit back."""
    rng = np.random.default_rng(7)
    layer = recurrent("LSTMLayer", 3, 5, 4, rng)
    layer.matrices = {k: v.astype(np.float32) for k, v in layer.matrices.items()}
    for digits, bound in ((6, 1e-6), (8, 0.0)):
        imported = registry.read(tmva.write(tmp_path / "w.xml", [layer], digits=digits))
        found = imported.tensors["layers.0.weight_ih"]
        wanted = np.concatenate([layer.matrices[f"W_{gate}"] for gate in "ifgo"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=bound, atol=0)


def test_where_every_matrix_stood(tmp_path: Path) -> None:
    layer = recurrent("LSTMLayer", 2, 3, 4, np.random.default_rng(8))
    imported = registry.read(tmva.write(tmp_path / "w.xml", [layer]))
    found = {stored.name: (stored.native, stored.block) for stored in imported.sources}
    expected = {"W": "weight_ih", "U": "weight_hh", "b": "bias"}
    assert found == {
        f"LSTMLayer[0]/{element}": (f"layers.0.{expected[holds[0]]}", holds[2])
        for element, holds, _ in tmva.LSTM
    }
