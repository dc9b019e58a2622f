"""Engines that this suite runs on. An unusable engine is skipped with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network, random_inputs, random_weights, recurrent
from twin import twin

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.selection import EngineStatus, create_engine, engine_statuses


@pytest.mark.parametrize("status", engine_statuses(), ids=lambda status: status.engine)
def test_engine(status: EngineStatus) -> None:
    if not status.usable:
        pytest.skip(f"the {status.engine} engine: {status.detail}")
    assert "float32" in status.dtypes
    engine = create_engine(status.engine, status.device)
    assert (engine.name, engine.dtype) == (status.engine, "float32")
    specs, x = [recurrent("lstm", 5, 3, directions=2)], random_inputs(2, 4, 3)
    actual = network(specs, engine).run(x).outputs
    np.testing.assert_allclose(actual, twin(specs, random_weights(specs), x).outputs, atol=2e-5)


def test_the_fixture_has_the_dtype_of_its_name(engine: Engine) -> None:
    assert engine.dtype in ("float32", "float64")
    assert network([recurrent("rnn", 2, 3)], engine).weights["layers.0.bias"].dtype == engine.dtype
