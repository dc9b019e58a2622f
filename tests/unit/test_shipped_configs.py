"""The shipped configs fit the shipped data, and every-option.yaml leaves no option out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import h5py
import pytest
import yaml
from repository import ROOT

from lstm_cli import config
from lstm_cli.engines.types import RecurrentSpec

CONFIGS = {
    "japanese-vowels.yaml": "japanese-vowels.h5:/train",
    "sunspots.yaml": "sunspots.h5:/",
    "tmva-time.yaml": "tmva-time.h5:/train",
    "every-option.yaml": "japanese-vowels.h5:/train",
}


def load(name: str) -> config.Config:
    return config.load(ROOT / "configs" / name)


def test_there_is_no_other() -> None:
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_is_plain_yaml_and_its_weights_are_there(name: str) -> None:
    document = yaml.safe_load((ROOT / "configs" / name).read_text("utf-8"))
    sections = ("model", "weights", "data", "train")
    assert list(document) == [key for key in sections if key in document]
    weights = load(name).weights
    assert weights is None or weights.exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_and_answers_what_its_data_hold(name: str) -> None:
    path, group = CONFIGS[name].split(":")
    specs = load(name).specs
    with h5py.File(ROOT / "data" / path) as file:
        part = file[group]
        assert specs[0].input_size == part["inputs"].shape[-1]
        if "classes" in part.attrs:
            outputs = len(part.attrs["classes"])
        else:
            outputs = part["targets" if "targets" in part else "inputs"].shape[1]
    assert specs[-1].output_size == outputs


@pytest.mark.parametrize("name", CONFIGS)
def test_names_only_files_that_are_here(name: str) -> None:
    text = (ROOT / "configs" / name).read_text("utf-8")
    named = re.findall(r"(?:configs|data|scripts)/[\w.-]+\.(?:yaml|h5|py)", text)
    assert named
    assert all((ROOT / path).is_file() for path in named)


def test_tmva_time_is_the_tutorials_network() -> None:
    tmva = load("tmva-time.yaml")
    lstm, flatten, hidden, output = tmva.specs
    assert isinstance(lstm, RecurrentSpec)
    assert (lstm.kind, lstm.hidden_size, lstm.input_size, lstm.return_sequences) == (
        "lstm", 10, 30, True,
    )  # fmt: skip
    assert (flatten.kind, flatten.output_size) == ("flatten", 10 * 10)
    assert (hidden.kind, hidden.output_size, hidden.input_size) == ("dense", 64, 100)
    assert (output.kind, output.output_size, output.input_size) == ("dense", 1, 64)
    assert tmva.init_scheme == "xavier_uniform"


def property_names(schema: Any) -> Iterator[str]:
    """Every key that a JSON Schema admits, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            yield from property_names(value)


def test_every_option_has_every_option() -> None:
    text = (ROOT / "configs" / "every-option.yaml").read_text("utf-8")
    words = set(re.findall(r"\w+", text))
    options = set(property_names(config.json_schema()))
    assert len(options) > 50
    assert options <= words
