"""Our LSTM in the forward test of TMVA, with its sizes, error measure and bound.

TMVA stores W_i (S, I) and computes s W^T; here the equations are written out once more, for a
batch, with a matrix a gate, as that test does.
"""

from __future__ import annotations

import numpy as np
import pytest
from networks import Array, random_inputs, random_weights, recurrent

from lstm_cli.engines.protocols import Engine
from lstm_cli.network.network import Network

CASES = [(1, 2, 3, 2), (2, 4, 10, 5), (5, 8, 5, 10)]  # steps T, batch B, state S, input I


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def recomputed(x: Array, weights: dict[str, Array], S: int) -> Array:
    """All outputs (B, T, S) from eight matrices and four biases."""
    W_i, W_f, W_c, W_o = (weights["layers.0.weight_ih"][k * S : (k + 1) * S] for k in range(4))
    U_i, U_f, U_c, U_o = (weights["layers.0.weight_hh"][k * S : (k + 1) * S] for k in range(4))
    b_i, b_f, b_c, b_o = (weights["layers.0.bias"][k * S : (k + 1) * S] for k in range(4))
    B, T, _ = x.shape
    state, cell = np.zeros((B, S)), np.zeros((B, S))
    outputs = np.zeros((B, T, S))
    for t in range(T):
        s = x[:, t]
        input_gate = sigmoid(s @ W_i.T + state @ U_i.T + b_i)
        forget_gate = sigmoid(s @ W_f.T + state @ U_f.T + b_f)
        candidate = np.tanh(s @ W_c.T + state @ U_c.T + b_c)
        output_gate = sigmoid(s @ W_o.T + state @ U_o.T + b_o)
        cell = input_gate * candidate + forget_gate * cell
        state = output_gate * np.tanh(cell)
        outputs[:, t] = state
    return outputs


@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: tuple[int, int, int, int], sequences: bool, engine: Engine) -> None:
    T, B, S, features = case
    spec = recurrent("lstm", S, features, return_sequences=sequences)
    weights, x = random_weights([spec], seed=T), random_inputs(B, T, features, seed=T)
    expected = recomputed(x, weights, S)
    found = Network([spec], weights, engine).run(x).outputs
    expected = expected if sequences else expected[:, -1]
    assert found.shape == expected.shape
    error = np.abs(found - expected) / (np.abs(found) + np.abs(expected))
    assert error.max() < 1e-5
