"""PyTorch as a peer: layers of ``torch.nn``, in inference mode or trained by Adam."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from math import log2, sqrt
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array, DenseSpec, Layers
from lstm_cli.training.losses import FUSED
from lstm_cli.workflows.bench.peers.base import (
    ComputeSetting,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    load_package,
)
from lstm_cli.workflows.bench.peers.torch_device import TorchDevice
from lstm_cli.workflows.bench.peers.torch_layers import (
    SequencePacking,
    TorchLayer,
    packing_of,
    torch_layer,
)
from lstm_cli.workflows.bench.sizes import GridSize


class TorchPeer:
    """PyTorch on a CPU or a GPU.

    Raises
    ------
    DeviceError
        PyTorch is not installed.
    """

    name = "torch"

    def __init__(self) -> None:
        self._torch = load_package("torch", self.name, "pip install torch")
        self.version = str(self._torch.__version__).partition("+")[0]
        self.title = f"PyTorch {self.version}"

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of PyTorch; with a GPU also of cuDNN, and of the CUDA it was built with."""
        versions = {self.name: self.version}
        if self._torch.cuda.is_available():
            versions["torch's cuda"] = str(self._torch.version.cuda)
            number = self._torch.backends.cudnn.version()
            versions["cudnn"] = "none" if number is None else str(number)
        return versions

    @contextmanager
    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: GridSize,
        setting: ComputeSetting,
        lengths: Array | None = None,
    ) -> Iterator[PeerNetwork]:
        """See `lstm_cli.workflows.bench.peers.base.Peer`."""
        torch = self._torch
        device = TorchDevice.of(torch, setting)
        packing = packing_of(torch, layers, lengths)

        def run(x: Any) -> Any:
            with torch.inference_mode():
                x = torch.from_numpy(x) if device.uses_numpy_memory else x
                y = packing.unpacked(through(stack, packing.packed(x)), size.steps)
                return np.asarray(y.numpy()) if device.uses_numpy_memory else y

        with device.settings(setting):
            stack = [torch_layer(device, spec, weights, size) for spec in layers]
            self._first_pass(stack, layers, device, size)
            if device.uses_numpy_memory:
                yield PeerNetwork(run)
            else:
                yield PeerNetwork(run, device.inputs, device.to_host, device.clock)

    @contextmanager
    def prepare_training(
        self, task: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> Iterator[TrainableNetwork]:
        """See `lstm_cli.workflows.bench.peers.base.Peer`.

        In 16 bits this is mixed precision as in PyTorch's manual: weights in float32, layers
        under ``torch.autocast``, and a scaled loss in float16.
        """
        torch = self._torch
        device = TorchDevice.of(torch, setting, training=True)
        layers, weights = ending_in_logits(task), task.weights
        packing = packing_of(torch, layers, task.lengths)
        with device.settings(setting):
            stack = [torch_layer(device, spec, weights, size, training=True) for spec in layers]
            network = TorchTrainable(device, stack, task, packing, size)
            self._first_pass(stack, layers, device, size)
            yield network

    def _first_pass(
        self, stack: Sequence[TorchLayer], layers: Layers, device: TorchDevice, size: GridSize
    ) -> None:
        # PyTorch warns at a process's first pass if its fast algorithm is unavailable.
        x = np.zeros((1, size.steps, layers[0].input_size), np.float32)
        with warnings.catch_warnings(), self._torch.no_grad(), autocast(device):
            warnings.simplefilter("ignore")
            through(stack, device.inputs(x).to(device.stored))


_Loss = Callable[[Any, Any], Any]


class TorchTrainable:
    """Layers, their loss, and ``torch.optim.Adam``, as a `TrainableNetwork`."""

    def __init__(
        self,
        device: TorchDevice,
        stack: Sequence[TorchLayer],
        task: TrainingTask,
        packing: SequencePacking,
        size: GridSize,
    ) -> None:
        torch = device.torch
        self._device, self._stack, self._packing = device, stack, packing
        self._loss = _loss(torch, task.loss)
        self._parameters = {name: p for layer in stack for name, p in layer.parameters.items()}
        self.clock = device.clock
        adam = task.optimizer
        # PyTorch's defaults, without foreach and fused: a loop over tensors on a CPU. On
        # accelerators PyTorch chooses foreach itself.
        self._optimizer = torch.optim.Adam(
            self._parameters.values(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
        )
        self._scaler: Any = None
        if device.mixed and device.dtype == torch.float16:
            # The loss is a mean over many outputs, so gradients are too small for float16.
            scale = 2.0 ** round(log2(task.layers[-1].output_size * sqrt(size.batch * size.steps)))
            self._scaler = torch.amp.GradScaler(device.device.type, init_scale=scale)

    def to_device(self, x: Array, targets: Array) -> tuple[Any, Any]:
        """Inputs and targets as tensors on the layers' device."""
        return self._device.inputs(x), self._device.targets(targets)

    def step(self, x: Any, targets: Any) -> float:
        """Make one update and return the loss before it."""
        self._optimizer.zero_grad()
        with autocast(self._device):
            outputs = through(self._stack, self._packing.packed(x))
            if self._packing.is_packed(outputs):  # packed data are the valid steps only
                outputs, targets = outputs.data, self._packing.packed(targets).data
            if self._device.mixed:
                outputs = outputs.float()
            loss = self._loss(outputs, targets)
        if self._scaler is None:
            loss.backward()
            self._optimizer.step()
        else:
            self._scaler.scale(loss).backward()
            self._scaler.step(self._optimizer)  # unscales the gradients
            self._scaler.update()
        return float(loss.item())

    def gradients(self) -> Mapping[str, Array]:
        """Gradients of the last step by stored name; 0 where the loss does not depend on them."""
        zeros = self._device.torch.zeros_like
        return {
            name: self._device.to_host(zeros(p) if p.grad is None else p.grad)
            for name, p in self._parameters.items()
        }

    def weights(self) -> Mapping[str, Array]:
        """Current weights by stored name."""
        return {name: self._device.to_host(p) for name, p in self._parameters.items()}


def autocast(device: TorchDevice) -> AbstractContextManager[Any]:
    """A context in which layers multiply in the device's dtype, if their weights have another."""
    if not device.mixed:
        return nullcontext()
    context: AbstractContextManager[Any] = device.torch.autocast(
        device.device.type, dtype=device.dtype
    )
    return context


def through(stack: Sequence[TorchLayer], x: Any) -> Any:
    """Outputs of all layers in order."""
    for layer in stack:
        x = layer.call(x)
    return x


def ending_in_logits(task: TrainingTask) -> Layers:
    """The layers, without the last activation if the loss is computed from logits."""
    *others, last = task.layers
    if task.loss in FUSED and isinstance(last, DenseSpec):
        return (*others, replace(last, activation=Activation("identity")))
    return task.layers


def _loss(torch: Any, name: str) -> _Loss:
    """The loss of (outputs or logits, targets), a mean over all rows and features."""
    functional = torch.nn.functional
    if name == "cross_entropy":  # by rows, because PyTorch has the classes of (N, T, F) on axis 1
        return lambda a, t: functional.cross_entropy(a.flatten(0, -2), t.flatten())
    losses: dict[str, _Loss] = {
        "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
    }
    return losses[name]
