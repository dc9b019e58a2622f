"""Lengths and states that a caller gives: do they fit the layers?"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, EngineArray, FlattenSpec, RecurrentSpec, State, ZeroStates
from lstm_cli.errors import DataError, counted


def checked_lengths(lengths: Any, shape: tuple[int, ...]) -> Array:
    """(N,) int64 of inputs of `shape`, each within their steps."""
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
    """Raise if a sequence is longer than a flatten layer takes."""
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
    given: Any,
    N: int,
    from_device_array: Callable[[Any], EngineArray | None] = lambda _: None,
    zero: ZeroStates = MappingProxyType({}),
    *,
    one_sided: bool = False,
) -> State:
    """One layer's initial (h, c), shapes checked; a missing c of an lstm is zeros.

    X
    states of a layer that is `one_sided` may be those of its reverse direction alone, (N, 1, H).
    """
    h, c = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    names, sizes = spec.cells[0].states, spec.cells[0].state_sizes
    if c is not None and len(names) == 1:
        raise DataError(f"layer {spec.index} ({spec.kind}) has no state c")
    checked = []
    for name, value, size in zip(names, (h, c), sizes, strict=False):
        held, shape = zero.get((spec.index, name), ()), (N, spec.directions, size)
        part = _checked_part(spec, name, value, shape, from_device_array, one_sided)
        if held and value is not None:
            part = part.copy()
            part[:, list(held)] = 0
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
    own = from_device_array(value)
    array = as_array(value, what) if own is None else own
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
    """`value` in NumPy's memory, from a GPU's too."""
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
    except Exception as error:  # whatever an object's own conversion raises
        raise DataError(f"{what} cannot be read", expected=expected, found=str(error)) from None
