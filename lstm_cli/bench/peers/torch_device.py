"""Where and in what PyTorch computes, and the clock of its own queue of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import ComputeSetting, Unsupported
from lstm_cli.bench.protocol import DEVICE_SAMPLE_SECONDS, WALL, Clock
from lstm_cli.engines.types import Array

HALVES = ("float16", "bfloat16")


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
        Of what is computed, in ``torch.dtype``.
    stored
        Of weights: what is trained in 16 bits has its weights in float32.
    """

    torch: Any
    device: Any
    dtype: Any
    stored: Any

    @classmethod
    def of(cls, torch: Any, setting: ComputeSetting, *, training: bool = False) -> TorchDevice:
        """The place that a setting means.

        Raises
        ------
        Unsupported
            A GPU that this PyTorch cannot use.
        """
        if setting.device != "cpu" and not torch.cuda.is_available():
            raise Unsupported(f"this PyTorch cannot compute on {setting.device}")
        dtype = getattr(torch, "float32" if setting.dtype == "tf32" else setting.dtype)
        mixed = training and setting.dtype in HALVES
        stored = torch.float32 if mixed else dtype
        return cls(torch, torch.device(setting.device), dtype, stored)

    @property
    def plain(self) -> bool:
        """Whether NumPy's memory will do."""
        return bool(self.device.type == "cpu" and self.dtype in self._numpy)

    @property
    def _numpy(self) -> tuple[Any, ...]:
        return (self.torch.float32, self.torch.float64)

    @property
    def mixed(self) -> bool:
        """Whether weights are kept in another dtype than they are multiplied in."""
        return bool(self.stored != self.dtype)

    @property
    def clock(self) -> Clock:
        """The GPU's own; on the processor what a call starts is done when it returns."""
        return WALL if self.device.type == "cpu" else TorchClock(self.torch, self.device)

    def weight(self, array: Array) -> Any:
        """A weight, copied."""
        return self.torch.from_numpy(array.copy()).to(self.device, self.stored)

    def inputs(self, array: Array) -> Any:
        """Inputs in the dtype of what is computed; without a copy where nothing differs."""
        tensor = self.torch.from_numpy(array)
        # Under autocast on a processor a layer takes its weights' dtype only.
        kept = self.mixed and self.device.type == "cpu"
        return tensor.to(self.device, self.stored if kept else self.dtype)

    def targets(self, array: Array) -> Any:
        """Classes as they are, values in the weights' dtype."""
        tensor = self.torch.from_numpy(array)
        return tensor.to(self.device, self.stored if array.dtype.kind == "f" else tensor.dtype)

    def fetched(self, tensor: Any) -> Array:
        """In NumPy's memory; 16-bit floats as float32."""
        tensor = tensor.detach()
        if tensor.dtype not in self._numpy:
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())

    @contextmanager
    def settings(self, setting: ComputeSetting) -> Iterator[None]:
        """What is global in PyTorch as the setting wants it, then as it was."""
        with ExitStack() as stack:
            stack.enter_context(_threads(self.torch, setting.threads))
            if self.device.type == "cpu":
                yield
                return
            stack.enter_context(self.torch.cuda.device(self.device))
            stack.callback(self.torch.cuda.empty_cache)  # the others may want it
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
    """Products of float32 on a GPU in TF32 or not, then as it was."""
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
    """Events in PyTorch's current stream, the first right behind a call that is not timed."""

    pause = 0.0

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device

    @property
    def sample(self) -> float:
        """See `lstm_cli.bench.protocol.SAMPLE_SECONDS`."""
        return DEVICE_SAMPLE_SECONDS

    def settle(self) -> None:
        """Wait for the whole device, whoever started what it does."""
        self._torch.cuda.synchronize(self._device)

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Between an event before the first call and one after the last."""
        cuda = self._torch.cuda
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        stream = cuda.current_stream(self._device)
        first.record(stream)
        for _ in range(repeats):
            call()
        last.record(stream)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3  # it gives milliseconds
