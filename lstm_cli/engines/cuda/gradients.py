"""Derivatives of a direction's tensors and input: one large product each over all steps."""

from __future__ import annotations

from lstm_cli.cells.tracing import Stage
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.codegen.layout import round_operands, round_rows_into, widen_operands
from lstm_cli.engines.cuda.codegen.rows import column_sums
from lstm_cli.engines.cuda.passes import BackwardRun
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray
from lstm_cli.engines.cuda.time_chunks import TimeChunk, chunk_rows, multiply_chunk_rows
from lstm_cli.engines.cuda.weights import operand_matrix


def input_gradient(
    device: Device, precision: Precision, run: BackwardRun, dx: DeviceArray, *, add: bool
) -> None:
    """dz W_ih into (Q, D), or added to it."""
    if dx.shape[0]:
        back = precision.backward
        weight = operand_matrix(run.forward.tensors, back, "weight_ih")
        device.multiply(_gradient_operand(device, back, run.dz), weight, dx, back.name, add=add)


def chunk_input_gradient(
    device: Device,
    precision: Precision,
    run: BackwardRun,
    dx: DeviceArray,
    element: DeviceArray | None,
    window: TimeChunk,
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
        round_rows_into(device, back, chunk_rows(dz, window), chunk_rows(element, window))
        dz = element
    weight = operand_matrix(run.forward.tensors, back, "weight_ih")
    multiply_chunk_rows(device, window, dz, weight, dx, back)


def tensor_gradients(
    device: Device, precision: Precision, run: BackwardRun, x: PackedSequences
) -> dict[str, DeviceArray]:
    """Derivatives of every tensor of the direction, by name, of `precision.real`."""
    cell, back = run.forward.tensors.cell, precision.backward
    real = run.forward.tensors.real
    found: dict[str, DeviceArray] = {
        name: device.empty(real[name].shape, precision.real)
        for name in ("weight_ih", "weight_hh", "weight_hr")
        if name in real
    }
    dz = _gradient_operand(device, back, run.dz)
    du = dz if run.du is run.dz else _gradient_operand(device, back, run.du)
    _weight_gradient(device, back, dz, x.element if back.narrow else x.real, found["weight_ih"])
    for phase, reads in zip(run.forward.schedule.phases, run.forward.reads, strict=True):
        if precision.narrow and not back.narrow:
            reads = widen_operands(device, precision, reads)
        if phase.projects:
            d = _gradient_operand(device, back, run.d_projected)
            _weight_gradient(device, back, d, reads, found["weight_hr"])
        else:
            rows = _gate_rows(run, phase.stage)
            _weight_gradient(device, back, du[:, rows], reads, found["weight_hh"][rows])
    biases = ("bias_ih", "bias_hh") if cell.recurrent_bias else ("bias",)
    for name, d in zip(biases, (run.dz, run.du), strict=False):
        found[name] = column_sums(device, precision, d)
    if run.dp is not None:
        N, peepholes, H = run.dp.shape
        found["peephole"] = column_sums(device, precision, run.dp.reshape(N, peepholes * H))
    return found


def _gate_rows(run: BackwardRun, stage: Stage) -> slice:
    """The rows of a stage's gates, which are neighbours."""
    cell = run.forward.tensors.cell
    blocks = [cell.letters.index(gate) for gate in stage.gates]
    return slice(blocks[0] * cell.hidden_size, (blocks[-1] + 1) * cell.hidden_size)


def _gradient_operand(device: Device, back: Precision, d: DeviceArray) -> DeviceArray:
    return round_operands(device, back, d) if back.narrow else d


def _weight_gradient(
    device: Device, back: Precision, d: DeviceArray, a: DeviceArray, out: DeviceArray
) -> None:
    """d^T a over all steps."""
    if d.shape[0]:
        device.multiply(d, a, out, back.name, transpose_a=True)
    else:
        device.fill_zero(out)
