"""Layers of ``torch.nn`` that learn: a loss, and ``torch.optim.Adam``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import log2, sqrt
from typing import Any

from lstm_cli.bench.peers.base import Lesson
from lstm_cli.bench.peers.torch_layers import TorchLayer
from lstm_cli.bench.peers.torch_packing import Packing
from lstm_cli.bench.peers.torch_place import TorchPlace
from lstm_cli.bench.sizes import Size
from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array, DenseSpec, Layers
from lstm_cli.training.losses import FUSED

_Loss = Callable[[Any, Any], Any]


class TorchLearner:
    """Layers, their loss, and ``torch.optim.Adam``."""

    def __init__(
        self,
        place: TorchPlace,
        stack: Sequence[TorchLayer],
        lesson: Lesson,
        packing: Packing,
        size: Size,
    ) -> None:
        torch = place.torch
        self._place, self._stack, self._packing = place, stack, packing
        self._loss = _loss(torch, lesson.loss)
        self._parameters = {name: p for layer in stack for name, p in layer.parameters.items()}
        self.clock = place.clock
        adam = lesson.optimizer
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


def autocast(place: TorchPlace) -> AbstractContextManager[Any]:
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


def ending_in_logits(lesson: Lesson) -> Layers:
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
