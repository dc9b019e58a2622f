"""``bench --explain``, and what the table says of a GPU."""

from __future__ import annotations

import pytest

from lstm_cli.cli.display.bench_tables import explanation_lines, head_lines
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.selection import engine_statuses
from lstm_cli.workflows.bench import GridSize, MachineInfo
from lstm_cli.workflows.bench.measurement import LayerExplanation, SizeExplanation

SMALL = ("--hidden", "4,40", "--batch", "3", "--steps", "5", "--rounds", "1")
JIT = any(status.engine == "jit" and status.usable for status in engine_statuses())


@pytest.mark.skipif(not JIT, reason="no jit engine here")
def test_each_size_shows_its_algorithm_and_reasons(lstm):
    out = lstm("bench", *SMALL, "--engine", "jit", "--threads", "1", "--explain").out
    output = out[out.index("how each size was computed, and why") :].splitlines()
    assert output[1].startswith("4 × 3 × 5: ")
    assert output[1].endswith(" µs per step")
    assert output[2] == "  layer 0 lstm: 1 thread"
    assert "4 gates" in output[3]
    assert any(line.startswith("40 × 3 × 5: ") for line in output)
    assert max(map(len, output)) <= 80
    assert "how each size" not in lstm("bench", *SMALL).out


def test_it_stands_in_json_and_is_empty_unless_asked_for(lstm):
    for engine in ("reference", "jit") if JIT else ("reference",):
        document = lstm("bench", *SMALL, "--engine", engine, "--explain", "--json").json
        first = document["explained"][0]
        assert first["size"]["hidden"] == 4
        median = document["results"][0]["timings"][0]["median"]
        assert first["step"] == pytest.approx(median / 5)
        assert first["floor"] is None
        ways = [layer["explanation"]["way"] for layer in first["layers"]]
        assert len(ways) == (engine == "jit")
    assert lstm("bench", *SMALL, "--json").json["explained"] == []


def test_a_modeled_floor_is_shown_with_the_measured_time():
    explanation = Explanation("persistent, clusters of 8", ("the weights fit 8 blocks",), 1.25e-6)
    layers = (LayerExplanation("0 lstm", explanation),)
    one = SizeExplanation(GridSize(512, 16, 100, 512), layers, 1.9e-6, 1.25e-6)
    assert explanation_lines([one]) == [
        "",
        "how each size was computed, and why",
        "512 × 16 × 100: 1.9 µs per step, at least 1.25 µs by the model",
        "  layer 0 lstm: persistent, clusters of 8",
        "    the weights fit 8 blocks",
    ]
    assert explanation_lines([]) == []


def test_the_head_names_the_gpu_and_all_that_drives_it():
    versions = {"numpy": "2", "cupy": "14.2", "cuda driver": "13.0", "torch": "2.11", "cudnn": "91"}
    found = MachineInfo("EPYC", 16, 1, "Linux", versions, "NVIDIA H200")
    assert head_lines(found, ReferenceEngine()) == [
        "NVIDIA H200 · cpu, reference, float32",
        "cupy 14.2, cuda driver 13.0, torch 2.11, cudnn 91",
    ]
