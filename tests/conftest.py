"""Fixtures for all tests: every usable engine in every dtype, and Hypothesis without chance."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_host.build import FOLDER
from cuda_host.engine import make, statuses
from hypothesis import settings
from quick import QUICK_ENGINES, SLOW

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import SUPPORTED_DTYPES

settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None)
settings.load_profile("repeatable")


COMPILED = pytest.StashKey[dict[str, Path]]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep what is compiled in folders of this run: the jit engine's kernels, and CUDA sources.

    The folders stand in the environment, so that all test processes, and the processes that tests
    start, share them. The user's own cache stays untouched.
    """
    config.stash[COMPILED] = {
        variable: Path(tempfile.mkdtemp(prefix="lstm-cli-tests-"))
        for variable in ("LSTM_CLI_CACHE_DIR", FOLDER)
        if variable not in os.environ
    }
    os.environ.update({name: str(path) for name, path in config.stash[COMPILED].items()})


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folders of this run."""
    for variable, folder in config.stash.get(COMPILED, {}).items():
        os.environ.pop(variable, None)
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave slow files and folders unread in a quick run."""
    path = collection_path.relative_to(config.rootpath).as_posix()
    slow = path.startswith(SLOW) or f"{path}/" in SLOW
    return True if slow and config.option.markexpr == "quick" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``quick`` what is neither slow nor repeated on a further engine or dtype."""
    for item in items:
        call = getattr(item, "callspec", None)
        status, dtype = (None if call is None else call.params.get("engine")) or (None, None)
        repeated = status is not None and (status.engine, dtype) not in QUICK_ENGINES
        if not repeated and not item.nodeid.startswith(SLOW):
            item.add_marker("quick")


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
