"""What stateful layers remember between batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.types import RecurrentSpec, State
from lstm_cli.errors import DataError, counted
from lstm_cli.network.checks import checked_state


class StateCarry:
    """Row j of a batch continues row j of the one before, in the forward direction.

    Parameters
    ----------
    layers
        The network's recurrent layers, stateful or not.
    to_host
        Makes NumPy's array of a state: states are carried there.
    """

    def __init__(
        self, layers: Sequence[RecurrentSpec], to_host: Callable[[Any], Any] = np.asarray
    ) -> None:
        self.layers, self._to_host = tuple(layers), to_host
        self._carried: dict[int, State] = {}

    @property
    def active(self) -> bool:
        """Whether any layer is stateful."""
        return any(spec.stateful for spec in self.layers)

    @property
    def holds(self) -> bool:
        """Whether there are states to continue from."""
        return bool(self._carried)

    def reset(self) -> None:
        """Forget: the next batch starts from zeros."""
        self._carried.clear()

    def start(self, given: Sequence[Any] | None, N: int) -> Sequence[Any] | None:
        """Initial states of a batch of `N`: what is `given` wins over what is carried.

        Raises
        ------
        DataError
            More rows than the batch before had: they continue nothing.
        """
        if given is not None or not self._carried:
            return given
        return [self._continued(spec, N) for spec in self.layers]

    def keep(self, state: Sequence[State]) -> None:
        """Carry a batch's final states into the next."""
        for spec, (h, c) in zip(self.layers, state, strict=True):
            if spec.stateful:
                self._carried[spec.index] = (
                    _forward_only(self._to_host(h)),
                    None if c is None else _forward_only(self._to_host(c)),
                )

    def _continued(self, spec: RecurrentSpec, N: int) -> State | None:
        if spec.index not in self._carried:
            return None
        h, c = self._carried[spec.index]
        if len(h) < N:
            raise DataError(
                f"layer {spec.index} is stateful: each row continues the same row of the batch "
                "before",
                expected=f"at most {counted(len(h), 'sequence')}, as in the batch before",
                found=f"{N}",
                hint="reset_state() starts anew",
            )
        return checked_state(spec, (h[:N], None if c is None else c[:N]), N)


def _forward_only(state: Any) -> Any:
    """The state with the reverse direction's part, which always starts anew, set to 0."""
    kept = np.array(state)
    kept[:, 1:] = 0
    return kept
