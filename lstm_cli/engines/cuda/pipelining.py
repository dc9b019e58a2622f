"""Whether recurrent layers on top of each other run side by side, and in which windows of steps.

While a layer computes a window, the one below it computes the next; on the way back, the one above
it does. That pays where a layer leaves
most of the device idle and there are many steps; each window costs a launch, a product of its own,
and time of the host.

Blocks that wait for one another across the grid have to be on the device together, and those of two
layers must not keep each other off it. So each of L layers gets a share, an L-th of all
multiprocessors, and starts no more of such blocks than that. Then some multiprocessor is empty as
long as one of them is not running, for blocks that run are fewer than multiprocessors, and every
block fits an empty one: it starts, whatever else runs. Blocks that wait for nobody, or within a
cluster, which starts as a whole, end by themselves, and so do products. Clusters need neighbouring
multiprocessors, though, which waiting blocks may hold in part while they wait for their turn behind
the cluster: a stack that has both is not pipelined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda import costs
from lstm_cli.engines.cuda.plan import CLUSTER, GRID
from lstm_cli.engines.cuda.recurrence import Way

MOST_LAYERS = 6
"""Of a pipeline; higher stacks are several. A GPU runs work of about 8 streams at a time."""
MOST_WINDOWS = 64
GAIN = 1.1
"""How much faster a pipeline has to be by the model, which is rough, to be chosen."""

PIPELINES = ("auto", "always", "never")


@dataclass(frozen=True)
class Pipelining:
    """What is otherwise chosen by a model; for tests and measurements.

    Attributes
    ----------
    when
        A name of `PIPELINES`: where the model says that it is faster, wherever it is possible, or
        nowhere.
    steps
        Of a window.
    """

    when: str = "auto"
    steps: int | None = None


@dataclass(frozen=True)
class Pipeline:
    """How layers run side by side.

    Attributes
    ----------
    layers, windows
        How many.
    steps
        Of a window.
    share
        Multiprocessors of a layer whose blocks wait for one another.
    seconds, apart
        Modelled: of the pipeline, and of the layers one after the other.
    """

    layers: int
    windows: int
    steps: int
    share: int
    seconds: float
    apart: float


def pipeline(
    way: Way,
    beside: Callable[[int], Way],
    cells: Sequence[Cell],
    N: int,
    T: int,
    allowed: Pipelining,
    *,
    backward: bool = False,
) -> Pipeline | str:
    """How a stack of layers runs side by side, or why it does not.

    Parameters
    ----------
    way, beside
        What runs a layer on the whole device, and what runs it on so many multiprocessors.
    cells
        Of each layer, from the lowest.
    N, T
        Sequences, all of so many steps.
    """
    if allowed.when == "never":
        return "no pipeline was allowed"
    if T < 2 or N < 1:
        return "there are no windows of a step"
    share = way.multiprocessors // len(cells)
    if share < 1:
        return "the device has fewer multiprocessors than there are layers"
    own = beside(share)
    steps = [own.modelled(cell, N, backward=backward) for cell in cells]
    if mixed(kind for _, kind in steps):
        return "clusters may keep blocks that wait across the grid off the device"
    slowest = max(seconds for seconds, _ in steps)
    whole = [way.modelled(cell, N, backward=backward) for cell in cells]
    apart = sum(T * seconds + costs.WINDOW for seconds, _ in whole)
    windows = [allowed.steps] if allowed.steps else sorted({ceil(T / n) for n in _numbers(T)})
    modelled = {size: costs.pipelined(slowest, len(cells), T, size) for size in windows}
    size = min(modelled, key=lambda size: modelled[size])
    found = Pipeline(len(cells), ceil(T / size), size, share, modelled[size], apart)
    if allowed.when == "auto" and found.seconds * GAIN > apart:
        return (
            f"one after the other is as fast: {apart * 1e6:.0f} µs by the model, "
            f"{found.seconds * 1e6:.0f} in {found.windows} windows of {size} steps"
        )
    return found


def mixed(kinds: Iterable[str]) -> bool:
    """Whether clusters would run beside blocks that wait for one another across the grid."""
    return {CLUSTER, GRID} <= set(kinds)


def _numbers(T: int) -> range:
    """Of windows that are worth a thought."""
    return range(2, min(T, MOST_WINDOWS) + 1)
