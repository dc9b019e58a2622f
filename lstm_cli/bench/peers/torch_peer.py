"""PyTorch: the layers of ``torch.nn``, in inference mode or learning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import Lesson, Run, Trainee, Unsupported, dtype_of, load_package
from lstm_cli.bench.peers.torch_layers import TorchLayer, torch_layer
from lstm_cli.bench.sizes import Size
from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array, DenseSpec, FlattenSpec, Layers
from lstm_cli.training.criterion import FUSED

_Loss = Callable[[Any, Any], Any]


class TorchPeer:
    """PyTorch on the CPU.

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

    @contextmanager
    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: Size,
        threads: int,
        lengths: Array | None = None,
    ) -> Iterator[Run]:
        """See `lstm_cli.bench.peers.base.Peer`; the thread count is put back afterwards."""
        torch = self._torch
        stack = [torch_layer(torch, spec, weights, size) for spec in layers]
        packing = _packing(torch, layers, lengths)

        def run(x: Array) -> Array:
            with torch.inference_mode():
                y = _through(stack, packing.packed(torch.from_numpy(x)))
                return np.asarray(packing.unpacked(y, size.steps).numpy())

        with self._threads(threads):
            self._first_pass(stack, layers, weights, size)
            yield run

    @contextmanager
    def prepare_training(self, lesson: Lesson, size: Size, threads: int) -> Iterator[Trainee]:
        """See `lstm_cli.bench.peers.base.Peer`; the thread count is put back afterwards."""
        layers, weights = _ending_in_logits(lesson), lesson.weights
        packing = _packing(self._torch, layers, lesson.lengths)
        stack = [torch_layer(self._torch, spec, weights, size, training=True) for spec in layers]
        with self._threads(threads):
            self._first_pass(stack, layers, weights, size)
            yield _Learner(self._torch, stack, lesson, packing)

    @contextmanager
    def _threads(self, threads: int) -> Iterator[None]:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _first_pass(
        self,
        stack: Sequence[TorchLayer],
        layers: Layers,
        weights: Mapping[str, Array],
        size: Size,
    ) -> None:
        """One sequence, unheard: it warns, once a process, where it cannot take its fast way."""
        x = np.zeros((1, size.steps, layers[0].input_size), dtype_of(weights))
        with warnings.catch_warnings(), self._torch.no_grad():
            warnings.simplefilter("ignore")
            _through(stack, self._torch.from_numpy(x))


class _Learner:
    """Layers, their loss, and ``torch.optim.Adam``."""

    def __init__(
        self, torch: Any, stack: Sequence[TorchLayer], lesson: Lesson, packing: _Packing
    ) -> None:
        self._torch, self._stack, self._packing = torch, stack, packing
        self._loss = _loss(torch, lesson.loss)
        self._parameters = {name: p for layer in stack for name, p in layer.parameters.items()}
        adam = lesson.optimiser
        # Neither foreach nor fused is asked for. As PyTorch ships it, that is the loop over
        # tensors on a CPU; both are chosen by itself on accelerators only.
        self._optimiser = torch.optim.Adam(
            self._parameters.values(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
        )

    def step(self, x: Array, targets: Array) -> float:
        """One update."""
        self._optimiser.zero_grad()
        outputs = _through(self._stack, self._packing.packed(self._torch.from_numpy(x)))
        wanted = self._torch.from_numpy(targets)
        if self._packing.is_packed(outputs):  # a mean over valid steps is one over what is packed
            outputs, wanted = outputs.data, self._packing.packed(wanted).data
        loss = self._loss(outputs, wanted)
        loss.backward()
        self._optimiser.step()
        return float(loss.item())

    def gradients(self) -> Mapping[str, Array]:
        """Of the last step; a parameter that the loss does not reach has 0."""
        return {
            name: (self._torch.zeros_like(p) if p.grad is None else p.grad).numpy()
            for name, p in self._parameters.items()
        }

    def weights(self) -> Mapping[str, Array]:
        """As they are now."""
        return {name: p.detach().numpy() for name, p in self._parameters.items()}


class _Packing:
    """Ragged batches as PyTorch has them: packed sequences, which its recurrent layers take.

    Sequences come in any order, as they do in a file, and the first layer to the last share one
    packing, as in the layers of one ``torch.nn.LSTM``.
    """

    def __init__(self, torch: Any, lengths: Array | None) -> None:
        self._tools = torch.nn.utils.rnn
        self._lengths = None if lengths is None else torch.from_numpy(lengths)

    def packed(self, x: Any) -> Any:
        """(N, T, ...) packed; as it is where every sequence has all steps."""
        if self._lengths is None:
            return x
        pack = self._tools.pack_padded_sequence
        return pack(x, self._lengths, batch_first=True, enforce_sorted=False)

    def is_packed(self, y: Any) -> bool:
        return isinstance(y, self._tools.PackedSequence)

    def unpacked(self, y: Any, steps: int) -> Any:
        """(N, T, F) with 0 past the ends; a tensor as it is."""
        if not self.is_packed(y):
            return y
        return self._tools.pad_packed_sequence(y, batch_first=True, total_length=steps)[0]


def _packing(torch: Any, layers: Layers, lengths: Array | None) -> _Packing:
    if lengths is not None:
        for spec in layers:
            if isinstance(spec, FlattenSpec):
                raise Unsupported(f"layer {spec.index}: flatten does not take packed sequences")
    return _Packing(torch, lengths)


def _through(stack: Sequence[TorchLayer], x: Any) -> Any:
    for layer in stack:
        x = layer.call(x)
    return x


def _ending_in_logits(lesson: Lesson) -> Layers:
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
