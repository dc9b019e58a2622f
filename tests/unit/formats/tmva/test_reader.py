"""TMVA files written by hand, read and run against TMVA's equations; files that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tmva_files as tmva
from codec_cases import imported_outputs
from networks import random_inputs

from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry

DENSE = tmva.dense(3, 2, 3, np.random.default_rng(0))
RECURRENT = tmva.recurrent("LSTMLayer", 2, 3, 4, np.random.default_rng(1), ReturnSequence=0)
GAUSS = '<Transformations NTransformations="1"><Transform Name="Gauss"/></Transformations>'
BROKEN = {
    "is a TMVA layer that lstm-cli does not have": ("ReshapeLayer", "BatchNormLayer"),
    "of another TMVA method": ("DL::TMVA", "BDT::TMVA"),
    "reads transformed variables": ('<Transformations NTransformations="0"/>', GAUSS),
    "does not hold the layers that it declares": ('NetDepth="3"', 'NetDepth="2"'),
    "StateSize of LSTMLayer does not fit": ('StateSize="3"', 'StateSize="4"'),
    "InputSize of LSTMLayer does not fit": ('InputSize="2"', 'InputSize="1"'),
    "TimeSteps of LSTMLayer does not fit": ('TimeSteps="4"', 'TimeSteps="-4"'),
    "the input layout": ('InputWidth="2"', 'InputWidth="5"'),
    "Width of DenseLayer does not fit": ('<DenseLayer Width="2"', '<DenseLayer Width="3"'),
    "ActivationFunction of DenseLayer does not": ('Function="3"', 'Function="8"'),
    "ActivationFunction of DenseLayer": ('Function="3"', 'Function="3.0"'),
    "ReturnSequence of LSTMLayer does not fit": ('ReturnSequence="0"', 'ReturnSequence="2"'),
    "ReturnSequence of LSTMLayer": ('ReturnSequence="0"', 'ReturnSequence="no"'),
    "OutputFunction of Weights does not fit": ('OutputFunction="I"', 'OutputFunction="Q"'),
    "has no matrix OuputWeights": ("OuputWeights", "Weights"),
    "'InputBiases' does not hold the matrix": (
        '<InputBiases Rows="3" Columns="1">',
        '<InputBiases Rows="3" Columns="1">7 ',
    ),
    "fit neither of TMVA's two writers": (
        '<OutputStateWeights Rows="3" Columns="3">',
        '<OutputStateWeights Rows="3" Columns="4">0 0 0 ',
    ),
    "OutputBiases of LSTMLayer.0. has another number of units": (
        '<OutputBiases Rows="3"',
        '<OutputBiases Rows="1"',
    ),
    "DenseLayer.2. does not fit the network": (
        '<Weights Rows="2" Columns="3">',
        '<Weights Rows="2" Columns="4">0 0 ',
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_named(message: str, tmp_path: Path) -> None:
    path, (old, new) = tmp_path / "w.xml", BROKEN[message]
    content = tmva.text([RECURRENT, tmva.flat(3), DENSE], shape=(4, 2))
    assert old in content
    changed = content.replace(old, new)
    if 'Rows="1"' in new:
        changed = re.sub(r"(<OutputBiases[^>]*>\S+)[^<]*", r"\1", changed)
    path.write_text(changed)
    with pytest.raises(WeightsError, match=message):
        registry.read(path)


def test_an_output_function_after_an_activation(tmp_path: Path) -> None:
    """It becomes a layer of its own, and the outputs are TMVA's."""
    layers = [RECURRENT, tmva.flat(3), DENSE]
    for output in "SM":
        imported = registry.read(tmva.write(tmp_path / "w.xml", layers, output=output))
        x = random_inputs(4, 4, 2)
        found = imported_outputs(imported, x)
        np.testing.assert_allclose(found, tmva.evaluate(layers, x, output), rtol=0, atol=1e-12)
        assert any("dense layer of its own" in note for note in imported.notes)


def test_attributes_that_an_older_file_lacks(tmp_path: Path) -> None:
    """No ReturnSequence: every step; a dense layer behind it reads them flattened."""
    rng = np.random.default_rng(2)
    rnn = tmva.recurrent("RNNLayer", 2, 3, 4, rng)
    del rnn.attributes["ReturnSequence"]
    layers = [rnn, tmva.dense(12, 2, 0, rng)]
    content = tmva.text(layers, bare=True).replace(' OutputFunction="I"', "")
    (tmp_path / "w.xml").write_text(content.replace('Columns="1"', 'Columns="1" Note="é"'))
    imported = registry.read(tmp_path / "w.xml")
    x = random_inputs(4, 4, 2)
    expected = tmva.evaluate([rnn, tmva.flat(12), layers[1]], x)
    found = imported_outputs(imported, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    notes = " ".join(imported.notes)
    assert "does not state ReturnSequence" in notes
    assert "flattened before it" in notes
    assert "--set model.layers.2.activation=sigmoid" in notes


def test_a_first_layer_that_gives_the_input_its_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shape = tmva.Layer("ReshapeLayer", {"Depth": 1, "Height": 4, "Width": 2, "Flattening": 0})
    layers = [shape, RECURRENT, tmva.flat(3), tmva.dense(3, 1, 0, rng)]
    imported = registry.read(tmva.write(tmp_path / "w.xml", layers, shape=(1, 8)))
    x = random_inputs(4, 4, 2)
    found = imported_outputs(imported, x)
    np.testing.assert_allclose(found, tmva.evaluate(layers[1:], x), rtol=0, atol=1e-12)
    assert imported.config is not None
    assert imported.config["model"]["input_size"] == 2
