"""Comparison of results files: every dataset and attribute, their types and all their bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def contents(path: Path | str) -> dict[str, Any]:
    """Values, shapes, types and attributes of all that a file holds, by name."""
    values: dict[str, Any] = {}

    def add(name: str, item: Any) -> None:
        attributes = {key: repr(value) for key, value in sorted(item.attrs.items())}
        values[name] = ["group", attributes]
        if isinstance(item, h5py.Dataset):
            kinds = h5py.check_string_dtype(item.dtype), h5py.check_vlen_dtype(item.dtype)
            data = item[()]
            is_object = isinstance(data, np.ndarray) and data.dtype.kind == "O"
            bits = [np.asarray(one).tobytes() for one in data] if is_object else data.tobytes()
            values[name] = [item.shape, str(item.dtype), kinds, bits, attributes]

    with h5py.File(path) as file:
        add("/", file)
        file.visititems(add)
    return values


def assert_equal_results(path: Path | str, expected: Path | str) -> None:
    """Assert that two results files hold the same datasets and attributes, to the bit."""
    found, wanted = contents(path), contents(expected)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == value, name
