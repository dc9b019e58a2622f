"""What a peer is, and what peers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

from lstm_cli.bench.sizes import Size
from lstm_cli.cells import Cell
from lstm_cli.engines.types import Array, Layers
from lstm_cli.errors import DeviceError, LstmCliError
from lstm_cli.training.optimisers import Adam

Run: TypeAlias = Callable[[Array], Array]
"""(N, T, D) to (N, T, F), or (N, F) if the network does not return sequences."""


class Unsupported(LstmCliError):  # noqa: N818 - it says what it is
    """A peer has no words for this network, or for its dtype."""


@dataclass(frozen=True)
class Lesson:
    """What is trained, and how.

    Attributes
    ----------
    layers
        Without dropout.
    weights
        To start from; their dtype is the one to compute in.
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


class Trainee(Protocol):
    """A network that learns."""

    def step(self, x: Array, targets: Array) -> float:
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
    """

    name: str
    title: str
    version: str

    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: Size,
        threads: int,
        lengths: Array | None = None,
    ) -> AbstractContextManager[Run]:
        """The network in this framework, in the weights' dtype, on `threads` threads.

        With `lengths` (N,), at least 1, of a ragged batch: what is given for steps past a
        sequence's end does not matter. What is global in the framework is put back when the
        context ends.

        Raises
        ------
        Unsupported
            On entering: the framework cannot express the network.
        """

    def prepare_training(
        self, lesson: Lesson, size: Size, threads: int
    ) -> AbstractContextManager[Trainee]:
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


def dtype_of(weights: Mapping[str, Array]) -> str:
    """The dtype that the weights are in, ``float32`` or ``float64``."""
    return next((value.dtype.name for value in weights.values()), "float32")


def activations(cell: Cell) -> dict[str, str]:
    """A cell's activations by the key that sets them in a config."""
    keys = ("recurrent_activation", "activation", "cell_activation")
    return {key: str(getattr(cell, key)) for key in keys if hasattr(cell, key)}
