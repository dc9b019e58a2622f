"""Configs from files and mappings: paths, weights, and the resolved text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from lstm_cli.config import Config, from_mapping, from_text, load
from lstm_cli.config.schema import INIT_SCHEMES
from lstm_cli.errors import ConfigError

CONTRACT = """\
model:
  input_size: 12
  layers:
    - {type: lstm, hidden_size: 100, return_sequences: false}
    - {type: dense, units: 9, activation: softmax}
weights: ../data/japanese-vowels.safetensors   # optional; relative to this file
data:
  inputs: inputs          # dataset names in the HDF5 file; all optional, see 4
  targets: targets
  lengths: lengths
train:
  loss: cross_entropy     # | binary_cross_entropy | mse | mae | huber
  optimizer: {type: adam, learning_rate: 0.001}
  batch_size: 32
  epochs: 50
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "vowels.yaml"
    path.write_text(CONTRACT)
    return load(path)


def test_the_config_of_the_contract(config: Config, tmp_path: Path) -> None:
    assert config.name == "vowels"
    assert config.source == str(tmp_path / "configs" / "vowels.yaml")
    assert config.weights == tmp_path / "data/japanese-vowels.safetensors"
    assert [spec.kind for spec in config.specs] == ["lstm", "dense"]
    assert (config.init_scheme, config.init_seed) == ("glorot_uniform", 0)
    data, train = config.data, config.train
    assert (data.inputs, data.targets, data.lengths) == ("inputs", "targets", "lengths")
    assert (data.offsets, data.mask, data.layout, data.window) == (None, None, None, None)
    assert train is not None
    assert (train.loss, train.batch_size, train.epochs) == ("cross_entropy", 32, 50)
    assert (train.optimizer.type, train.optimizer.learning_rate) == ("adam", 0.001)
    assert train.schedule.type == "constant"


def test_where(config: Config) -> None:
    where = config.source + " line {}"
    assert config.where("model", "layers", 0, "hidden_size") == where.format(4)
    assert config.where("model", "layers", 1) == where.format(5)
    assert config.where("train", "epochs") == where.format(15)
    assert config.where("train", "seed") == where.format(11), "a default stands in its section"
    assert config.where("model", "init", "seed") == where.format(1)
    assert config.where() == config.source


def test_sections_may_be_left_empty() -> None:
    text = (
        "model: {input_size: 3, layers: [{type: gru, hidden_size: 2}]}\ndata:\ntrain:\nweights:\n"
    )
    config = from_text(text, "a.yaml", None)
    assert (config.train, config.weights) == (None, None)
    assert config.data.inputs is None
    assert config.where("data") == "a.yaml line 2"


def test_an_absolute_path_of_weights_stays(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    text = f"model: {{input_size: 3, layers: [{{type: gru, hidden_size: 2}}]}}\nweights: {path}\n"
    assert from_text(text, "a", Path("elsewhere")).weights == path


@pytest.mark.parametrize(
    ("written", "found"),
    [("0.2", 0.2), ("words.h5:/test", "configs/words.h5:/test"), ("w.h5:/", "configs/w.h5:/")],
)
def test_validation_is_found_from_the_configs_folder(written: str, found: object) -> None:
    text = "model: {input_size: 3, layers: [{type: gru, hidden_size: 2}]}\n"
    text += f"train: {{loss: mse, validation: '{written}'}}".replace("'0.2'", "0.2")
    config = from_text(text, "a", Path("configs"))
    assert str(config.validation).replace("\\", "/") == str(found)
    assert from_text(text, "a", None).validation == (0.2 if found == 0.2 else written)


@pytest.mark.parametrize(
    ("written", "scaling"),
    [("true", "standard"), ("false", None), ("standard", "standard"), ("minmax", "minmax")],
)
def test_normalize(written: str, scaling: str | None) -> None:
    text = "model: {input_size: 3, layers: [{type: gru, hidden_size: 2}]}\n"
    config = from_text(f"{text}train: {{loss: mse, normalize: {written}}}", "a", None)
    assert config.train is not None
    assert config.train.scaling == scaling


def test_a_mapping_may_hold_tuples_paths_and_numpy_numbers(tmp_path: Path) -> None:
    layer = MappingProxyType({"type": "lstm", "hidden_size": np.int64(4), "clip": np.float64(2)})
    train = {"loss": "cross_entropy", "class_weights": {np.int64(1): np.float64(0.5)}}
    dense = {"type": "dense", "units": 3, "activation": "softmax"}
    model = {"input_size": np.array(3), "layers": (layer, dense)}
    config = from_mapping({"model": model, "weights": tmp_path / "w", "train": train})
    assert (config.specs[0].input_size, config.specs[0].output_size) == (3, 4)
    assert config.weights == tmp_path / "w"
    assert config.train is not None
    assert config.train.class_weights == {1: 0.5}
    assert (config.name, config.source, config.where("model")) == ("config", "config", "config")


def test_a_mapping_that_contains_itself() -> None:
    loop: dict[str, object] = {}
    loop["model"] = loop
    with pytest.raises(ConfigError, match="nested too deeply"):
        from_mapping(loop)


def test_the_resolved_config_says_everything_but_the_weights(config: Config) -> None:
    text = config.to_yaml()
    assert "weights" not in text
    for said in ("forget_bias: 1.0", "beta2: 0.999", "activation: softmax", "scheme:"):
        assert said in text
    again = from_text(text, config.source, None)
    assert again == config
    assert again.to_yaml() == text
    assert again.weights is None


def test_configs_that_differ_are_not_equal(config: Config) -> None:
    for change in ("train.epochs=51", "model.layers.0.forget_bias=0", "data.mask=m"):
        assert from_text(CONTRACT, config.source, None, [change]) != config


def test_a_config_does_not_change(config: Config) -> None:
    with pytest.raises(Exception, match="frozen"):
        config.model.input_size = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.name = "other"  # type: ignore[misc]


def test_init_schemes_are_those_of_the_network() -> None:
    from lstm_cli.network.initializers import SCHEMES

    assert set(INIT_SCHEMES) == set(SCHEMES)


def test_importing_the_package_does_not_import_the_schema() -> None:
    code = "import sys, lstm_cli; print(sorted({'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_another_section_of_training_is_checked_against_the_network(config: Config) -> None:
    changed = config.with_train({"loss": "mse", "optimizer": {"type": "sgd", "momentum": 0.5}})
    assert changed.train is not None
    assert (changed.train.loss, changed.train.optimizer.type) == ("mse", "sgd")
    assert (changed.specs, changed.weights) == (config.specs, config.weights)
    with pytest.raises(ConfigError, match="which needs a sigmoid at the end"):
        config.with_train({"loss": "binary_cross_entropy"})
