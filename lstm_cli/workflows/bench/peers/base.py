"""Interfaces of peers: networks of other frameworks that run or train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

from lstm_cli.cells import Cell
from lstm_cli.engines.types import Array, Layers
from lstm_cli.errors import DeviceError, LstmCliError
from lstm_cli.training.optimizers import AdamOptimizer
from lstm_cli.workflows.bench.protocol import WALL, Clock
from lstm_cli.workflows.bench.sizes import GridSize

DeviceArray: TypeAlias = Any
"""An array in the memory of the device that computes: a GPU's array, or NumPy's."""


def identity(array: Any) -> Any:
    """The array itself, where NumPy's memory is the device's."""
    return array


class Unsupported(LstmCliError):  # noqa: N818 - it describes a network, not a fault
    """A peer cannot express this network, or does not support its dtype."""


@dataclass(frozen=True)
class ComputeSetting:
    """Device, threads and dtype of a peer.

    Attributes
    ----------
    threads
        Number of CPU threads.
    device
        ``cpu``, or a GPU such as ``cuda:0``.
    dtype
        ``float32`` with products in float32; ``tf32`` with products in TF32. With ``float64``,
        ``float16`` and ``bfloat16``, weights and inputs have that dtype.
    """

    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class PeerNetwork:
    """A network in another framework.

    Attributes
    ----------
    call
        Maps (N, T, D) to (N, T, F), or to (N, F) if the network does not return sequences. Both
        arrays are in the device's memory.
    to_device, to_host
        Copy an array from NumPy's memory to the device's, and back.
    clock
        The clock that times calls.
    """

    call: Callable[[DeviceArray], DeviceArray]
    to_device: Callable[[Array], DeviceArray] = identity
    to_host: Callable[[DeviceArray], Array] = identity
    clock: Clock = WALL

    def __call__(self, x: Array) -> Array:
        """Run the network on NumPy's array and return NumPy's array."""
        return self.to_host(self.call(self.to_device(x)))


@dataclass(frozen=True)
class TrainingTask:
    """A network to train, and how to train it.

    Attributes
    ----------
    layers
        Layers without dropout.
    weights
        Initial weights by stored name.
    loss
        One of `lstm_cli.training.losses.LOSSES`, the mean over all valid rows and features.
        Cross-entropies are computed from logits.
    optimizer
        Adam without penalties and weight decay.
    lengths
        (N,) valid steps, at least 1; None: all T.
    """

    layers: Layers
    weights: Mapping[str, Array]
    loss: str
    optimizer: AdamOptimizer
    lengths: Array | None = None


class TrainableNetwork(Protocol):
    """A network in training.

    Attributes
    ----------
    clock
        The clock that times steps.
    """

    clock: Clock

    def to_device(self, x: Array, targets: Array) -> tuple[DeviceArray, DeviceArray]:
        """Copy inputs and targets to the device that computes."""

    def step(self, x: DeviceArray, targets: DeviceArray) -> float:
        """Make one update (forward, loss, backward) and return the loss before it."""

    def gradients(self) -> Mapping[str, Array]:
        """Gradients of the last step by stored name."""

    def weights(self) -> Mapping[str, Array]:
        """Current weights by stored name."""


class Peer(Protocol):
    """Another framework.

    Attributes
    ----------
    name, title, version
        ``torch``, ``PyTorch 2.13.0``, ``2.13.0``.
    versions
        Version of the peer's package, and of the libraries it computes with.
    """

    name: str
    title: str
    version: str

    @property
    def versions(self) -> Mapping[str, str]: ...

    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: GridSize,
        setting: ComputeSetting,
        lengths: Array | None = None,
    ) -> AbstractContextManager[PeerNetwork]:
        """The network in this framework.

        The framework's global settings are restored when the context ends.

        Parameters
        ----------
        lengths
            (N,) valid steps of a ragged batch, at least 1. Inputs of other steps are ignored.

        Raises
        ------
        Unsupported
            On entering: the framework cannot express the network, or cannot use the device.
        """

    def prepare_training(
        self, task: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> AbstractContextManager[TrainableNetwork]:
        """The network in this framework, to be trained; otherwise like `prepare`.

        Raises
        ------
        Unsupported
            On entering: the framework does not train, or cannot express the network.
        """


def load_package(module: str, peer: str, install: str) -> Any:
    """Import a package that a peer needs.

    Raises
    ------
    DeviceError
        The package is not installed, or cannot be loaded.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise _broken(module, peer, error) from None
        raise DeviceError(
            f"bench --against {peer} needs the package {module}, which is not installed",
            hint=install,
        ) from None
    except (ImportError, OSError) as error:
        raise _broken(module, peer, error) from None


def _broken(module: str, peer: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"bench --against {peer} needs the package {module}, which cannot be loaded",
        found=str(error),
    )


def activations(cell: Cell) -> dict[str, str]:
    """Activations of a cell by the config's key."""
    keys = ("recurrent_activation", "activation", "cell_activation")
    return {key: str(getattr(cell, key)) for key in keys if hasattr(cell, key)}
