"""Fixtures for all tests: every usable engine in every dtype, and Hypothesis without chance."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_host.engine import make, statuses
from hypothesis import settings

from lstm_cli.engines.types import SUPPORTED_DTYPES, Engine

settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None)
settings.load_profile("repeatable")


KERNELS = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the jit engine's kernels in a folder of this run, out of the user's own.

    Set in the environment, so that processes that tests start find them there, too.
    """
    if "LSTM_CLI_CACHE_DIR" not in os.environ:
        config.stash[KERNELS] = Path(tempfile.mkdtemp(prefix="lstm-cli-tests-"))
        os.environ["LSTM_CLI_CACHE_DIR"] = str(config.stash[KERNELS])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it again."""
    folder = config.stash.get(KERNELS, None)
    if folder is not None:
        del os.environ["LSTM_CLI_CACHE_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


def _engines() -> Iterator[object]:
    """Every engine that can be used here, in each strict dtype it computes in."""
    for status in statuses():
        for dtype in SUPPORTED_DTYPES:
            if dtype in status.dtypes:
                yield pytest.param((status, dtype), id=f"{status.engine}-{dtype}")


@pytest.fixture(scope="session", params=_engines())
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each usable engine in float32 and float64; ``engines/test_usable.py`` says what is left out.

    A new engine joins by standing in `engine_statuses`.
    """
    status, dtype = request.param
    return make(status, dtype)
