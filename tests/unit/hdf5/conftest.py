"""Fixture for HDF5 files."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import Write, file_writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write datasets into a file; see `data_files.file_writer`."""
    return file_writer(tmp_path)
