"""Runs of a recurrence as arguments of the kernels that compute them, whichever way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lstm_cli.engines.cuda.device import Argument, DeviceArray
from lstm_cli.engines.cuda.recurrence import BackwardRun, ForwardRun

Run = TypeVar("Run", ForwardRun, BackwardRun)


def alike(runs: Sequence[Run], forward_of: Callable[[Run], ForwardRun]) -> list[list[Run]]:
    """Runs that one launch can do: of one schedule, and so of one cell."""
    first = forward_of(runs[0])
    if all(forward_of(run).schedule is first.schedule for run in runs):
        return [list(runs)]
    return [[run] for run in runs]


def forward_rows(run: ForwardRun) -> dict[str, Argument]:
    """How far apart the rows of its arrays are, which all directions have in common."""
    y = run.y if run.y is not None else run.y_element
    return {"h_row": _row(run.h), "c_row": _row(run.c), "y_row": _row(y)}


def backward_rows(run: BackwardRun) -> dict[str, Argument]:
    """The same of a backward pass."""
    return {
        "h_row": _row(run.dh),
        "c_row": _row(run.dc),
        "h_first_row": _row(run.h_first),
        "c_first_row": _row(run.c_first),
        "y_row": _row(run.y),
        "d_row": _row(run.d_y),
    }


def _row(array: DeviceArray | None) -> int:
    """How far apart an array's rows are, in numbers."""
    if array is None:
        return 0
    return int(array.strides[0]) // int(array.dtype.itemsize)


def forward_values(run: ForwardRun) -> dict[str, Argument]:
    """A direction's own arguments, but for its weights and what products read."""
    real = run.tensors.real
    return {
        "z": run.z,
        "bias": real["bias_ih" if run.tensors.cell.recurrent_bias else "bias"],
        "bias_hh": real.get("bias_hh"),
        "p": real.get("peephole"),
        "m": run.mask,
        "h": run.h,
        "c": run.c,
        "y": run.y,
        "y_element": run.y_element,
        "c_steps": run.c_steps,
        "record": run.record,
        "column": run.column,
        "reverse": int(run.reverse),
    }


def backward_values(run: BackwardRun) -> dict[str, Argument]:
    """A direction's own arguments, but for its weights."""
    first = run.forward
    return {
        "p": first.tensors.real.get("peephole"),
        "m": first.mask,
        "record": first.record,
        "c_steps": first.c_steps,
        "h_first": run.h_first,
        "c_first": run.c_first,
        "y": run.y,
        "d_y": run.d_y,
        "dh": run.dh,
        "dc": run.dc,
        "dz": run.dz,
        "du": run.du,
        "d_projected": run.d_projected,
        "dp": run.dp,
        "column": first.column,
        "reverse": int(first.reverse),
    }
