"""Checks of a caller's lengths and states, and states carried from one batch to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.types import (
    Array,
    EngineArray,
    FlattenSpec,
    RecurrentSpec,
    State,
    ZeroStates,
)
from lstm_cli.errors import DataError, counted


class StateCarry:
    """States of stateful layers, carried from one batch to the next.

    Row j of a batch continues row j of the previous batch, in the forward direction.

    Parameters
    ----------
    layers
        The network's recurrent layers, stateful or not.
    to_host
        Converter of a state to a NumPy array. Carried states are NumPy arrays.
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
    def has_states(self) -> bool:
        """Whether states are stored for the next batch."""
        return bool(self._carried)

    def reset(self) -> None:
        """Discard the states, so that the next batch starts from zeros."""
        self._carried.clear()

    def start(self, state: Sequence[Any] | None, N: int) -> Sequence[Any] | None:
        """Initial states of a batch of `N` sequences: `state` if given, else the carried ones.

        Raises
        ------
        DataError
            The batch has more rows than the previous one.
        """
        if state is not None or not self._carried:
            return state
        return [self._continued(spec, N) for spec in self.layers]

    def store(self, state: Sequence[State]) -> None:
        """Store a batch's final states for the next batch."""
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
                f"layer {spec.index} is stateful: each row continues the same row of the "
                "previous batch",
                expected=f"at most {counted(len(h), 'sequence')}, as in the previous batch",
                found=f"{N}",
                hint="reset_state() starts anew",
            )
        return checked_state(spec, (h[:N], None if c is None else c[:N]), N)


def _forward_only(state: Any) -> Any:
    """A copy of `state` with 0 for the reverse direction, which starts from 0 in every batch."""
    carried = np.array(state)
    carried[:, 1:] = 0
    return carried


def checked_lengths(lengths: Any, shape: tuple[int, ...]) -> Array:
    """(N,) int64 lengths for inputs of `shape`, each from 0 to T.

    Raises
    ------
    DataError
        The lengths have another shape or type, or exceed the steps.
    """
    n = as_array(lengths, "lengths", f"integers of shape ({shape[0]},)")
    N, T, _ = shape
    if n.shape != (N,) or (n.size and n.dtype.kind not in "iu"):
        raise DataError(
            "lengths do not fit the inputs",
            expected=f"integers of shape ({N},)",
            found=f"{n.dtype} of shape {n.shape}",
        )
    n = n.astype(np.int64)
    wrong = np.flatnonzero((n < 0) | (n > T))
    if wrong.size:
        raise DataError(
            f"the length of sequence {wrong[0]} is out of range",
            expected=f"0 to {T}, the steps of the inputs",
            found=str(n[wrong[0]]),
        )
    return n


def check_steps(spec: FlattenSpec, y: EngineArray, lengths: Array | None) -> None:
    """Raise DataError if a sequence is longer than a flatten layer takes."""
    longest = y.shape[1] if lengths is None else int(lengths.max(initial=0))
    if longest > spec.steps:
        raise DataError(
            f"a sequence of {counted(longest, 'step')} is longer than "
            f"layer {spec.index} (flatten) takes",
            expected=f"at most model.steps = {spec.steps}",
            found=f"{longest}",
            hint=f"--set model.steps={longest}",
        )


def checked_state(
    spec: RecurrentSpec,
    state: Any,
    N: int,
    from_device_array: Callable[[Any], EngineArray | None] = lambda _: None,
    zero: ZeroStates = MappingProxyType({}),
    *,
    one_sided: bool = False,
) -> State:
    """Initial (h, c) of one layer with checked shapes. A missing c of an lstm is zeros.

    Parameters
    ----------
    state
        (h, c), or h alone.
    from_device_array
        `Engine.from_device_array`. The arrays it returns stay in the engine's memory.
    zero
        States that stay 0 even if the caller gives others.
    one_sided
        True: the states may be (N, 1, P or H), those of the reverse direction alone.

    Raises
    ------
    DataError
        A state does not fit the layer.
    """
    h, c = state if isinstance(state, tuple | list) and len(state) == 2 else (state, None)
    names, sizes = spec.cells[0].states, spec.cells[0].state_sizes
    if c is not None and len(names) == 1:
        raise DataError(f"layer {spec.index} ({spec.kind}) has no state c")
    checked = []
    for name, value, size in zip(names, (h, c), sizes, strict=False):
        zeroed, shape = zero.get((spec.index, name), ()), (N, spec.directions, size)
        part = _checked_part(spec, name, value, shape, from_device_array, one_sided)
        if zeroed and value is not None:
            part = part.copy()
            part[:, list(zeroed)] = 0
        checked.append(part)
    return checked[0], checked[1] if len(names) > 1 else None


def _checked_part(
    spec: RecurrentSpec,
    name: str,
    value: Any,
    shape: tuple[int, ...],
    from_device_array: Callable[[Any], EngineArray | None],
    one_sided: bool,
) -> EngineArray:
    if value is None:
        return np.zeros(shape)
    what = f"initial state {name} of layer {spec.index} ({spec.kind})"
    device_array = from_device_array(value)
    array = as_array(value, what) if device_array is None else device_array
    reverse = (shape[0], 1, shape[2])
    if one_sided and array.shape == reverse:
        array = as_array(value, what)
        array = np.concatenate([np.zeros_like(array), array], axis=1)
    if array.shape != shape or array.dtype.kind not in "fiub":
        either = f", or {reverse} of the reverse direction, the only one in use"
        raise DataError(
            f"{what} does not fit",
            expected=f"real numbers {shape}, that is (N, directions, features)"
            + (either if one_sided else ""),
            found=f"{array.dtype} {array.shape}",
        )
    return array


def as_array(value: Any, what: str, expected: str = "an array") -> Array:
    """`value` as a NumPy array, copied from a GPU if necessary.

    Parameters
    ----------
    what, expected
        Name of the value, and description of a valid one, for the error.

    Raises
    ------
    DataError
        The value cannot be converted, or is a masked array with masked values.
    """
    masked = isinstance(getattr(value, "mask", None), np.ndarray) and value.mask.any()
    if masked and hasattr(value, "filled"):
        raise DataError(
            f"{what} cannot be read",
            expected=expected,
            found="a masked array, some of whose values are masked",
            hint="array.filled(0) puts numbers in their place; `lengths` leaves steps out",
        )
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        value = value.get()
    try:
        return np.asarray(value)
    except Exception as error:  # an object's own conversion may raise anything
        raise DataError(f"{what} cannot be read", expected=expected, found=str(error)) from None
