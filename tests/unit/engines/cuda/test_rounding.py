"""Operands of products on the device: rounded, widened, packed."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host.build import COMPILER
from cuda_host.device import HostDevice
from rounded_reference import round_operands as expected

from lstm_cli.cells import LSTM
from lstm_cli.engines.cuda.codegen.layout import multiply_by_mask, round_operands, widen_operands
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
    np.testing.assert_array_equal(device.download(back), expected(values, name))


def test_products_with_a_mask():
    device = HostDevice()
    a, b = np.random.default_rng(3).standard_normal((2, 3, 7)).astype("float32")
    found = multiply_by_mask(device, PRECISIONS["float32"], device.upload(a), device.upload(b))
    np.testing.assert_array_equal(device.download(found), a * b)


@pytest.mark.parametrize("name", ["float32", "tf32"])
@pytest.mark.parametrize("transposed", [True, False])
def test_packed_weights_are_padded_with_zeros_and_made_once(name, transposed):
    device, precision, H, P = HostDevice(), PRECISIONS[name], 5, 3
    cell = LSTM(hidden_size=H, projection_size=P)
    values = np.random.default_rng(4).standard_normal((4 * H, P)).astype("float32")
    real = {"weight_hh": device.upload(values)}
    tensors = direction_weights(device, cell, 2, precision, real)
    gates = range(1, 3)
    found = packed_weights(device, tensors, precision, "weight_hh", gates, transposed=transposed)
    blocks = expected(values, name).reshape(4, H, P)[1:3]
    if transposed:
        wanted = np.zeros((8, 2, H), "float32")
        wanted[:P] = blocks.transpose(2, 0, 1)
    else:
        wanted = np.zeros((2, 8, P), "float32")
        wanted[:, :H] = blocks
    np.testing.assert_array_equal(device.download(found).reshape(wanted.shape), wanted)
    assert (
        packed_weights(device, tensors, precision, "weight_hh", gates, transposed=transposed)
        is found
    )
