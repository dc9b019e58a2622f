"""Fixtures for files of every layout with the same random sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_files import Truth, Write, file_writer, layout_writer, random_truth

from lstm_cli.data import batches


@pytest.fixture
def truth() -> Truth:
    return random_truth()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write datasets into a file; see `data_files.file_writer`."""
    return file_writer(tmp_path)


@pytest.fixture
def make(truth: Truth, write: Write) -> Callable[[str], str]:
    """Write `truth` in a layout; see `data_files.layout_writer`."""
    return layout_writer(truth, write)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test in its temporary folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["kept", "streamed"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with data that stay in memory, once with data that are read for every batch."""
    if request.param == "streamed":
        monkeypatch.setattr(batches, "MEMORY_BYTES", 0)
    return str(request.param)
