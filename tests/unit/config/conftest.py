"""Fixtures that return the problems of a faulty config."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lstm_cli.config import from_text
from lstm_cli.errors import ConfigError, Problem

NAME = "configs/mine.yaml"

Problems = Callable[..., list[Problem]]


@pytest.fixture
def problems() -> Problems:
    """The problems of a config text, which must have some."""

    def find(text: str, *overrides: str, seed: int | None = None) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            from_text(text, NAME, None, overrides, seed)
        assert caught.value.exit_code == 4
        return list(caught.value.problems)

    return find


@pytest.fixture
def only(problems: Problems) -> Callable[..., Problem]:
    """The one problem of a config text."""

    def find(text: str, *overrides: str, seed: int | None = None) -> Problem:
        found = problems(text, *overrides, seed=seed)
        assert len(found) == 1, "\n".join(line for p in found for line in p.lines())
        return found[0]

    return find
