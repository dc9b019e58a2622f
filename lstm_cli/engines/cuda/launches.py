"""How many threads a kernel over many numbers gets, and the loop that they share them in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from weakref import WeakKeyDictionary

from lstm_cli.engines.cuda.device import Device, Kernel, Launch

THREADS = 256
"""Of a block of a kernel that goes through numbers one by one."""

BLOCKS = 8
"""Of such a kernel for each multiprocessor, at most: then every thread has several numbers."""

LOOP = """for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < size;
       k += (long long)gridDim.x * blockDim.x)"""
"""In C++: the numbers k of ``size`` that a thread has to do with."""


_MADE: WeakKeyDictionary[Device, dict[Hashable, Mapping[str, Kernel]]] = WeakKeyDictionary()


def compiled(
    device: Device, key: Hashable, names: Sequence[str], source: Callable[[], str]
) -> Mapping[str, Kernel]:
    """A source's kernels `names`, which `source` is asked for only once for a key and device."""
    made = _MADE.setdefault(device, {})
    found = made.get(key)
    if found is None:
        found = made[key] = device.compile(source(), names)
    return found


def over(device: Device, items: int, each: int = THREADS) -> Launch:
    """A launch for `items` numbers, at least one, of which a block takes `each` at a time."""
    blocks = min(-(-items // each), BLOCKS * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), THREADS)
