"""Batches on their way to the device, and results on their way back, beside what it computes.

Copies run beside kernels only from and to page-locked memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.device import Array, Device, DeviceArray, Mark
from lstm_cli.errors import DeviceError

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
    source
        What is copied, which must live until then.
    """

    array: DeviceArray
    begun: Mark
    done: Mark
    source: Array

    def settle(self) -> None:
        """Wait for the copy, where nobody will use the array: its memory is then given back."""
        with suppress(DeviceError):
            self.done.wait()

    @property
    def seconds(self) -> float:
        """What the copy took; waits for it."""
        return self.done.seconds_since(self.begun)


class Stager:
    """Copies arrays to a device.

    Parameters
    ----------
    device
        Where they go.
    dtype
        What arrays become that are not of its `room`.
    """

    def __init__(self, device: Device, dtype: str) -> None:
        self._device, self._dtype = device, np.dtype(dtype)
        self._buffers: list[Array | None] = [None] * BUFFERS
        self._used: list[Mark | None] = [None] * BUFFERS
        self._turn = 0

    def room(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Page-locked memory for an array, for `send_room`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._device.pinned(max(nbytes, 1))[:nbytes]
        return np.ndarray(shape, dtype, held)

    def send_room(self, array: Array) -> Sent:
        """Start the copy of an array of `room`, or of some rows of it.

        Raises
        ------
        DeviceMemoryError
            The device has no room for it.
        """
        target = self._device.empty(array.shape, array.dtype.name)
        return Sent(target, *self._device.send(array, target), array)

    def send(self, array: Any) -> Sent:
        """Start the copy of any array of NumPy's, which may change as soon as this returns.

        It goes through one of two buffers, in turns.

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
        return Sent(target, begun, done, held)

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


class Returning:
    """Arrays of the device on their way to the host's memory.

    Parameters
    ----------
    device
        Whose they are.
    arrays
        Held until their copies are done.
    """

    def __init__(self, device: Device, arrays: Sequence[DeviceArray]) -> None:
        self._arrays = list(arrays)
        self._marks: list[tuple[Mark, Mark]] = []
        self._targets: list[Array] = []
        # All of them before the first copy: a failure may not leave one behind that runs.
        held = [device.pinned(max(array.nbytes, 1))[: array.nbytes] for array in arrays]
        for array, target in zip(arrays, held, strict=True):
            self._marks.append(device.receive(array, target))
        self._targets = [
            target.view(array.dtype).reshape(array.shape)
            for array, target in zip(arrays, held, strict=True)
        ]

    def __del__(self) -> None:
        """No memory goes back to where others take it while a copy still writes there."""
        with suppress(DeviceError):
            self.wait()

    def wait(self) -> list[Array]:
        """The arrays in the host's memory, once they are all there."""
        if self._marks and self._arrays:
            self._marks[-1][1].wait()
        self._arrays.clear()
        return self._targets

    @property
    def seconds(self) -> float:
        """What the copies took, by the device's clock; waits for them."""
        if not self._marks:
            return 0.0
        return float(self._marks[-1][1].seconds_since(self._marks[0][0]))
