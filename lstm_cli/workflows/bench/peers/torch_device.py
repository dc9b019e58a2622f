"""PyTorch's device and dtypes, and the clock of its stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.workflows.bench.peers.base import ComputeSetting, Unsupported
from lstm_cli.workflows.bench.protocol import DEVICE_SAMPLE_SECONDS, WALL, Clock

HALVES = ("float16", "bfloat16")
"""Dtypes of 16 bits."""


@dataclass(frozen=True)
class TorchDevice:
    """A device, and the dtypes on it.

    Attributes
    ----------
    torch
        The package.
    device
        A ``torch.device``.
    dtype
        ``torch.dtype`` of products.
    stored
        ``torch.dtype`` of weights: float32 where training computes in 16 bits.
    """

    torch: Any
    device: Any
    dtype: Any
    stored: Any

    @classmethod
    def of(cls, torch: Any, setting: ComputeSetting, *, training: bool = False) -> TorchDevice:
        """The device and dtypes of a setting.

        Raises
        ------
        Unsupported
            This PyTorch cannot use the GPU.
        """
        if setting.device != "cpu" and not torch.cuda.is_available():
            raise Unsupported(f"this PyTorch cannot compute on {setting.device}")
        dtype = getattr(torch, "float32" if setting.dtype == "tf32" else setting.dtype)
        mixed = training and setting.dtype in HALVES
        stored = torch.float32 if mixed else dtype
        return cls(torch, torch.device(setting.device), dtype, stored)

    @property
    def uses_numpy_memory(self) -> bool:
        """Whether NumPy's arrays can be used in place."""
        return bool(self.device.type == "cpu" and self.dtype in self._numpy)

    @property
    def _numpy(self) -> tuple[Any, ...]:
        return (self.torch.float32, self.torch.float64)

    @property
    def mixed(self) -> bool:
        """Whether weights are stored in another dtype than they are multiplied in."""
        return bool(self.stored != self.dtype)

    @property
    def clock(self) -> Clock:
        """The clock of the GPU's stream, or the wall clock on a CPU."""
        return WALL if self.device.type == "cpu" else TorchClock(self.torch, self.device)

    def weight(self, array: Array) -> Any:
        """A copy of a weight on the device."""
        return self.torch.from_numpy(array.copy()).to(self.device, self.stored)

    def inputs(self, array: Array) -> Any:
        """Inputs on the device in the dtype of products, copied only where that differs."""
        tensor = self.torch.from_numpy(array)
        # Under autocast on a CPU, a layer takes its weights' dtype only.
        as_stored = self.mixed and self.device.type == "cpu"
        return tensor.to(self.device, self.stored if as_stored else self.dtype)

    def targets(self, array: Array) -> Any:
        """Targets on the device: classes unchanged, values in the weights' dtype."""
        tensor = self.torch.from_numpy(array)
        return tensor.to(self.device, self.stored if array.dtype.kind == "f" else tensor.dtype)

    def to_host(self, tensor: Any) -> Array:
        """A tensor as NumPy's array; 16-bit floats become float32."""
        tensor = tensor.detach()
        if tensor.dtype not in self._numpy:
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())

    @contextmanager
    def settings(self, setting: ComputeSetting) -> Iterator[None]:
        """Apply a setting to PyTorch's global options, and restore them at the end."""
        with ExitStack() as stack:
            stack.enter_context(_threads(self.torch, setting.threads))
            if self.device.type == "cpu":
                yield
                return
            stack.enter_context(self.torch.cuda.device(self.device))
            stack.callback(self.torch.cuda.empty_cache)  # for the other candidates
            if setting.dtype in ("float32", "tf32"):
                stack.enter_context(tf32(self.torch, allowed=setting.dtype == "tf32"))
            yield


@contextmanager
def _threads(torch: Any, count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tf32(torch: Any, *, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 products on a GPU, and restore PyTorch's options at the end."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


class TorchClock:
    """A clock of events in PyTorch's current stream; the first event follows an untimed call."""

    pause = 0.0

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device

    @property
    def sample(self) -> float:
        """See `lstm_cli.workflows.bench.protocol.DEVICE_SAMPLE_SECONDS`."""
        return DEVICE_SAMPLE_SECONDS

    def settle(self) -> None:
        """Wait for all work of this process on the device."""
        self._torch.cuda.synchronize(self._device)

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Seconds between an event before the first call and one after the last."""
        cuda = self._torch.cuda
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        stream = cuda.current_stream(self._device)
        first.record(stream)
        for _ in range(repeats):
            call()
        last.record(stream)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3  # from milliseconds
