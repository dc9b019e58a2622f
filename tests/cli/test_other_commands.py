"""``inspect-shapes``, ``data``, ``devices``, ``schema`` and ``bench`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import lstm_cli

VOWELS = "data/japanese-vowels.h5"


@pytest.fixture(autouse=True)
def _at_root(monkeypatch, request):
    monkeypatch.chdir(Path(request.config.rootpath))


def test_inspect_lists_eight_matrices_and_four_biases(lstm):
    outcome = lstm("inspect-shapes", "configs/japanese-vowels.yaml")
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines()]
    names = [row[0] for row in rows if row]
    for letter in "ifgo":
        for symbol in "WUb":
            assert names.count(f"{symbol}_{letter}") == 1
    row = next(row for row in rows if row and row[0] == "U_g")
    assert "(H," in row
    assert "10,000" in row
    assert "weight_hh[200:300]" in row
    assert "(64, T, 100)" in outcome.out  # N is the batch size, T is not known yet


def test_inspect_with_data_knows_steps_and_bytes(lstm):
    document = lstm(
        "inspect-shapes", "configs/japanese-vowels.yaml", f"{VOWELS}:/test", "--json"
    ).json
    assert document["parameters"] == 46109
    flow = document["layers"][0]["flows"][1]
    assert flow["per_batch"] == [64, 29, 100]
    assert flow["bytes"] == 64 * 29 * 100 * 4


def test_inspect_names_every_misfit_at_once(lstm, config, tmp_path):
    model = lstm_cli.build(config)
    text = model.config.to_yaml().replace("hidden_size: 7", "hidden_size: 8")
    (tmp_path / "other.yaml").write_text(text)
    model.save(tmp_path / "old.safetensors")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = np.zeros((2, 3, 6), np.float32)
    old = tmp_path / "old.safetensors"
    arguments = (tmp_path / "other.yaml", tmp_path / "x.h5", "--weights", old)
    outcome = lstm("inspect-shapes", *arguments)
    assert outcome.code == 4
    assert "8 misfits between" in outcome.err
    for part in ("layers.0.weight_ih", "layers.0.weight_hh", "layers.0.bias", "layers.0.reverse."):
        assert part in outcome.err
    assert "D = 16 is the output of layer 0" in outcome.err
    assert "6 is the last axis of" in outcome.err
    assert "✗ H" in outcome.out
    document = lstm("inspect-shapes", *arguments, "--json").json
    assert len(document["weights_problems"]) == 7
    assert len(document["data_problems"]) == 1


def test_inspect_exits_3_for_data_alone(lstm, config, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = np.zeros((2, 3, 6), np.float32)
    assert lstm("inspect-shapes", config, tmp_path / "x.h5").code == 3


def test_inspect_a_weights_file_with_and_without_config(lstm, config, tmp_path):
    from lstm_cli.formats import native

    model = lstm_cli.build(config)
    model.save(tmp_path / "with.safetensors")
    assert "lstm 5 → 14" in lstm("inspect-shapes", tmp_path / "with.safetensors").out
    native.write(tmp_path / "without.safetensors", model.weights, None)
    bare = lstm("inspect-shapes", tmp_path / "without.safetensors")
    assert bare.code == 0
    assert "layers.0.reverse.weight_hh" in bare.out
    assert "carries no config" in bare.err
    assert lstm("run", tmp_path / "without.safetensors", VOWELS).code == 4


def test_data_tells_what_a_file_holds(lstm):
    outcome = lstm("data", VOWELS)
    assert outcome.code == 0
    assert "concatenated" in outcome.out
    assert "7 to 29" in outcome.out
    assert "input_size: 12" in outcome.out
    document = lstm("data", f"{VOWELS}:/test", "--json").json
    (group,) = document["groups"]
    assert (group["count"], group["features"], group["total_steps"]) == (370, 12, 5687)


@pytest.mark.parametrize("part", ["", ":/train"])
def test_the_suggested_config_runs_on_any_part(lstm, tmp_path, part):
    document = lstm("data", VOWELS + part, "--json").json
    (tmp_path / "c.yaml").write_text(document["suggestion"])
    outcome = lstm("run", tmp_path / "c.yaml", f"{VOWELS}:/test")
    assert outcome.code == 0, outcome.err
    assert "370 sequences" in outcome.out
    assert "accuracy" in outcome.out


def test_the_config_suggested_for_a_series_forecasts_it(lstm, tmp_path):
    document = lstm("data", "data/sunspots.h5", "--json").json
    (tmp_path / "c.yaml").write_text(document["suggestion"])
    outcome = lstm("run", tmp_path / "c.yaml", "data/sunspots.h5")
    assert outcome.code == 0, outcome.err
    assert "289 windows" in outcome.out
    assert "MSE" in outcome.out


def test_data_says_what_is_wrong(lstm, tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    x[1, 2, 0] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = x
    outcome = lstm("data", tmp_path / "x.h5")
    assert outcome.code == 0
    assert "NaN" in outcome.err
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["text"] = "words"
    assert lstm("data", tmp_path / "none.h5").code == 3


def test_devices(lstm):
    document = lstm("devices", "--json").json
    by_name = {engine["engine"]: engine for engine in document["engines"]}
    assert by_name["reference"]["usable"]
    assert not by_name["cuda"]["usable"]
    assert by_name["cuda"]["detail"]
    assert document["auto"] == "reference"
    assert "reference" in lstm("devices").out


def test_schema(lstm, tmp_path):
    document = lstm("schema").json
    assert document["$schema"].startswith("https://json-schema.org/")
    assert lstm("schema", "--output", tmp_path / "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == document


SMALL = ("--hidden", "5,8", "--batch", "2", "--steps", "3", "--features", "4", "--rounds", "2")


def test_bench_measures_compares_and_saves(lstm, tmp_path):
    outcome = lstm("bench", *SMALL, "--save", tmp_path / "b.json")
    assert outcome.code == 0
    assert "GFLOP/s" in outcome.out
    assert "5 × 2 × 3, D 4" in outcome.out
    assert "by gate" in outcome.out
    compared = lstm("bench", *SMALL, "--compare", tmp_path / "b.json")
    assert compared.code == 0
    assert "against the baseline" in compared.out


def test_bench_against_a_peer_compares_outputs_first(lstm):
    pytest.importorskip("onnxruntime")
    document = lstm("bench", *SMALL, "--against", "onnxruntime", "--json").json
    for result in document["results"]:
        assert result["agreements"]["onnxruntime"]["ok"]
        assert result["ratios"]["onnxruntime"] > 0
    assert document["geometric_mean"] > 0
    assert {cost["gate"] for cost in document["gates"]} >= set("ifgo")


def test_bench_of_a_config(lstm, config):
    outcome = lstm("bench", config, "--batch", "2", "--steps", "3", "--rounds", "1")
    assert outcome.code == 0
    assert "gru 14 → 6" in outcome.out
    assert lstm("bench", config, "--hidden", "3").code == 2
