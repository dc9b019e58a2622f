"""Kernels that convert, pack and sum, run on the host device, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host.build import COMPILER
from cuda_host.device import HostDevice
from rounded_reference import rounded

from lstm_cli.cells import LSTM
from lstm_cli.engines.cuda.codegen.data_movement import (
    multiply_by_mask,
    round_operands,
    widen_operands,
)
from lstm_cli.engines.cuda.codegen.rows import column_sums
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.weights import direction_weights, packed_weights

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_to_operands_and_back(name):
    device, precision = HostDevice(), PRECISIONS[name]
    values = np.random.default_rng(2).standard_normal((5, 70)).astype("float32")
    back = widen_operands(
        device, precision, round_operands(device, precision, device.upload(values))
    )
    np.testing.assert_array_equal(device.download(back), rounded(values, name))


def test_products_with_a_mask():
    device = HostDevice()
    a, b = np.random.default_rng(3).standard_normal((2, 3, 7)).astype("float32")
    product = multiply_by_mask(device, PRECISIONS["float32"], device.upload(a), device.upload(b))
    np.testing.assert_array_equal(device.download(product), a * b)


@pytest.mark.parametrize("name", ["float32", "tf32"])
@pytest.mark.parametrize("transposed", [True, False])
def test_packed_weights_are_padded_with_zeros_and_made_once(name, transposed):
    device, precision, H, P = HostDevice(), PRECISIONS[name], 5, 3
    cell = LSTM(hidden_size=H, projection_size=P)
    values = np.random.default_rng(4).standard_normal((4 * H, P)).astype("float32")
    stored = {"weight_hh": device.upload(values)}
    weights = direction_weights(device, cell, 2, precision, stored)
    gates = range(1, 3)
    packed = packed_weights(device, weights, precision, "weight_hh", gates, transposed=transposed)
    blocks = rounded(values, name).reshape(4, H, P)[1:3]
    if transposed:
        expected = np.zeros((8, 2, H), "float32")
        expected[:P] = blocks.transpose(2, 0, 1)
    else:
        expected = np.zeros((2, 8, P), "float32")
        expected[:, :H] = blocks
    np.testing.assert_array_equal(device.download(packed).reshape(expected.shape), expected)
    assert (
        packed_weights(device, weights, precision, "weight_hh", gates, transposed=transposed)
        is packed
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(0, 3), (1, 1), (7, 33), (256, 5), (257, 64), (1100, 3)], ids=str
)
def test_column_sums(shape, real, seed):
    device = HostDevice(seed=seed)
    values = np.random.default_rng(1).standard_normal(shape).astype(real)
    sums = device.download(column_sums(device, PRECISIONS[real], device.upload(values)))
    close = 1e-4 if real == "float32" else 1e-12
    assert sums.dtype == real
    np.testing.assert_allclose(sums, values.astype("float64").sum(axis=0), rtol=0, atol=close)
