"""``inspect-shapes``, ``data``, ``schema`` and ``bench`` as a user runs them."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest

import lstm_cli
from lstm_cli.cli.display.bench_tables import size_table
from lstm_cli.cli.display.console import Console
from lstm_cli.engines.selection import engine_statuses
from lstm_cli.workflows.bench import GridSize, PeerAgreement, RooflineShares, SizeResult, Timing

pytestmark = pytest.mark.usefixtures("at_root")

VOWELS = "data/japanese-vowels.h5"


def test_inspect_lists_eight_matrices_and_four_biases(lstm):
    one_way = "model.layers.0.bidirectional=false"
    outcome = lstm(
        "inspect-shapes", "configs/japanese-vowels.yaml", "--set", one_way, "--set", "weights="
    )
    assert outcome.code == 0, outcome.err
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


def test_inspect_says_that_there_are_no_biases(lstm, config):
    bare = [part for k in range(3) for part in ("--set", f"model.layers.{k}.bias=false")]
    outcome, whole = lstm("inspect-shapes", config, *bare), lstm("inspect-shapes", config)
    assert "lstm 5 → 14, both directions, no biases\n" in outcome.out
    assert "gru 14 → 6, no biases\n" in outcome.out
    assert "dense 6 → 3, no bias\n" in outcome.out
    assert not re.search(r"^b_|^b ", outcome.out, re.M)
    assert "no bias" not in whole.out
    document = lstm("inspect-shapes", config, *bare, "--json").json
    gates = [g for k in (0, 1) for d in document["layers"][k]["directions"] for g in d["gates"]]
    assert {gate["b"] for gate in gates} == {None}
    assert document["parameters"] == 2 * 28 * (5 + 7) + 18 * (14 + 6) + 3 * 6


def test_inspect_with_data_knows_steps_and_bytes(lstm):
    document = lstm(
        "inspect-shapes", "configs/japanese-vowels.yaml", f"{VOWELS}:/test", "--json"
    ).json
    assert document["parameters"] == 92209
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


def test_inspect_exits_3_for_data_that_does_not_fit(lstm, config, tmp_path):
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
    assert "has no config" in bare.err
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
    assert "290 windows" in outcome.out
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


def test_data_describes_rows_of_unknown_features(lstm, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        rows = file.create_dataset("inputs", (2,), h5py.vlen_dtype(np.float32))
        rows[0], rows[1] = np.ones(8), np.ones(12)
    outcome = lstm("data", tmp_path / "x.h5")
    assert outcome.code == 0
    assert "8 to 12, median 10 in a row" in outcome.out
    assert "one of 1, 2, 4" in outcome.out
    assert "input_size: 4" in outcome.out
    assert "--set" not in outcome.err


def test_data_exits_3_if_groups_differ_in_features(lstm, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, features in {"a": 5, "b": 4}.items():
            file[f"{name}/inputs"] = np.ones((3, features))
    outcome = lstm("data", tmp_path / "x.h5")
    assert outcome.code == 3
    assert "differ in features" in outcome.err


def test_data_shows_a_few_of_many_alike(lstm, tmp_path):
    rng = np.random.default_rng(2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for n in range(35):
            file[f"s{n}/inputs"] = rng.normal(size=(2, 3))
            file[f"s{n}/targets"] = n % 2
    outcome = lstm("data", tmp_path / "x.h5")
    assert "/s19/inputs" in outcome.out
    assert "/s20/inputs" not in outcome.out
    assert "… 15 more like /s0/inputs" in outcome.out
    assert "… 15 more like /s0/targets" in outcome.out
    assert len(lstm("data", tmp_path / "x.h5", "--json").json["datasets"]) == 70


def test_data_shows_a_few_of_many_problems_and_parts(lstm, tmp_path):
    x = np.full((2, 3, 30), np.nan)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for n in range(25):
            file[f"p{n}/inputs"] = x
    outcome = lstm("data", tmp_path / "x.h5")
    assert "… 5 more groups of sequences" in outcome.out
    assert "… 730 more" in outcome.err
    document = lstm("data", tmp_path / "x.h5", "--json").json
    assert (len(document["groups"]), len(document["problems"])) == (25, 750)


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
    assert "forward passes against the baseline" in compared.out


def test_bench_against_a_peer_compares_outputs_first(lstm):
    pytest.importorskip("onnxruntime")
    document = lstm("bench", *SMALL, "--against", "onnxruntime", "--json").json
    for result in document["results"]:
        assert result["agreements"]["onnxruntime"]["ok"]
        assert result["ratios"]["onnxruntime"] > 0
    assert document["geometric_mean"] > 0
    assert {cost["gate"] for cost in document["gates"]} >= set("ifgo")


TRAINING = ("--mode", "train", *SMALL)


def test_bench_measures_training_steps(lstm):
    outcome = lstm("bench", *TRAINING)
    assert outcome.code == 0
    assert outcome.out.splitlines()[1] == "training steps"
    assert "GFLOP/s" in outcome.out
    assert "peak memory" in outcome.out
    assert "by gate" not in outcome.out
    assert lstm("bench", *SMALL).out.splitlines()[1] == "forward passes"
    assert lstm("bench", "--mode", "sideways").code == 2


def test_bench_of_training_in_json(lstm):
    document = lstm("bench", *TRAINING, "--json").json
    assert document["mode"] == "train"
    assert document["gates"] == []
    assert document["peak_memory"] > 1 << 20
    assert [result["layers"] for result in document["results"]] == [
        "lstm 4 → 5, mse",
        "lstm 4 → 8, mse",
    ]
    assert lstm("bench", *SMALL, "--json").json["mode"] == "forward"


def test_bench_of_training_compares_gradients_with_a_peer_first(lstm):
    pytest.importorskip("torch")
    document = lstm("bench", *TRAINING, "--against", "torch", "--json").json
    for result in document["results"]:
        assert result["agreements"]["torch"]["ok"]
        assert result["agreements"]["torch"]["what"].startswith("gradient of layers.0.")
        assert result["ratios"]["torch"] > 0
    outcome = lstm("bench", *TRAINING, "--against", "torch")
    assert "gradients equal within" in outcome.out
    assert "peers included" in outcome.out


def test_bench_shows_the_machines_limits_where_the_engine_knows_them(lstm):
    if not any(status.engine == "jit" and status.usable for status in engine_statuses()):
        pytest.skip("no jit engine here")
    for mode in ("forward", "train"):
        options = ("--mode", mode, *SMALL, "--engine")
        outcome = lstm("bench", *options, "jit")
        assert "of limit" in outcome.out
        assert "% peak" in outcome.out or "% reads" in outcome.out
        assert "measured limits" in outcome.out
        assert "the engine's workspace takes" in outcome.out
        document = lstm("bench", *options, "jit", "--json").json
        assert document["workspace_memory"] > 0
        for result in document["results"]:
            local, H = result["shares"], result["size"]["hidden"]
            assert local["of_peak"] == pytest.approx(
                result["timings"][0]["gflops"] / local["peak_gflops"]
            )
            assert local["read_bytes"] == 4 * H * H * 4 * 3 * (2 if mode == "train" else 1)
        outcome = lstm("bench", *options, "reference")
        assert "limit" not in outcome.out
        document = lstm("bench", *options, "reference", "--json").json
        assert document["workspace_memory"] is None
        assert all(result["shares"] is None for result in document["results"])


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_bench_of_ragged_batches(lstm, mode, tmp_path):
    pytest.importorskip("torch")
    options = ("--mode", mode, *SMALL[:-4], "--features", "4", "--rounds", "1", "--ragged")
    outcome = lstm("bench", *options, "--against", "torch", "--save", tmp_path / "b.json")
    assert outcome.code == 0
    assert "a step" in outcome.out
    assert "by gate" not in outcome.out
    document = lstm("bench", *options, "--against", "torch", "--json").json
    assert document["ragged"]
    for result in document["results"]:
        assert 2 <= result["steps"] <= 2 * 3
        assert result["padded"]["per_step"] > 0
        assert result["agreements"]["torch"]["ok"]
        assert result["ratios"]["torch"] > 0
        assert "ragged" in result["layers"]
    other = lstm("bench", "--mode", mode, *SMALL, "--compare", tmp_path / "b.json")
    assert "does not have" in other.err, "a ragged batch is another thing to measure"


def test_bench_fits_a_terminal_of_100_columns(monkeypatch, capsys):
    peers = [("torch", "PyTorch 2.13.0"), ("onnxruntime", "ONNX Runtime 1.32.0")]
    own = Timing("lstm-cli", "", 13.2e-3, 13.9e-3, 5, 119.0)
    timings = (own, *(Timing(name, title, 32.2e-3, 33e-3, 5, 99.0) for name, title in peers))
    ratios = {name: 12.37 for name, _ in peers}
    agreed = {name: PeerAgreement(1e-7, 1e-5, True) for name, _ in peers}
    shares = RooflineShares(234.0, 0.13, 1, 1.0, 0.88)
    size = GridSize(512, 32, 100, 512)
    result = SizeResult(size, "lstm", timings, ratios, agreed, shares=shares)
    for columns, lines in ((100, 3), (80, 4)):
        monkeypatch.setenv("COLUMNS", str(columns))
        Console().show(size_table([result]))
        shown = capsys.readouterr().out.splitlines()
        assert max(map(len, shown)) <= columns
        assert len(shown) <= lines + (columns == 80), shown
        for word in ("13.2", "13.9", "119", "88", "reads", "32.2", "12.37×", "PyTorch", "1.32.0"):
            assert word in "\n".join(shown), "something was cut"


def test_bench_says_why_a_peer_has_no_ratio(lstm, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("lstm_cli.workflows.bench.workload.GRADIENT_TOLERANCES", {"float32": -1.0})
    outcome = lstm("bench", *TRAINING, "--against", "torch")
    assert outcome.code == 0
    assert "differs by" in outcome.out
    assert "no ratio, torch at 5 × 2 × 3, D 4: loss, difference" in outcome.out
    assert "geometric mean" not in outcome.out


def test_bench_says_who_does_not_train(lstm):
    pytest.importorskip("onnxruntime")
    outcome = lstm("bench", *TRAINING, "--against", "onnxruntime")
    assert outcome.code == 0
    assert "ONNX Runtime does not train" in outcome.out


def test_bench_keeps_baselines_of_both_modes_apart(lstm, tmp_path):
    assert lstm("bench", *TRAINING, "--save", tmp_path / "b.json").code == 0
    same = lstm("bench", *TRAINING, "--compare", tmp_path / "b.json")
    assert "training steps against the baseline" in same.out
    other = lstm("bench", *SMALL, "--compare", tmp_path / "b.json")
    assert other.code == 0
    assert "against the baseline" not in other.out
    assert "bench --mode train measures what the baseline did" in other.err


@pytest.mark.parametrize(
    ("last", "section", "loss"),
    [
        ("{type: dense, units: 3, activation: softmax}", "", "cross_entropy"),
        ("{type: dense, units: 3, activation: sigmoid}", "", "binary_cross_entropy"),
        ("{type: dense, units: 3}", "", "mse"),
        ("{type: dense, units: 3}", "train: {loss: huber}\n", "huber"),
    ],
)
def test_bench_trains_a_config_with_its_loss(lstm, tmp_path, last, section, loss):
    path = tmp_path / "net.yaml"
    layers = f"[{{type: lstm, hidden_size: 4}}, {{type: dropout, rate: 0.5}}, {last}]"
    path.write_text(f"model: {{input_size: 5, layers: {layers}}}\n{section}")
    outcome = lstm(
        "bench", path, "--mode", "train", "--batch", "2", "--steps", "3", "--rounds", "1"
    )
    assert outcome.code == 0
    assert f"training steps of lstm 5 → 4, dense 4 → 3, {loss}" in outcome.out
    assert "dropout is left out" in outcome.err


def test_bench_of_a_config(lstm, config):
    outcome = lstm("bench", config, "--batch", "2", "--steps", "3", "--rounds", "1")
    assert outcome.code == 0
    assert "gru 14 → 6" in outcome.out
    assert lstm("bench", config, "--hidden", "3").code == 2
