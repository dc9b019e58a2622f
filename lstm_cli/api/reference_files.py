"""Inputs and outputs that another framework computed: a ``.npz`` or an HDF5 file."""

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

LARGEST = 1 << 28
"""Bytes that an archive's arrays may take beyond eight times its own."""
EXPECTED = "inputs (N, T, D) and outputs (N, T, F) or (N, F); optionally lengths (N,), state.0.h"


@dataclass(frozen=True)
class Reference:
    """What another framework was given, and what it made of it.

    Attributes
    ----------
    path
        Of the file.
    x
        (N, T, D).
    outputs
        (N, T, F) or (N, F).
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

    Rows of all sequences one after the other, (sum T, D) with lengths, are taken as well, and
    a single sequence (T, D).

    Raises
    ------
    DataError
        Missing, malformed, hostile, or without inputs or outputs.
    """
    arrays = _of_archive(path) if _is_archive(path) else _of_hdf5(path)
    x, outputs = _first(arrays, INPUTS), _first(arrays, OUTPUTS)
    if x is None or outputs is None:
        missing = " and ".join(
            name for name, found in (("inputs", x), ("outputs", outputs)) if found is None
        )
        raise DataError(
            f"{path} holds no {missing}",
            expected=EXPECTED,
            found=", ".join(f"{name} {value.shape}" for name, value in arrays.items()) or "nothing",
        )
    states = {
        (int(found[1]), found[2]): value
        for name, value in arrays.items()
        if (found := STATE.fullmatch(name))
    }
    given = Reference(path, x, outputs, _first(arrays, LENGTHS), states)
    _check_forms(given)
    return _batch(given)


def _check_forms(given: Reference) -> None:
    """Raise unless every array has axes as a reference has them.

    Raises
    ------
    DataError
        An array of other axes, without values, or lengths that are none.
    """
    states = {f"state.{k}.{letter}": value for (k, letter), value in given.state.items()}
    axes = {"inputs": (given.x, (2, 3)), "outputs": (given.outputs, (1, 2, 3))}
    axes |= {name: (value, (2, 3)) for name, value in states.items()}
    if given.lengths is not None:
        axes["lengths"] = (given.lengths, (1,))
    for name, (value, ranks) in axes.items():
        if value.ndim not in ranks or not value.size:
            words = " or ".join(map(str, ranks)) + (" axes" if ranks != (1,) else " axis")
            raise DataError(
                f"{name} of {given.path} has another form than a reference has",
                expected=f"an array of {words}, none of them of size 0; a reference is {EXPECTED}",
                found=_form(value),
            )
    if given.lengths is not None and (
        given.lengths.dtype.kind not in "iu" or (given.lengths < 0).any()
    ):
        raise DataError(f"lengths of {given.path} are no lengths", found=_form(given.lengths))


def _first(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _wanted(name: str) -> bool:
    return name in INPUTS + OUTPUTS + LENGTHS or STATE.fullmatch(name) is not None


def _batch(given: Reference) -> Reference:
    """The reference as a batch (N, T, D)."""
    x, lengths = given.x, given.lengths
    if x.ndim == 2 and lengths is None:
        outputs = given.outputs
        return replace(given, x=x[None], outputs=outputs[None] if outputs.ndim < 3 else outputs)
    if x.ndim != 2 or lengths is None:
        return given
    total, longest = int(lengths.sum()), int(lengths.max(initial=0))
    if total != len(x) or len(lengths) * longest > 1000 * max(total, 1000):
        raise DataError(
            f"lengths and inputs of {given.path} do not fit each other",
            expected=f"inputs of {total:,} rows, the sum of the lengths",
            found=_form(x),
        )
    per_step = len(given.outputs) == total and total != len(lengths)
    outputs = _padded(given.outputs, lengths, longest) if per_step else given.outputs
    return replace(given, x=_padded(x, lengths, longest), outputs=outputs)


def _padded(rows: Array, lengths: Array, longest: int) -> Array:
    """(sum T, F) as (N, T, F), 0 in the padding."""
    padded = np.zeros((len(lengths), longest, *rows.shape[1:]), rows.dtype)
    padded[np.arange(longest) < lengths[:, None]] = rows
    return padded


def _form(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _is_archive(path: str) -> bool:
    """Whether a file is a zip archive, as ``.npz`` is."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            magic = opened.read(6)
    except (OSError, ValueError):
        return file.suffix.lower() == ".npz"
    if magic == b"\x93NUMPY":
        raise DataError(
            f"{path} holds one array, and a reference is several",
            expected=EXPECTED,
            hint="numpy.savez('reference.npz', inputs=..., outputs=...) writes them into one file",
        )
    return magic[:2] == b"PK"


def _of_archive(path: str) -> dict[str, Array]:
    """The arrays of an ``.npz`` that a reference is made of; no pickle is ever read."""
    try:
        check_regular(Path(path), "the reference")
        left, found = LARGEST + 8 * Path(path).stat().st_size, {}
        with open_archive(Path(path)) as archive:
            for name in archive.namelist():
                if _wanted(name.removesuffix(".npy")):
                    data = member_bytes(archive, name, left)
                    left -= len(data)
                    found[name.removesuffix(".npy")] = _array(data, name, path)
        return found
    except WeightsError as error:
        problems = [replace(p, hint=None) for p in error.problems]
        raise DataError(problems) from None


def _array(data: bytes, name: str, path: str) -> Array:
    """An array in NumPy's own form, its size checked against the bytes that are there."""
    stream = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that an old Python wrote
        try:
            version = np.lib.format.read_magic(stream)
            read = _HEADERS[version]
            shape, by_columns, dtype = read(stream)
            shape = tuple(map(int, shape))  # True is one, too
        except Exception:  # syntax, types, names: whatever a damaged header leads to
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
    if len(shape) > 3 or not size:  # what a reference does not have, and NumPy may not make
        raise DataError(
            f"{name} of {path} has another form than a reference has",
            expected=EXPECTED,
            found=f"{dtype} of shape {shape}"[:200],
        )
    values = values.astype(dtype.newbyteorder("="), copy=False)
    return values.reshape(shape, order="F" if by_columns else "C")


_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _of_hdf5(path: str) -> dict[str, Array]:
    """The datasets of an HDF5 file or group that a reference is made of."""
    from lstm_cli.data.results import read_arrays

    return read_arrays(path, _wanted)
