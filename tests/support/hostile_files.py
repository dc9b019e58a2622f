"""Bounds on the refusal of a hostile file, and a pickle that calls a function."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from lstm_cli.errors import LstmCliError


def refused(
    read: Callable[[], object],
    message: str | None = None,
    *,
    memory: int = 64 << 20,
    seconds: float = 5,
) -> str:
    """Text of the error that `read` raises within bounded memory and time.

    Parameters
    ----------
    message
        Regular expression that the text must match; None: any text.
    memory
        Bytes that Python may allocate until the error.
    seconds
        Seconds of processor time until the error.
    """
    tracemalloc.start()
    before = time.process_time()
    try:
        with pytest.raises(LstmCliError, match=message) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - before < seconds
    assert peak < memory
    assert caught.value.exit_code == 4
    return str(caught.value)


class Call:
    """Object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call
