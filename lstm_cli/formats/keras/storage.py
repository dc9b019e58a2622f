"""The values of one HDF5 dataset: floating point only, never more than the file can hold."""

from __future__ import annotations

import math
import zlib
from itertools import product
from typing import Any

import numpy as np
from h5py import h5d, h5t, h5z

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.safety import LARGEST_RATIO, SMALL

MOST_CHUNKS = 200_000
_FILTERS = (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)


def read_dataset(dataset: Any, name: str, available: int) -> tuple[Array, str, int]:
    """Values, stored dtype, and bytes of the file that they took.

    Parameters
    ----------
    available
        Bytes of the file that are not taken by other datasets.

    Raises
    ------
    WeightsError
        No floating-point numbers, stored elsewhere, or a shape that the file does not hold.
    """
    code = _code(dataset.get_type(), name)
    shape, stored = tuple(dataset.shape), int(dataset.get_storage_size())
    size = math.prod(shape) * np.dtype(code).itemsize
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    plain = layout in (h5d.CONTIGUOUS, h5d.COMPACT) and plist.get_external_count() == 0
    if not plain and layout != h5d.CHUNKED:
        raise WeightsError(f"{name} is stored outside its dataset", found="external or virtual")
    most = stored if plain else max(SMALL, stored * LARGEST_RATIO)
    if stored > available or size > most:
        raise WeightsError(
            f"{name} declares a shape that the file does not hold",
            expected=f"{size:,} bytes for {shape}",
            found=f"{min(stored, available):,} bytes",
        )
    if plain:
        return (*_widened(_contiguous(dataset, shape, code)), stored)
    return (*_widened(_Chunks(dataset, plist, shape, code, name, most).read()), stored)


def _code(kind: Any, name: str) -> str:
    """NumPy's code of the stored type; opaque pairs of bytes are how Keras writes bfloat16."""
    if kind.get_class() == h5t.OPAQUE and kind.get_size() == 2:
        return "V2"
    known = {"f2": "IEEE_F16", "f4": "IEEE_F32", "f8": "IEEE_F64"}
    if kind.get_class() == h5t.FLOAT:
        for code, standard in known.items():
            for sign, order in (("<", "LE"), (">", "BE")):
                if kind.equal(getattr(h5t, standard + order)):
                    return sign + code
    raise WeightsError(
        f"{name} holds no floating-point numbers",
        expected="float16, bfloat16, float32 or float64",
        hint="quantised weights are not read: save the model before it is quantised",
    )


def _widened(values: Array) -> tuple[Array, str]:
    if values.dtype.kind == "V":
        bits = np.frombuffer(values.tobytes(), "<u2").reshape(values.shape)
        return (bits.astype(np.uint32) << 16).view(np.float32), "bfloat16"
    if values.dtype.itemsize == 2:
        return values.astype(np.float32), "float16"
    return values.astype(values.dtype.newbyteorder("=")), values.dtype.name


def _contiguous(dataset: Any, shape: tuple[int, ...], code: str) -> Array:
    values = np.empty(shape, code)
    if values.size:
        dataset.read(dataset.get_space(), dataset.get_space(), values)
    return values


class _Chunks:
    """A dataset in chunks, each unpacked here, so that none unpacks to more than it declares."""

    def __init__(
        self, dataset: Any, plist: Any, shape: tuple[int, ...], code: str, name: str, most: int
    ) -> None:
        self._dataset, self._shape, self._name = dataset, shape, name
        self._dtype = np.dtype(code)
        self._chunk = tuple(plist.get_chunk())
        self._filters = [int(plist.get_filter(k)[0]) for k in range(plist.get_nfilters())]
        self._bytes = math.prod(self._chunk) * self._dtype.itemsize
        unknown = [k for k in self._filters if k not in _FILTERS]
        if unknown:
            raise WeightsError(f"{name} is packed with a filter that is not read: {unknown[0]}")
        if self._bytes > most:
            raise self._damaged("its chunks are larger than it")

    def read(self) -> Array:
        """All values."""
        counts = [-(-n // c) for n, c in zip(self._shape, self._chunk, strict=True)]
        total = math.prod(counts)
        if total > MOST_CHUNKS or total != self._dataset.get_num_chunks():
            raise self._damaged("chunks are missing")
        values = np.empty(self._shape, self._dtype)
        for place in product(*map(range, counts)):
            start = tuple(k * c for k, c in zip(place, self._chunk, strict=True))
            target = values[tuple(slice(s, s + c) for s, c in zip(start, self._chunk, strict=True))]
            target[...] = self._one(start)[tuple(slice(n) for n in target.shape)]
        return values

    def _one(self, start: tuple[int, ...]) -> Array:
        mask, raw = self._dataset.read_direct_chunk(start)
        for k in reversed(range(len(self._filters))):
            if not mask >> k & 1:
                raw = self._unfiltered(self._filters[k], raw)
        if len(raw) != self._bytes:
            raise self._damaged("a chunk of another size")
        return np.frombuffer(raw, self._dtype).reshape(self._chunk)

    def _unfiltered(self, code: int, raw: bytes) -> bytes:
        if code == h5z.FILTER_DEFLATE:
            try:
                return zlib.decompressobj().decompress(raw, self._bytes + 5)
            except zlib.error as error:
                raise self._damaged(str(error)) from None
        if code == h5z.FILTER_FLETCHER32:
            return raw[:-4]
        width = self._dtype.itemsize
        if len(raw) % width:
            raise self._damaged("a chunk of another size")
        return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()

    def _damaged(self, found: str) -> WeightsError:
        return WeightsError(f"{self._name} is damaged", found=found)
