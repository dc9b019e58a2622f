"""Derivatives of a direction's tensors and input, each one large product over all steps."""

from __future__ import annotations

from lstm_cli.cells.cell import Stage
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.codegen.data_movement import (
    round_if_narrow,
    round_rows_into,
    widen_operands,
)
from lstm_cli.engines.cuda.codegen.rows import column_sums
from lstm_cli.engines.cuda.passes import BackwardRun
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray
from lstm_cli.engines.cuda.time_chunks import TimeChunk, chunk_rows, multiply_chunk_rows
from lstm_cli.engines.cuda.weights import operand_matrix


def input_gradient(
    device: Device, precision: Precision, run: BackwardRun, dx: DeviceArray, *, add: bool
) -> None:
    """Compute dx = dz W_ih, (Q, D), or add to dx."""
    if dx.shape[0]:
        backward_precision = precision.backward
        weight = operand_matrix(run.forward.weights, backward_precision, "weight_ih")
        device.multiply(
            round_if_narrow(device, backward_precision, run.dz),
            weight,
            dx,
            backward_precision.name,
            add=add,
        )


def chunk_input_gradient(
    device: Device,
    precision: Precision,
    run: BackwardRun,
    dx: DeviceArray,
    dz_operand: DeviceArray | None,
    chunk: TimeChunk,
) -> None:
    """Compute the rows of dx = dz W_ih of a chunk of steps.

    Parameters
    ----------
    dz_operand
        (Q, G*H): receives the chunk's rows of dz in the operand type. None if dz has that type, or
        if the product gathers the rows first.
    """
    backward_precision, dz = precision.backward, run.dz
    if dz_operand is not None:
        round_rows_into(
            device, backward_precision, chunk_rows(dz, chunk), chunk_rows(dz_operand, chunk)
        )
        dz = dz_operand
    weight = operand_matrix(run.forward.weights, backward_precision, "weight_ih")
    multiply_chunk_rows(device, chunk, dz, weight, dx, backward_precision)


def tensor_gradients(
    device: Device, precision: Precision, run: BackwardRun, x: PackedSequences
) -> dict[str, DeviceArray]:
    """Derivatives of every tensor of a direction, by name, in the accumulator type."""
    stored, backward_precision = run.forward.weights.stored, precision.backward
    cell = run.forward.weights.cell
    gradients: dict[str, DeviceArray] = {
        name: device.empty(stored[name].shape, precision.accumulator)
        for name in ("weight_ih", "weight_hh", "weight_hr")
        if name in stored
    }
    dz = round_if_narrow(device, backward_precision, run.dz)
    du = dz if run.du is run.dz else round_if_narrow(device, backward_precision, run.du)
    x_operand = x.operand if backward_precision.narrow else x.values
    _weight_gradient(device, backward_precision, dz, x_operand, gradients["weight_ih"])
    for phase, reads in zip(run.forward.schedule.phases, run.forward.reads, strict=True):
        if precision.narrow and not backward_precision.narrow:
            reads = widen_operands(device, precision, reads)
        if phase.projects:
            d = round_if_narrow(device, backward_precision, run.d_projected)
            _weight_gradient(device, backward_precision, d, reads, gradients["weight_hr"])
        else:
            rows = _gate_rows(run, phase.stage)
            _weight_gradient(
                device, backward_precision, du[:, rows], reads, gradients["weight_hh"][rows]
            )
    biases = ("bias_ih", "bias_hh") if cell.recurrent_bias else ("bias",)
    for name, d in zip(biases, (run.dz, run.du), strict=False):
        gradients[name] = column_sums(device, precision, d)
    if run.dp is not None:
        N, peepholes, H = run.dp.shape
        gradients["peephole"] = column_sums(device, precision, run.dp.reshape(N, peepholes * H))
    return gradients


def _gate_rows(run: BackwardRun, stage: Stage) -> slice:
    """Rows of a stage's gates, which are adjacent."""
    cell = run.forward.weights.cell
    blocks = [cell.letters.index(gate) for gate in stage.gates]
    return slice(blocks[0] * cell.hidden_size, (blocks[-1] + 1) * cell.hidden_size)


def _weight_gradient(
    device: Device, backward_precision: Precision, d: DeviceArray, a: DeviceArray, out: DeviceArray
) -> None:
    """Compute d^T a over all steps."""
    if d.shape[0]:
        device.multiply(d, a, out, backward_precision.name, transpose_a=True)
    else:
        device.fill_zero(out)
