"""PyTorch: the layers of ``torch.nn``, in inference mode or learning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from math import log2, sqrt
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import (
    ComputeSetting,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    load_package,
)
from lstm_cli.bench.peers.torch_device import TorchDevice
from lstm_cli.bench.peers.torch_layers import SequencePacking, TorchLayer, packing_of, torch_layer
from lstm_cli.bench.sizes import GridSize
from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array, DenseSpec, Layers
from lstm_cli.training.criterion import FUSED


class TorchPeer:
    """PyTorch, on the processor or on a GPU.

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
        """Its own; where it can use a GPU those of cuDNN and of CUDA as it was built, too."""
        found = {self.name: self.version}
        if self._torch.cuda.is_available():
            found["torch's cuda"] = str(self._torch.version.cuda)
            number = self._torch.backends.cudnn.version()
            found["cudnn"] = "none" if number is None else str(number)
        return found

    @contextmanager
    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: GridSize,
        setting: ComputeSetting,
        lengths: Array | None = None,
    ) -> Iterator[PeerNetwork]:
        """See `lstm_cli.bench.peers.base.Peer`."""
        torch = self._torch
        place = TorchDevice.of(torch, setting)
        packing = packing_of(torch, layers, lengths)

        def run(x: Any) -> Any:
            with torch.inference_mode():
                x = torch.from_numpy(x) if place.plain else x
                y = packing.unpacked(through(stack, packing.packed(x)), size.steps)
                return np.asarray(y.numpy()) if place.plain else y

        with place.settings(setting):
            stack = [torch_layer(place, spec, weights, size) for spec in layers]
            self._first_pass(stack, layers, place, size)
            if place.plain:
                yield PeerNetwork(run)
            else:
                yield PeerNetwork(run, place.inputs, place.fetched, place.clock)

    @contextmanager
    def prepare_training(
        self, lesson: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> Iterator[TrainableNetwork]:
        """See `lstm_cli.bench.peers.base.Peer`.

        In 16 bits that is mixed precision, as PyTorch's manual has it: weights in float32, layers
        under ``torch.autocast``, and in float16 a scaled loss.
        """
        torch = self._torch
        place = TorchDevice.of(torch, setting, training=True)
        layers, weights = ending_in_logits(lesson), lesson.weights
        packing = packing_of(torch, layers, lesson.lengths)
        with place.settings(setting):
            stack = [torch_layer(place, spec, weights, size, training=True) for spec in layers]
            learner = TorchTrainable(place, stack, lesson, packing, size)
            self._first_pass(stack, layers, place, size)
            yield learner

    def _first_pass(
        self, stack: Sequence[TorchLayer], layers: Layers, place: TorchDevice, size: GridSize
    ) -> None:
        """One sequence, unheard: it warns, once a process, where it cannot take its fast way."""
        x = np.zeros((1, size.steps, layers[0].input_size), np.float32)
        with warnings.catch_warnings(), self._torch.no_grad(), autocast(place):
            warnings.simplefilter("ignore")
            through(stack, place.inputs(x).to(place.stored))


_Loss = Callable[[Any, Any], Any]


class TorchTrainable:
    """Layers, their loss, and ``torch.optim.Adam``."""

    def __init__(
        self,
        place: TorchDevice,
        stack: Sequence[TorchLayer],
        lesson: TrainingTask,
        packing: SequencePacking,
        size: GridSize,
    ) -> None:
        torch = place.torch
        self._place, self._stack, self._packing = place, stack, packing
        self._loss = _loss(torch, lesson.loss)
        self._parameters = {name: p for layer in stack for name, p in layer.parameters.items()}
        self.clock = place.clock
        adam = lesson.optimiser
        # Neither foreach nor fused is asked for. As PyTorch ships it, that is the loop over
        # tensors on a CPU; foreach is chosen by itself on accelerators only.
        self._optimiser = torch.optim.Adam(
            self._parameters.values(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
        )
        self._scaler: Any = None
        if place.mixed and place.dtype == torch.float16:
            # The loss is a mean: derivatives of so many outputs are too small for float16.
            scale = 2.0 ** round(
                log2(lesson.layers[-1].output_size * sqrt(size.batch * size.steps))
            )
            self._scaler = torch.amp.GradScaler(place.device.type, init_scale=scale)

    def place(self, x: Array, targets: Array) -> tuple[Any, Any]:
        """Tensors where the layers are."""
        return self._place.inputs(x), self._place.targets(targets)

    def step(self, x: Any, targets: Any) -> float:
        """One update."""
        self._optimiser.zero_grad()
        with autocast(self._place):
            outputs = through(self._stack, self._packing.packed(x))
            if self._packing.is_packed(outputs):  # a mean over what is packed is over valid steps
                outputs, targets = outputs.data, self._packing.packed(targets).data
            if self._place.mixed:
                outputs = outputs.float()
            loss = self._loss(outputs, targets)
        if self._scaler is None:
            loss.backward()
            self._optimiser.step()
        else:
            self._scaler.scale(loss).backward()
            self._scaler.step(self._optimiser)  # of gradients without the scale
            self._scaler.update()
        return float(loss.item())

    def gradients(self) -> Mapping[str, Array]:
        """Of the last step; a parameter that the loss does not reach has 0."""
        zeros = self._place.torch.zeros_like
        return {
            name: self._place.fetched(zeros(p) if p.grad is None else p.grad)
            for name, p in self._parameters.items()
        }

    def weights(self) -> Mapping[str, Array]:
        """As they are now."""
        return {name: self._place.fetched(p) for name, p in self._parameters.items()}


def autocast(place: TorchDevice) -> AbstractContextManager[Any]:
    """Layers in the place's dtype where their weights are in another."""
    if not place.mixed:
        return nullcontext()
    found: AbstractContextManager[Any] = place.torch.autocast(place.device.type, dtype=place.dtype)
    return found


def through(stack: Sequence[TorchLayer], x: Any) -> Any:
    """All layers, one after the other."""
    for layer in stack:
        x = layer.call(x)
    return x


def ending_in_logits(lesson: TrainingTask) -> Layers:
    """The layers as the loss wants them: without the last function where it applies that."""
    *others, last = lesson.layers
    if lesson.loss in FUSED and isinstance(last, DenseSpec):
        return (*others, replace(last, activation=Activation("identity")))
    return lesson.layers


def _loss(torch: Any, name: str) -> _Loss:
    """The loss of (outputs or logits, targets), a mean over all rows and features."""
    functional = torch.nn.functional
    if name == "cross_entropy":  # of rows: (N, T, F) has its classes in another place there
        return lambda a, t: functional.cross_entropy(a.flatten(0, -2), t.flatten())
    losses: dict[str, _Loss] = {
        "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
    }
    return losses[name]
