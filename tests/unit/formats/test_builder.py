"""The builder of a native network: gate orders, sources, directions, biases, defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstm_cli.formats.builder import (
    NativeTensor,
    NetworkBuilder,
    add_biases,
    direction_without_bias,
    gate_tensor,
    join_directions,
    stack_gates,
    whole_tensor,
)

H, D = 3, 2
RNG = np.random.default_rng(4)


def values(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def direction(*, biased=True):
    tensors = {"weight_ih": values(4 * H, D), "weight_hh": values(4 * H, H)}
    tensors |= {"bias": values(4 * H)} if biased else {}
    return {name: whole_tensor(name, array, "float32") for name, array in tensors.items()}


def test_gates_get_the_native_order_and_keep_their_places():
    kernel = values(D, 3 * H)  # z, r, n on the second axis
    tensor = gate_tensor("gru", ("z", "r", "n"), "kernel", kernel, "float16", transposed=True)
    z, r, n = np.split(kernel.T, 3)
    assert np.array_equal(tensor.values, np.concatenate([r, z, n]))
    places = {source.block: source.part for source in tensor.sources}
    assert places == {"z": "[:, 0:3]", "r": "[:, 3:6]", "n": "[:, 6:9]"}
    assert {(s.dtype, s.shape, s.change) for s in tensor.sources} == {
        ("float16", (D, 3 * H), "transposed")
    }


def test_a_row_of_two_biases_is_one_tensor():
    both = values(2, 3 * H)
    tensor = gate_tensor("gru", ("r", "z", "n"), "bias", both, "float32", row=1)
    assert np.array_equal(tensor.values, both[1])
    assert [source.part for source in tensor.sources] == ["[1, 0:3]", "[1, 3:6]", "[1, 6:9]"]


def test_separate_gates_are_stacked_in_native_order():
    blocks = {x: whole_tensor(x.upper(), values(H, D), "float32") for x in "ogfi"}
    tensor = stack_gates("lstm", blocks)
    assert np.array_equal(tensor.values, np.concatenate([blocks[x].values for x in "ifgo"]))
    assert [(source.name, source.block) for source in tensor.sources] == [
        ("I", "i"), ("F", "f"), ("G", "g"), ("O", "o"),
    ]  # fmt: skip


def test_two_biases_are_added_and_kept():
    first, second = (
        gate_tensor("rnn", ("h",), name, np.float32([x]), "float32")
        for name, x in (("b", 1.0), ("c", 2**-24 * 1.5))
    )
    builder = NetworkBuilder(D)
    rest = {"weight_ih": NativeTensor(values(1, D)), "weight_hh": NativeTensor(values(1, 1))}
    builder.add("rnn", {**rest, "bias": add_biases(first, second)})
    assert builder.tensors["layers.0.bias"] == np.float32(1 + 2**-23)
    assert builder.split_biases["layers.0.bias_ih"] == 1
    assert builder.split_biases["layers.0.bias_hh"] == np.float32(2**-24 * 1.5)
    assert {(s.name, s.native, s.change) for s in builder.sources} == {
        ("b", "layers.0.bias", "added to c"),
        ("c", "layers.0.bias", "added to b"),
    }


@pytest.mark.parametrize("biased", [(True, False), (False, True)])
def test_a_direction_without_biases_gets_zeros(biased):
    directions = [direction(biased=one) for one in biased]
    joined = join_directions("lstm", directions)
    assert direction_without_bias(directions) == ("reverse" if biased[0] else "forward")
    zero = joined["reverse.bias" if biased[0] else "bias"].values
    assert np.array_equal(zero, np.zeros(4 * H))
    assert zero.dtype == np.float32


def test_sizes_are_those_of_the_tensors_and_defaults_are_left_out():
    builder = NetworkBuilder(D, steps=5)
    tensors = join_directions("lstm", [direction(biased=False), direction(biased=False)])
    builder.add("lstm", tensors, activation="tanh", stateful=False, dropout=0.0, clip=2.0)
    assert (builder.size, builder.has_steps) == (2 * H, True)
    builder.add("flatten")
    assert (builder.size, builder.has_steps) == (2 * H * 5, False)
    builder.add("dense", {"weight": NativeTensor(values(7, 30))}, activation="tanh")
    imported = builder.finish(Path("w"), "keras", "Keras", "", {}, describes_layers=True)
    assert imported.config == {
        "model": {
            "input_size": D,
            "steps": 5,
            "layers": [
                {"type": "lstm", "hidden_size": H, "bidirectional": True, "bias": False, "clip": 2},
                {"type": "flatten"},
                {"type": "dense", "units": 7, "bias": False, "activation": "tanh"},
            ],
        }
    }
    assert {source.native for source in imported.sources} == {
        f"layers.0.{prefix}weight_{x}" for prefix in ("", "reverse.") for x in ("ih", "hh")
    }
