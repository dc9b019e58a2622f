"""Batches on their way to the device: page-locked buffers, so that copies run beside kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.device import Array, Device, DeviceArray, Mark

BUFFERS = 2


@dataclass(frozen=True, eq=False)
class Sent:
    """An array whose copy to the device was started.

    Attributes
    ----------
    array
        On the device; `Stager.arrived` before it is used.
    begun, done
        Marks around the copy.
    """

    array: DeviceArray
    begun: Mark
    done: Mark

    @property
    def seconds(self) -> float:
        """What the copy took; waits for it."""
        return self.done.seconds_since(self.begun)


class Stager:
    """Copies arrays to a device in turns through two buffers.

    Parameters
    ----------
    device
        Where they go.
    dtype
        What they become.
    """

    def __init__(self, device: Device, dtype: str) -> None:
        self._device, self._dtype = device, np.dtype(dtype)
        self._buffers: list[Array | None] = [None] * BUFFERS
        self._used: list[Mark | None] = [None] * BUFFERS
        self._turn = 0

    def send(self, array: Any) -> Sent:
        """Start the copy of an array of NumPy's, which may change as soon as this returns.

        Raises
        ------
        DeviceMemoryError
            The device has no room for it.
        """
        turn, shape = self._turn, array.shape
        target = self._device.empty(shape, self._dtype.name)
        last = self._used[turn]
        if last is not None:
            last.wait()
        nbytes = math.prod(shape) * self._dtype.itemsize
        held = self._buffer(turn, nbytes)
        held.view(self._dtype).reshape(shape)[...] = array
        begun, done = self._device.send(held, target)
        self._used[turn], self._turn = done, (turn + 1) % BUFFERS
        return Sent(target, begun, done)

    def arrived(self, sent: Sent) -> DeviceArray:
        """The array, for what is started from now on."""
        self._device.after(sent.done)
        return sent.array

    def _buffer(self, turn: int, nbytes: int) -> Array:
        """The buffer whose turn it is, at least so large."""
        held = self._buffers[turn]
        if held is None or held.nbytes < nbytes:
            held = self._buffers[turn] = self._device.pinned(max(nbytes, 1))
        return held[:nbytes]
