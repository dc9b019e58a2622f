"""What a peer is, and what peers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

from lstm_cli.bench.protocol import WALL, Clock
from lstm_cli.bench.sizes import GridSize
from lstm_cli.cells import Cell
from lstm_cli.engines.types import Array, Layers
from lstm_cli.errors import DeviceError, LstmCliError
from lstm_cli.training.optimisers import Adam

Placed: TypeAlias = Any
"""An array where a contestant computes: a GPU's, or NumPy's own."""


def here(array: Any) -> Any:
    """An array that is where it is needed already."""
    return array


class Unsupported(LstmCliError):  # noqa: N818 - it says what it is
    """A peer has no words for this network, or for its dtype."""


@dataclass(frozen=True)
class ComputeSetting:
    """Where and in what a peer computes.

    Attributes
    ----------
    threads
        Of the processor.
    device
        ``cpu``, or a GPU as ``cuda:0``.
    dtype
        ``float32``, whose products are in float32 too; ``tf32``, where these may be in TF32;
        ``float64``, ``float16``, ``bfloat16``: weights and inputs in that dtype.
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
        From placed (N, T, D) to (N, T, F), or (N, F) if the network does not return sequences,
        where the peer computes. NumPy's arrays will do where that is the processor.
    place, fetch
        To there from NumPy's memory, and back.
    clock
        What takes the time of calls.
    """

    call: Callable[[Placed], Placed]
    place: Callable[[Array], Placed] = here
    fetch: Callable[[Placed], Array] = here
    clock: Clock = WALL

    def __call__(self, x: Array) -> Array:
        """From NumPy's memory to NumPy's memory."""
        return self.fetch(self.call(self.place(x)))


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, and how.

    Attributes
    ----------
    layers
        Without dropout.
    weights
        To start from.
    loss
        One of `lstm_cli.training.losses.LOSSES`, the mean over all valid rows and features;
        cross-entropies from the logits.
    optimiser
        Without penalties and weight decay.
    lengths
        (N,) valid steps, at least 1; None: all T.
    """

    layers: Layers
    weights: Mapping[str, Array]
    loss: str
    optimiser: Adam
    lengths: Array | None = None


class TrainableNetwork(Protocol):
    """A network that learns.

    Attributes
    ----------
    clock
        What takes the time of steps.
    """

    clock: Clock

    def place(self, x: Array, targets: Array) -> tuple[Placed, Placed]:
        """Inputs and targets where it computes."""

    def step(self, x: Placed, targets: Placed) -> float:
        """Forward, loss, backward, update: the loss before the update."""

    def gradients(self) -> Mapping[str, Array]:
        """Of the last step, by stored name."""

    def weights(self) -> Mapping[str, Array]:
        """As they are now, by stored name."""


class Peer(Protocol):
    """Another framework.

    Attributes
    ----------
    name, title, version
        ``torch``, ``PyTorch 2.13.0``, ``2.13.0``.
    versions
        By package: its own, and those of what it computes with.
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

        With `lengths` (N,), at least 1, of a ragged batch: what is given for steps past a
        sequence's end does not matter. What is global in the framework is put back when the
        context ends.

        Raises
        ------
        Unsupported
            On entering: the framework cannot express the network, or not compute there.
        """

    def prepare_training(
        self, lesson: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> AbstractContextManager[TrainableNetwork]:
        """As `prepare`, of a network that learns.

        Raises
        ------
        Unsupported
            On entering: the framework does not train, or cannot express the network.
        """


def load_package(module: str, peer: str, install: str) -> Any:
    """Import a package a peer needs.

    Raises
    ------
    DeviceError
        It is not installed, or cannot be loaded.
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
    """A cell's activations by the key that sets them in a config."""
    keys = ("recurrent_activation", "activation", "cell_activation")
    return {key: str(getattr(cell, key)) for key in keys if hasattr(cell, key)}
