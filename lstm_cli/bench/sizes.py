"""What is measured: sizes, and the layers and work that belong to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lstm_cli.cells import LSTM
from lstm_cli.engines.types import Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import UsageError
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.results import layer_flops


@dataclass(frozen=True)
class Size:
    """One point of a grid: units H, sequences N, steps T, features D."""

    hidden: int
    batch: int
    steps: int
    features: int

    def __str__(self) -> str:
        text = f"{self.hidden} × {self.batch} × {self.steps}"
        return text if self.features == self.hidden else f"{text}, D {self.features}"


def grid(
    hidden: Sequence[int],
    batch: Sequence[int],
    steps: Sequence[int],
    features: Sequence[int] | None = None,
) -> tuple[Size, ...]:
    """Every combination, each once, the last list varying fastest; no `features`: D = H.

    Raises
    ------
    UsageError
        A number below 1, or an empty list.
    """
    lists = {"hidden": hidden, "batch": batch, "steps": steps, "features": features}
    for name, numbers in lists.items():
        if numbers is not None and (not numbers or min(numbers) < 1):
            raise UsageError(
                f"the list of {name} does not name sizes",
                expected="whole numbers of at least 1",
                found=", ".join(map(str, numbers)) or "an empty list",
                hint=f"--{name} 128",
            )
    sizes = (
        Size(H, N, T, D)
        for H, N, T in product(hidden, batch, steps)
        for D in ((H,) if features is None else features)
    )
    return tuple(dict.fromkeys(sizes))


DEFAULT_SIZES = grid((32, 100, 128, 256), (1, 32), (100,))
"""Small and large, one sequence and many, and 100, which no vector length divides."""


def one_lstm(size: Size) -> tuple[LayerSpec, ...]:
    """One LSTM layer of the size: what is measured where no config is given."""
    return (RecurrentSpec(0, size.features, (LSTM(hidden_size=size.hidden),)),)


def describe(layers: Layers) -> str:
    """Layers in a few words, so that results of other layers are not taken for these.

    ``lstm 12 → 100, dense 100 → 9``
    """
    return ", ".join(f"{spec.kind} {spec.input_size} → {spec.output_size}" for spec in layers)


def flops(layers: Layers, size: Size, positions: int | None = None) -> float:
    """Floating-point operations of all matrix products over a batch.

    Parameters
    ----------
    positions
        Valid steps of all sequences together; None: N T.
    """
    total = 0.0
    positions = size.batch * size.steps if positions is None else positions
    for spec in layers:
        total += sum(layer_flops(spec, positions).values())
        if ends_sequence(spec):
            positions = size.batch
    return total


def training_flops(layers: Layers, size: Size, positions: int | None = None) -> float:
    """As `flops`, of a training step: three times as many.

    Every product W x of the forward pass has two in the backward pass, dy xᵀ for the weights
    and Wᵀ dy for the inputs. The optimiser's arithmetic is no product, and is not counted.
    """
    return 3 * flops(layers, size, positions)


def recurrent_reads(layers: Layers, steps: int, item: int) -> Mapping[int, int]:
    """What a pass of so many steps cannot but read: by bytes of a matrix, how many times.

    Every step multiplies by the recurrent weights, of each direction in turn, and whatever stays
    in registers or a cache from step to step has to come from there. `item` is the bytes of a
    weight.
    """
    found: dict[int, int] = {}
    for spec in layers:
        if isinstance(spec, RecurrentSpec):
            work = layer_flops(spec, 1)["recurrence"]
            matrix = int(work / 2 / spec.directions) * item
            found[matrix] = found.get(matrix, 0) + spec.directions * steps
    return found
