"""Chunks that are too large for HDF5's cache, unpacked once and kept as long as there is room.

HDF5 unpacks a whole chunk for any value of it, and keeps it only if it fits its cache. A chunk of
many sequences would be unpacked anew for every batch.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from math import prod
from typing import Any

from lstm_cli.data.types import Array

CHUNK_CACHE_BYTES = 64 << 20
"""Held by HDF5 for a dataset that is being read, so that its chunks are unpacked once."""
KEPT_BYTES = 448 << 20
"""Held here, of all datasets together."""
WASTE_BYTES = 2 << 30
"""Unpacked of one dataset and not used, where nothing can be kept, at most."""


_kept: OrderedDict[tuple[int, int], Array] = OrderedDict()
"""Bands of all datasets, by the dataset's and their own number; the last used stands last."""
_lock = threading.RLock()
_numbers = count()


class Bands:
    """A dataset along one axis, in bands as wide as its chunks.

    Attributes
    ----------
    nbytes
        Bytes of a band, unpacked.
    wasted
        Bytes that were unpacked and not used, because a band is too large to keep.
    """

    def __init__(self, dataset: Any, axis: int, itemsize: int) -> None:
        self._dataset, self._axis = dataset, axis
        self._width = dataset.chunks[axis]
        self._size = dataset.shape[axis]
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        padded = [-(-size // chunk) * chunk for size, chunk in sizes]
        padded[axis] = self._width
        self.nbytes = prod(padded) * itemsize
        self.wasted = 0
        self._number = next(_numbers)
        weakref.finalize(self, _drop, self._number)

    @property
    def are_kept(self) -> bool:
        """Whether a band fits in memory."""
        return bool(self.nbytes <= KEPT_BYTES)

    def touched(self, part: slice) -> int:
        """Bytes to unpack for a part of the axis."""
        begin, end, _ = part.indices(self._size)
        return (-(-end // self._width) - begin // self._width) * self.nbytes if begin < end else 0

    def parts(self, part: slice) -> Iterator[tuple[slice, Array, slice]]:
        """Where each piece of `part` goes, the band that holds it, and where it stands there."""
        begin, end, _ = part.indices(self._size)
        for number in range(begin // self._width, -(-end // self._width)):
            start = number * self._width
            low, high = max(begin, start), min(end, start + self._width)
            if low < high:
                yield (
                    slice(low - begin, high - begin),
                    self._band(number),
                    slice(low - start, high - start),
                )

    def close(self) -> None:
        """Keep nothing."""
        _drop(self._number)

    def _band(self, number: int) -> Array:
        key = self._number, number
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
            held = sum(band.nbytes for band in _kept.values())
            while _kept and held + self.nbytes > KEPT_BYTES:  # before another is unpacked
                held -= _kept.popitem(last=False)[1].nbytes
        start = number * self._width
        where = (slice(None),) * self._axis + (slice(start, start + self._width),)
        band: Array = self._dataset[where]
        with _lock:
            _kept[key] = band
        return band


def _drop(dataset: int) -> None:
    """Keep nothing more of a dataset that nothing reads."""
    with _lock:
        for key in [key for key in _kept if key[0] == dataset]:
            del _kept[key]
