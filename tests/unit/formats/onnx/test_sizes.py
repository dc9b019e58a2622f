"""Arithmetic of open sizes of an ONNX graph, and comparisons that they cannot answer."""

from __future__ import annotations

import pytest

from lstm_cli.formats.onnx.sizes import OpenSize, OpenSizeError, size_equals, size_exceeds


def test_open_sizes() -> None:
    n, t = OpenSize.of("N"), OpenSize.of("T")
    assert (n * t * 4 - t * n * 3) == n * t
    assert (n * 6).divided(n) == 6
    assert (t - 1 + 1) == t
    assert size_exceeds(t, 0)
    assert not size_exceeds(0, t)
    assert not size_equals(n, -1)
    with pytest.raises(OpenSizeError):
        size_exceeds(t, 3)
    with pytest.raises(OpenSizeError):
        n.divided(t)
