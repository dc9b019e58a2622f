"""PyTorch: the layers of ``torch.nn``, in inference mode or learning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import Lesson, Run, Setting, Trainee, load_package
from lstm_cli.bench.peers.torch_layers import TorchLayer, torch_layer
from lstm_cli.bench.peers.torch_packing import packing_of
from lstm_cli.bench.peers.torch_place import TorchPlace
from lstm_cli.bench.peers.torch_training import TorchLearner, autocast, ending_in_logits, through
from lstm_cli.bench.sizes import Size
from lstm_cli.engines.types import Array, Layers


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
        size: Size,
        setting: Setting,
        lengths: Array | None = None,
    ) -> Iterator[Run]:
        """See `lstm_cli.bench.peers.base.Peer`."""
        torch = self._torch
        place = TorchPlace.of(torch, setting)
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
                yield Run(run)
            else:
                yield Run(run, place.inputs, place.fetched, place.clock)

    @contextmanager
    def prepare_training(self, lesson: Lesson, size: Size, setting: Setting) -> Iterator[Trainee]:
        """See `lstm_cli.bench.peers.base.Peer`.

        In 16 bits that is mixed precision, as PyTorch's manual has it: weights in float32, layers
        under ``torch.autocast``, and in float16 a scaled loss.
        """
        torch = self._torch
        place = TorchPlace.of(torch, setting, training=True)
        layers, weights = ending_in_logits(lesson), lesson.weights
        packing = packing_of(torch, layers, lesson.lengths)
        with place.settings(setting):
            stack = [torch_layer(place, spec, weights, size, training=True) for spec in layers]
            learner = TorchLearner(place, stack, lesson, packing, size)
            self._first_pass(stack, layers, place, size)
            yield learner

    def _first_pass(
        self, stack: Sequence[TorchLayer], layers: Layers, place: TorchPlace, size: Size
    ) -> None:
        """One sequence, unheard: it warns, once a process, where it cannot take its fast way."""
        x = np.zeros((1, size.steps, layers[0].input_size), np.float32)
        with warnings.catch_warnings(), self._torch.no_grad(), autocast(place):
            warnings.simplefilter("ignore")
            through(stack, place.inputs(x).to(place.stored))
