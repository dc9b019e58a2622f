"""Derivatives of a direction's tensors and input: one large product each over all steps."""

from __future__ import annotations

from lstm_cli.cells.cell import Stage
from lstm_cli.engines.cuda.batch import Sequences
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.recurrence import BackwardRun
from lstm_cli.engines.cuda.reduce import column_sums
from lstm_cli.engines.cuda.rounding import round_rows, rounded, widened
from lstm_cli.engines.cuda.weights import operands
from lstm_cli.engines.cuda.windows import Window, multiply_rows, rows_of


def input_gradient(
    device: Device, precision: Precision, run: BackwardRun, dx: DeviceArray, *, add: bool
) -> None:
    """dz W_ih into (Q, D), or added to it."""
    if dx.shape[0]:
        back = precision.backward
        weight = operands(run.forward.tensors, back, "weight_ih")
        device.multiply(_operand(device, back, run.dz), weight, dx, back.name, add=add)


def window_gradient(
    device: Device,
    precision: Precision,
    run: BackwardRun,
    dx: DeviceArray,
    element: DeviceArray | None,
    window: Window,
) -> None:
    """The same of a window.

    Parameters
    ----------
    element
        (Q, G*H): gets the window's rows of dz in the operands' type; None where they are that, or
        are gathered first.
    """
    back, dz = precision.backward, run.dz
    if element is not None:
        round_rows(device, back, rows_of(dz, window), rows_of(element, window))
        dz = element
    weight = operands(run.forward.tensors, back, "weight_ih")
    multiply_rows(device, window, dz, weight, dx, back)


def tensor_gradients(
    device: Device, precision: Precision, run: BackwardRun, x: Sequences
) -> dict[str, DeviceArray]:
    """Derivatives of every tensor of the direction, by name, of `precision.real`."""
    cell, back = run.forward.tensors.cell, precision.backward
    real = run.forward.tensors.real
    found: dict[str, DeviceArray] = {
        name: device.empty(real[name].shape, precision.real)
        for name in ("weight_ih", "weight_hh", "weight_hr")
        if name in real
    }
    dz = _operand(device, back, run.dz)
    du = dz if run.du is run.dz else _operand(device, back, run.du)
    _outer(device, back, dz, x.element if back.narrow else x.real, found["weight_ih"])
    for phase, reads in zip(run.forward.schedule.phases, run.forward.reads, strict=True):
        if precision.narrow and not back.narrow:
            reads = widened(device, precision, reads)
        if phase.projects:
            d = _operand(device, back, run.d_projected)
            _outer(device, back, d, reads, found["weight_hr"])
        else:
            rows = _rows(run, phase.stage)
            _outer(device, back, du[:, rows], reads, found["weight_hh"][rows])
    biases = ("bias_ih", "bias_hh") if cell.recurrent_bias else ("bias",)
    for name, d in zip(biases, (run.dz, run.du), strict=False):
        found[name] = column_sums(device, precision, d)
    if run.dp is not None:
        N, peepholes, H = run.dp.shape
        found["peephole"] = column_sums(device, precision, run.dp.reshape(N, peepholes * H))
    return found


def _rows(run: BackwardRun, stage: Stage) -> slice:
    """The rows of a stage's gates, which are neighbours."""
    cell = run.forward.tensors.cell
    blocks = [cell.letters.index(gate) for gate in stage.gates]
    return slice(blocks[0] * cell.hidden_size, (blocks[-1] + 1) * cell.hidden_size)


def _operand(device: Device, back: Precision, d: DeviceArray) -> DeviceArray:
    return rounded(device, back, d) if back.narrow else d


def _outer(
    device: Device, back: Precision, d: DeviceArray, a: DeviceArray, out: DeviceArray
) -> None:
    """d^T a over all steps."""
    if d.shape[0]:
        device.multiply(d, a, out, back.name, transpose_a=True)
    else:
        device.fill_zero(out)
