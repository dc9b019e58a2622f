"""``run`` on several ranks under mpiexec: results and metrics of one run, and errors of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi_commands import MPIEXEC, run
from result_comparison import assert_equal_results

from lstm_cli.cli import main

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="mpiexec is not installed")


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[object, ...]:
    """A run over three files of ragged sequences with a class a step."""
    rng = np.random.default_rng(0)
    (tmp_path / "days").mkdir()
    for k in range(3):
        lengths = rng.integers(0, 12, 9)
        with h5py.File(tmp_path / f"days/d{k}.h5", "w") as file:
            file["inputs"] = rng.standard_normal((lengths.sum(), 3))
            file["targets"], file["lengths"] = rng.integers(0, 2, lengths.sum()), lengths
    (tmp_path / "net.yaml").write_text(
        "model:\n  input_size: 3\n  layers:\n    - {type: lstm, hidden_size: 6}\n"
        "    - {type: dense, units: 2, activation: softmax}\ntrain: {loss: cross_entropy}\n"
    )
    return ("run", tmp_path / "net.yaml", tmp_path / "days", "--json")


def one_run(tmp_path: Path, arguments: tuple[object, ...], capsys: pytest.CaptureFixture) -> dict:
    assert main([*map(str, arguments), "--output", str(tmp_path / "one.h5")]) == 0
    return json.loads(capsys.readouterr().out)["metrics"]


def test_ranks_share_the_work(tmp_path, arguments, capsys) -> None:
    metrics = one_run(tmp_path, arguments, capsys)
    assert set(metrics) == {"loss", "accuracy", "auc"}
    for ranks in (2, 3):
        code, out, err = run(ranks, *arguments, "--output", tmp_path / "o.h5")
        assert code == 0, err
        assert err == ""
        document = json.loads(out)  # one document, of rank 0
        assert (document["metrics"], document["ranks"]) == (metrics, ranks)
        assert_equal_results(tmp_path / "o.h5", tmp_path / "one.h5")
        assert not list(tmp_path.glob("*.shard-*"))
    code, out, err = run(3, *arguments)
    assert (code, json.loads(out)["metrics"]) == (0, metrics)


def test_an_error_of_one_rank_ends_all_and_what_is_finished_is_kept(
    tmp_path, arguments, capsys
) -> None:
    one_run(tmp_path, arguments, capsys)
    bad = tmp_path / "days/d2.h5"
    whole = bad.read_bytes()
    with h5py.File(bad, "a") as file:
        file["inputs"][3, 1] = np.nan
    code, _, err = run(3, *arguments, "--output", tmp_path / "o.h5")
    assert code == 3
    assert err.count("error:") == 1
    assert "d2.h5:/inputs, sequence " in err
    assert not (tmp_path / "o.h5").exists()
    bad.write_bytes(whole)
    (tmp_path / "o.h5").write_text("mine")
    code, _, err = run(2, *arguments, "--output", tmp_path / "o.h5")
    assert (code, err.count("error:")) == (2, 1)
    assert "--force replaces it" in err
    code, _, err = run(3, *arguments, "--output", tmp_path / "o.h5", "--force", "--quiet")
    assert (code, err) == (0, "")
    assert_equal_results(tmp_path / "o.h5", tmp_path / "one.h5")


def test_joining_fails_on_all_ranks(tmp_path, arguments) -> None:
    """A shard of another division is left: rank 0 finds it, and all end."""
    (tmp_path / "o.h5.shard-1-of-7").touch()
    code, _, err = run(3, *arguments, "--output", tmp_path / "o.h5")
    assert code == 3
    assert err.count("error:") == 1
    assert "o.h5 has shards of several divisions" in err
    (tmp_path / "o.h5.shard-1-of-7").unlink()
    code, _, err = run(3, *arguments, "--output", tmp_path / "o.h5")
    assert code == 0
    assert err.count("is finished and was not run again") == 3


def test_options_that_ranks_exclude(tmp_path, arguments) -> None:
    output = ("--output", tmp_path / "o.h5")
    for more in (("--workers", 2), ("--shard", "1/2"), ("--gates", tmp_path / "g.h5")):
        code, _, err = run(2, *arguments, *output, *more)
        assert (code, err.count("error:")) == (2, 1)
        assert "exclude one another" in err
    code, _, err = run(2, *arguments, *output, "--set", "model.layers.0.stateful=true")
    assert (code, err.count("error:")) == (2, 1)
    assert "a stateful network cannot run with several ranks" in err
