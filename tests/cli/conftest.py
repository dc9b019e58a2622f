"""Fixtures that run commands as a user does, and small files for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import training_files
from repository import ROOT

from lstm_cli.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the project's root the working directory."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test's temporary folder the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lstm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, in a terminal of 100 columns without color."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return run


CONFIG = """\
model:
  input_size: 5
  layers:
    - {type: lstm, hidden_size: 7, bidirectional: true}
    - {type: gru, hidden_size: 6}
    - {type: dense, units: 3}
  init: {seed: 4}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A bidirectional lstm, a gru and a dense layer, on 5 features."""
    path = tmp_path / "net.yaml"
    path.write_text(CONFIG)
    return path


LENGTHS = (4, 9, 1, 0, 6, 9, 3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven ragged sequences of 5 features, dense, NaN in the padding."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((len(LENGTHS), max(LENGTHS), 5)).astype(np.float32)
    for row, length in zip(x, LENGTHS, strict=True):
        row[length:] = np.nan
    path = tmp_path / "words.h5"
    with h5py.File(path, "w") as file:
        file["inputs"] = x
        file["lengths"] = np.array(LENGTHS)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A config that trains an lstm on three classes; see `training_files`."""
    path = tmp_path / "net.yaml"
    path.write_text(training_files.CONFIG)
    return path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Ragged sequences of three classes; see `training_files.write_classes`."""
    return training_files.write_classes(tmp_path / "words.h5")
