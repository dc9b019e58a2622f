"""Cross-entropy of a softmax on the device: the loss of rows and its derivative in one kernel."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.copies import TYPES
from lstm_cli.engines.cuda.device import Device, DeviceArray, Launch, dtype_name
from lstm_cli.engines.cuda.elementwise import BLOCK_SUM, PARTS, Sums
from lstm_cli.engines.cuda.launches import compiled
from lstm_cli.engines.cuda.primitives import PRELUDE
from lstm_cli.engines.cuda.softmax import ROWS, SUMS, THREADS
from lstm_cli.engines.types import Array, RowsLoss

KERNEL = """
// The share of class f, smoothed, times what the class counts for.
__device__ __forceinline__ double share(
    double t, double counts, double smoothing, long long F) {
  return ((1 - smoothing) * t + smoothing / F) * counts;
}
extern "C" __global__ void __launch_bounds__(128) cross_entropy(
    const real* logits, const long long* classes, const double* shares, const double* counts,
    real* to, double* parts, double smoothing, double scale, long long rows, long long F) {
  DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x % 32;
  double own = 0;
  ROWS {
    const real* a = logits + row * F;
    real most = real(__uint_as_float(0xff800000u));
    for (long long f = lane; f < F; f += 32) most = a[f] > most || a[f] != a[f] ? a[f] : most;
    most = warp_most(most);
    double powers = 0, weight = 0, whole = 0, loss = 0;
    for (long long f = lane; f < F; f += 32) {
      const double t = classes ? double(classes[row] == f) : shares[row * F + f];
      const double count = counts ? counts[f] : 1.0;
      powers += exp(double(a[f]) - double(most));
      weight += counts ? t * count : 0.0;
      const double s = share(t, count, smoothing, F);
      whole += s;
      loss -= s == 0 ? 0.0 : s * (double(a[f]) - double(most));
    }
    powers = warp_sum(powers);
    whole = warp_sum(whole);
    loss = warp_sum(loss) + whole * log1p(powers - 1);
    weight = counts ? warp_sum(weight) : 1.0;
    // A row's weight was multiplied in with its shares, which it is divided by again.
    const double part = counts ? (weight != 0 ? 1.0 : 0.0) : 1.0;
    if (lane == 0) own += loss * part;
    for (long long f = lane; f < F; f += 32) {
      const double t = classes ? double(classes[row] == f) : shares[row * F + f];
      const double s = share(t, counts ? counts[f] : 1.0, smoothing, F);
      const double p = exp(double(a[f]) - double(most)) / powers;
      to[row * F + f] = real((p * whole - s) * part * scale);
    }
  }
  leave_sum(own, (double*)memory, parts);
}
""".replace("ROWS", ROWS)


def cross_entropy(
    device: Device,
    logits: DeviceArray,
    targets: Array,
    class_weights: Array | None,
    label_smoothing: float,
    sums: Sums,
) -> RowsLoss:
    """The loss of logits (rows, F); see `lstm_cli.engines.types.ArrayOperations`."""
    rows, F = logits.shape
    out = device.empty(logits.shape, dtype_name(logits.dtype))
    weight = _weight(targets, class_weights)
    scale = 1 / weight if weight else 0.0
    if not out.size:
        return RowsLoss(lambda: 0.0, out, weight, scale)
    classes = device.upload(targets.astype(np.int64)) if targets.ndim == 1 else None
    shares = device.upload(targets.astype(np.float64)) if targets.ndim == 2 else None
    counts = None if class_weights is None else device.upload(class_weights.astype(np.float64))
    real = dtype_name(logits.dtype)
    kernel = compiled(device, ("classes", real), ["cross_entropy"], lambda: _source(real))
    blocks = min(PARTS, -(-rows // (THREADS // 32)))
    place, late = sums.room(blocks)
    given = (logits, classes, shares, counts, out, place, float(label_smoothing), float(scale))
    launch = Launch((blocks, 1, 1), THREADS, shared=THREADS * 8)
    kernel["cross_entropy"](launch, *given, rows, F)
    return RowsLoss(late, out, weight, scale)


def _weight(targets: Array, class_weights: Array | None) -> float:
    """What all rows count for together."""
    if class_weights is None:
        return float(len(targets))
    return float((class_weights[targets] if targets.ndim == 1 else targets @ class_weights).sum())


def _source(real: str) -> str:
    return f"{PRELUDE}\ntypedef {TYPES[real]} real;\n{SUMS}{BLOCK_SUM}{KERNEL}"
