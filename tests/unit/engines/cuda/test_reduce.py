"""Sums over rows on the device."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host.build import COMPILER
from cuda_host.device import HostDevice

from lstm_cli.engines.cuda.codegen.rows import column_sums
from lstm_cli.engines.cuda.precision import PRECISIONS

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(0, 3), (1, 1), (7, 33), (256, 5), (257, 64), (1100, 3)], ids=str
)
def test_sums(shape, real, seed):
    device = HostDevice(seed=seed)
    values = np.random.default_rng(1).standard_normal(shape).astype(real)
    found = device.download(column_sums(device, PRECISIONS[real], device.upload(values)))
    close = 1e-4 if real == "float32" else 1e-12
    assert found.dtype == real
    np.testing.assert_allclose(found, values.astype("float64").sum(axis=0), rtol=0, atol=close)
