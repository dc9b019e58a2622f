"""bfloat16, a float32 without its lower 16 bits: two numbers in the memory of one.

Numbers are rounded to nearest, ties to even; NaN stays NaN.
"""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.types import Array


def rounded(values: Array) -> Array:
    """The upper 16 bits of float32 numbers, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up = bits + (0x7FFF + ((bits >> 16) & 1))
    return np.where(np.isnan(values), (bits >> 16) | 0x40, up >> 16).astype(np.uint16)


def paired(values: Array) -> Array:
    """Neighbours along the last axis in one uint32, the first in its lower half; 0 for none."""
    size = values.shape[-1]
    halves = np.zeros((*values.shape[:-1], size + size % 2), np.uint16)
    halves[..., :size] = rounded(values)
    pairs: Array = halves[..., ::2] | halves[..., 1::2].astype(np.uint32) << 16
    return pairs


def widened(values: Array) -> Array:
    """Upper halves as float32 again."""
    return (values.astype(np.uint32) << 16).view(np.float32)
