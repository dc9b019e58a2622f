"""Reader of reference files: inputs and outputs of another framework, as ``.npz`` or HDF5."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, WeightsError
from lstm_cli.formats.limits import check_regular, checked_size, member_bytes, open_archive

INPUTS = ("inputs", "x", "X", "input")
OUTPUTS = ("outputs", "y", "Y", "output")
LENGTHS = ("lengths", "sequence_lengths")
STATE = re.compile(r"state[./](\d{1,6})[./]([hc])")

EXTRA_BYTES = 1 << 28
"""Bytes that an archive's arrays may take beyond eight times the archive's own size."""
EXPECTED = "inputs (N, T, D) and outputs (N, T, F) or (N, F); optionally lengths (N,), state.0.h"


@dataclass(frozen=True)
class Reference:
    """Inputs of another framework, and the outputs that it computed.

    Attributes
    ----------
    path
        Path of the file.
    x
        Inputs (N, T, D).
    outputs
        Outputs (N, T, F) or (N, F).
    lengths
        (N,) valid steps; None: all T.
    state
        Initial states by layer index and letter, (N, directions, H) or (N, H).
    """

    path: str
    x: Array
    outputs: Array
    lengths: Array | None = None
    state: Mapping[tuple[int, str], Array] = field(default_factory=dict)


def read_reference(path: str) -> Reference:
    """Read reference inputs and outputs.

    Inputs may also be a single sequence (T, D), or rows of all sequences (sum T, D) with lengths.

    Raises
    ------
    DataError
        The file is missing, malformed or hostile, or holds no inputs or no outputs.
    """
    arrays = _archive_arrays(path) if _is_archive(path) else _hdf5_arrays(path)
    x, outputs = _first(arrays, INPUTS), _first(arrays, OUTPUTS)
    if x is None or outputs is None:
        missing = " and ".join(
            name for name, value in (("inputs", x), ("outputs", outputs)) if value is None
        )
        raise DataError(
            f"{path} holds no {missing}",
            expected=EXPECTED,
            found=", ".join(f"{name} {value.shape}" for name, value in arrays.items()) or "nothing",
        )
    states = {
        (int(match[1]), match[2]): value
        for name, value in arrays.items()
        if (match := STATE.fullmatch(name))
    }
    reference = Reference(path, x, outputs, _first(arrays, LENGTHS), states)
    _check_axes(reference)
    return _as_batch(reference)


def _check_axes(reference: Reference) -> None:
    """Check the axes of every array.

    Raises
    ------
    DataError
        An array has other axes or no values, or the lengths are no whole numbers of at least 0.
    """
    states = {f"state.{k}.{letter}": value for (k, letter), value in reference.state.items()}
    axes = {"inputs": (reference.x, (2, 3)), "outputs": (reference.outputs, (1, 2, 3))}
    axes |= {name: (value, (2, 3)) for name, value in states.items()}
    if reference.lengths is not None:
        axes["lengths"] = (reference.lengths, (1,))
    for name, (value, ranks) in axes.items():
        if value.ndim not in ranks or not value.size:
            words = " or ".join(map(str, ranks)) + (" axes" if ranks != (1,) else " axis")
            raise DataError(
                f"{name} of {reference.path} has a shape that no reference has",
                expected=f"an array of {words}, none of them of size 0; a reference is {EXPECTED}",
                found=_form(value),
            )
    n = reference.lengths
    if n is not None and (n.dtype.kind not in "iu" or (n < 0).any()):
        expected = "whole numbers of at least 0"
        raise DataError(
            f"lengths of {reference.path} are not numbers of steps",
            expected=expected,
            found=_form(n),
        )


def _first(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _is_part(name: str) -> bool:
    return name in INPUTS + OUTPUTS + LENGTHS or STATE.fullmatch(name) is not None


def _as_batch(reference: Reference) -> Reference:
    """Return the reference with inputs as a batch (N, T, D)."""
    x, lengths = reference.x, reference.lengths
    if x.ndim == 2 and lengths is None:
        outputs = reference.outputs
        batch = outputs[None] if outputs.ndim < 3 else outputs
        return replace(reference, x=x[None], outputs=batch)
    if x.ndim != 2 or lengths is None:
        return reference
    total, longest = int(lengths.sum()), int(lengths.max(initial=0))
    if total != len(x) or len(lengths) * longest > 1000 * max(total, 1000):
        raise DataError(
            f"lengths and inputs of {reference.path} do not fit each other",
            expected=f"inputs of {total:,} rows, the sum of the lengths",
            found=_form(x),
        )
    outputs = reference.outputs
    if len(outputs) == total and total != len(lengths):  # one row for each step
        outputs = _padded(outputs, lengths, longest)
    return replace(reference, x=_padded(x, lengths, longest), outputs=outputs)


def _padded(rows: Array, lengths: Array, longest: int) -> Array:
    padded = np.zeros((len(lengths), longest, *rows.shape[1:]), rows.dtype)  # (N, T, F)
    padded[np.arange(longest) < lengths[:, None]] = rows
    return padded


def _form(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _is_archive(path: str) -> bool:
    """Return True if a file is a zip archive, as ``.npz`` is."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            magic = opened.read(6)
    except (OSError, ValueError):
        return file.suffix.lower() == ".npz"
    if magic == b"\x93NUMPY":
        raise DataError(
            f"{path} holds one array, but a reference needs several",
            expected=EXPECTED,
            hint="numpy.savez('reference.npz', inputs=..., outputs=...) writes them into one file",
        )
    return magic[:2] == b"PK"


def _archive_arrays(path: str) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` that belong to a reference; no pickle is ever read."""
    try:
        check_regular(Path(path), "the reference")
        budget, arrays = EXTRA_BYTES + 8 * Path(path).stat().st_size, {}
        with open_archive(Path(path)) as archive:
            for name in archive.namelist():
                if _is_part(name.removesuffix(".npy")):
                    data = member_bytes(archive, name, budget)
                    budget -= len(data)
                    arrays[name.removesuffix(".npy")] = _array(data, name, path)
        return arrays
    except WeightsError as error:
        problems = [replace(p, hint=None) for p in error.problems]
        raise DataError(problems) from None


def _array(data: bytes, name: str, path: str) -> Array:
    """Read an array in NumPy's format; check its size against the bytes in the file."""
    stream = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that an old Python wrote
        try:
            version = np.lib.format.read_magic(stream)
            read = _HEADERS[version]
            shape, by_columns, dtype = read(stream)
            shape = tuple(map(int, shape))  # a damaged header may hold True as a size
        except Exception:  # a damaged header may raise any error: syntax, types, names
            raise DataError(
                f"{name} of {path} is not an array",
                expected="an array as numpy.savez writes it",
                found="a header that NumPy does not read",
            ) from None
    if dtype.kind not in "fiub":
        raise DataError(f"{name} of {path} does not hold numbers", found=f"type {dtype}"[:80])
    at = stream.tell()
    size = checked_size(shape, dtype.itemsize, len(data) - at, name, Path(path))
    values = np.frombuffer(data[at : at + size], dtype)
    if len(shape) > 3 or not size:  # NumPy may fail to make such an array
        raise DataError(
            f"{name} of {path} has a shape that no reference has",
            expected=EXPECTED,
            found=f"{dtype} of shape {shape}"[:200],
        )
    values = values.astype(dtype.newbyteorder("="), copy=False)
    return values.reshape(shape, order="F" if by_columns else "C")


_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _hdf5_arrays(path: str) -> dict[str, Array]:
    from lstm_cli.data.result_files import read_arrays

    return read_arrays(path, _is_part)
