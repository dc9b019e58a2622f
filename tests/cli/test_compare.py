"""``compare`` as a user runs it: differences are shown, and planted errors are named."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from networks import random_weights
from safetensors.numpy import save_file

from lstm_cli.config import Config, from_mapping
from lstm_cli.formats import native, registry
from lstm_cli.formats.gates import NATIVE_GATES, reorder_gates
from lstm_cli.formats.interchange import Export

ORDERS = {
    "lstm": {"iofg": "ONNX order", "igfo": "TF1 and CNTK order", "ifog": "Core ML order"},
    "gru": {"zrn": "ONNX and Keras order"},
}
STACKED = [
    {"type": "lstm", "hidden_size": 6, "bidirectional": True},
    {"type": "gru", "hidden_size": 4},
    {"type": "dense", "units": 3},
]


def net(*layers: dict, input_size: int = 5) -> Config:
    return from_mapping({"model": {"input_size": input_size, "layers": list(layers)}})


def weights(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Distinct float32 weights."""
    wide = random_weights(config.specs, seed)
    return {name: value.astype(np.float32) for name, value in wide.items()}


@pytest.fixture
def compare(lstm, tmp_path) -> Callable:
    """Compare tensors, each side with its config (None: without one)."""

    def run(a, b, config: Config | None, *options: object, other: Config | None = None):
        for name, tensors, one in (("a", a, config), ("b", b, other or config)):
            text = None if one is None else one.to_yaml()
            native.write(tmp_path / f"{name}.safetensors", tensors, text)
        return lstm("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", *options)

    return run


def reordered(tensors, kind: str, order: Sequence[str], names: str = "weight_ih weight_hh bias"):
    """Reorder the gates of the named tensors, and those of peepholes."""
    result = dict(tensors)
    for name, value in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if f"{layer}.weight_hh" not in tensors:
            continue
        if leaf == "peephole":
            result[name] = reorder_gates(value, "ifo", [gate for gate in order if gate != "g"])
        elif any(leaf.startswith(prefix) for prefix in names.split()):
            result[name] = reorder_gates(value, NATIVE_GATES[kind], order)
    return result


def test_equal_files(compare):
    config = net(*STACKED)
    w = weights(config)
    outcome = compare(w, w, config)
    assert outcome.code == 0
    assert "equal: 38 matrices and vectors" in outcome.out
    document = compare(w, w, config, "--json").json
    assert document["equal"]
    assert len(document["blocks"]) == 38


def test_tolerance_is_of_every_element(compare):
    config = net(*STACKED)
    w = weights(config)
    other = {**w, "layers.1.weight_hh": w["layers.1.weight_hh"].copy()}
    other["layers.1.weight_hh"][9, 2] += 0.01
    outcome = compare(w, other, config, "--json")
    assert outcome.code == 1
    differing = [block for block in outcome.json["blocks"] if not block["equal"]]
    assert [(b["layer"], b["gate"], b["matrix"]) for b in differing] == [(1, "n", "U")]
    figures = differing[0]["figures"]
    block = w["layers.1.weight_hh"][8:]
    assert figures["difference"] == pytest.approx(0.01, rel=1e-4)
    assert figures["relative"] == pytest.approx(0.01 / np.abs(block).max(), rel=1e-4)
    assert figures["norm_a"] == pytest.approx(np.linalg.norm(block), rel=1e-6)
    assert figures["norm_b"] != pytest.approx(figures["norm_a"], rel=1e-6)
    moved = other["layers.1.weight_hh"][8:]
    assert figures["correlation"] == pytest.approx(
        np.corrcoef(block.ravel(), moved.ravel())[0, 1], abs=1e-9
    )
    assert outcome.json["diagnosis"]["explained"] == "not"
    assert outcome.json["diagnosis"]["unexplained"] == ["layer 1: U_n"]
    assert compare(w, other, config, "--tolerance", "0.0101").code == 0
    assert compare(w, other, config, "--tolerance", "0.0099").code == 1


@pytest.mark.parametrize(
    ("kind", "features", "options"),
    [
        ("lstm", 5, {}),
        ("lstm", 6, {"bidirectional": True, "peepholes": True}),
        ("gru", 5, {"bidirectional": True}),
        ("gru", 6, {}),
    ],
)
def test_every_order_of_gates_is_named(compare, kind, features, options):
    """All 23 and 5, on D != H and D == H, in one layer of a stack."""
    layers = [{"type": kind, "hidden_size": 6, **options}, {"type": "dense", "units": 3}]
    config = net(*layers, input_size=features)
    native_order = NATIVE_GATES[kind]
    for seed, order in enumerate(itertools.permutations(native_order)):
        if order == native_order:
            continue
        w = weights(config, seed)
        outcome = compare(w, reordered(w, kind, order), config)
        assert outcome.code == 1
        name = ORDERS[kind].get("".join(order), "the order")
        assert f"explained: B is A with gates in {name} {', '.join(order)}" in outcome.out
        assert "not explained" not in outcome.out
        assert outcome.out.count("explained: ") == 1  # nothing else is claimed


@pytest.mark.parametrize(
    ("tensor", "symbol"), [("weight_ih", "W"), ("weight_hh", "U"), ("bias", "b")]
)
def test_an_order_of_one_tensor_only(compare, tensor, symbol):
    config = net({"type": "lstm", "hidden_size": 4}, {"type": "lstm", "hidden_size": 4})
    orders = [order for order in itertools.permutations("ifgo") if order != tuple("ifgo")]
    for seed, order in enumerate(orders):
        w = weights(config, seed)
        other = reordered(w, "lstm", order, tensor)
        other = {k: (other if k.startswith("layers.1") else w)[k] for k in w}
        outcome = compare(w, other, config)
        assert f"explained: {symbol} of B is A's with gates in " in outcome.out
        assert f" {', '.join(order)}" in outcome.out
        assert "(layer 1)" in outcome.out
        assert "not explained" not in outcome.out


def test_native_gates_taken_for_another_order(compare):
    config = net({"type": "lstm", "hidden_size": 4})
    w = weights(config)
    outcome = compare(w, reordered(w, "lstm", "igof"), config)
    assert "the order i, g, o, f, which is what native gates become if" in outcome.out
    assert "taken for ONNX order" in outcome.out


@pytest.mark.parametrize("seed", range(6))
def test_an_order_with_transposed_blocks_and_a_shifted_forget_bias(compare, seed):
    rng = np.random.default_rng(seed)
    config = net({"type": "lstm", "hidden_size": 6, "bidirectional": True}, input_size=6)
    order = tuple(rng.permutation(list("ifgo")))
    w = weights(config, seed)
    other = reordered(w, "lstm", order)
    for name in [name for name in other if name.endswith(("_ih", "_hh"))]:
        blocks = np.split(other[name], 4)
        other[name] = np.concatenate([block.T for block in blocks])
    place = order.index("f")
    more = float(rng.choice([-1, 1]))
    other["layers.0.bias"] = other["layers.0.bias"].copy()
    other["layers.0.bias"][6 * place : 6 * place + 6] += np.float32(more)
    outcome = compare(w, other, config, "--json")
    diagnosis = outcome.json["diagnosis"]
    assert diagnosis["explained"] == "wholly"
    by_kind = {finding["kind"]: finding for finding in diagnosis["findings"]}
    if order != tuple("ifgo"):
        assert by_kind["order"]["order"] == list(order)
        assert by_kind["order"]["where"] == []
    assert by_kind["change"]["matrices"] == ["W", "U"]
    assert "are transposed" in by_kind["change"]["what"]
    assert f"b_f of B is A's shifted by {more:+g}" in by_kind["shift"]["what"]
    assert by_kind["shift"]["where"] == ["layer 0 forward"]
    assert len(diagnosis["findings"]) == 2 + (order != tuple("ifgo"))


def test_equal_gates_get_the_simplest_explanation(compare):
    """Constant weights, as in the ONNX standard's own tests, have no explanation at all."""
    config = net({"type": "lstm", "hidden_size": 4})
    w = {name: np.full_like(value, 0.1) for name, value in weights(config).items()}
    assert compare(w, reordered(w, "lstm", "ogfi"), config).code == 0
    real = weights(config)
    w["layers.0.weight_ih"] = real["layers.0.weight_ih"]
    outcome = compare(w, reordered(w, "lstm", "ifog"), config)
    assert "explained: B is A with gates in Core ML order i, f, o, g" in outcome.out
    w["layers.0.weight_ih"] = np.concatenate(
        [real["layers.0.weight_ih"][:4]] * 3 + [real["layers.0.weight_ih"][4:8]]
    )
    outcome = compare(w, reordered(w, "lstm", "ifog"), config)  # or o first, or second
    assert "Core ML order i, f, o, g" in outcome.out


def test_an_order_that_one_block_does_not_follow(compare):
    config = net({"type": "lstm", "hidden_size": 4})
    w = weights(config)
    other = reordered(w, "lstm", "iofg")
    other["layers.0.weight_hh"] = other["layers.0.weight_hh"].copy()
    other["layers.0.weight_hh"][5, 1] += 0.5
    outcome = compare(w, other, config)
    assert "with gates in ONNX order i, o, f, g, but for U_f" in outcome.out
    assert "not explained: layer 0: U_f" in outcome.out
    assert "explained in part" in outcome.out


@pytest.mark.parametrize("at", [(0, 0), (3, 17), (21, 8), (39, 29)])
def test_a_claim_is_verified_on_every_number(compare, at):
    config = net({"type": "lstm", "hidden_size": 40}, input_size=30)
    w = weights(config)
    other = reordered(w, "lstm", "ofgi")
    other["layers.0.weight_ih"][80 + at[0], at[1]] += 1e-3
    outcome = compare(w, other, config)
    assert "in the order o, f, g, i, but for W_g" in outcome.out
    assert "not explained: layer 0: W_g" in outcome.out


def test_unrelated_weights_have_no_explanation(compare):
    config = net(*STACKED)
    outcome = compare(weights(config, 1), weights(config, 2), config, "--json")
    assert outcome.json["diagnosis"]["explained"] == "not"
    assert not outcome.json["diagnosis"]["findings"]


ROUNDED = {
    "rounded to float16": lambda x: x.astype(np.float16).astype(np.float32),
    "rounded to bfloat16": lambda x: (x.view(np.uint32) & 0xFFFF0000).view(np.float32),
    "rounded to 6 significant digits": lambda x: np.array(
        [float(f"{v:.5e}") for v in x.ravel()], np.float32
    ).reshape(x.shape),
    "rounded to 6 decimals": lambda x: np.array(
        [float(f"{v:.6f}") for v in x.ravel()], np.float32
    ).reshape(x.shape),
    "equal to about 7 digits": lambda x: np.nextafter(x, np.float32(9)),
}


@pytest.mark.parametrize("what", ROUNDED)
def test_fewer_digits(compare, what):
    config = net(*STACKED)
    w = weights(config)
    w["layers.0.bias"][:] = 0.0  # exact in every format
    other = {name: ROUNDED[what](value) for name, value in w.items()}
    outcome = compare(w, other, config)
    assert outcome.code == 1
    assert what in outcome.out
    assert "not explained" not in outcome.out
    assert what in compare(other, w, config).out  # whichever side has them


GRU_BIASES = {
    "summed into b, and b_h is 0": lambda b, h: (b + h, 0 * b),
    "b and b_h hold half each": lambda b, h: ((b + h) / 2, (b + h) / 2),
    "exchanged": lambda b, h: (h, b),
}


@pytest.mark.parametrize("what", GRU_BIASES)
@pytest.mark.parametrize("order", ["rzn", "nzr"])
def test_split_biases_of_a_gru(compare, what, order):
    config = net({"type": "gru", "hidden_size": 4})
    w = weights(config)
    other = dict(w)
    pair = [f"layers.0.bias_{side}" for side in ("ih", "hh")]
    other |= dict(zip(pair, GRU_BIASES[what](*(w[name] for name in pair)), strict=True))
    outcome = compare(w, reordered(other, "gru", order), config)
    assert what in outcome.out
    assert ("with gates in the order n, z, r" in outcome.out) == (order == "nzr")
    assert "not explained" not in outcome.out
    half = {k: v.astype(np.float16).astype(np.float32) for k, v in other.items()}
    outcome = compare(w, reordered(half, "gru", order), config)
    assert what in outcome.out
    assert "B is A rounded to float16" in outcome.out
    assert "not explained" not in outcome.out


def test_exchanged_directions_and_layers(compare):
    both = {"type": "lstm", "hidden_size": 6, "bidirectional": True}
    config = net(both, both, both, input_size=12)
    w = weights(config)
    swapped = dict(w)
    for name in w:
        if name.startswith("layers.1."):
            rest = name.removeprefix("layers.1.")
            other = rest.removeprefix("reverse.") if "reverse" in rest else f"reverse.{rest}"
            swapped[name] = w[f"layers.1.{other}"]
    outcome = compare(w, swapped, config)
    assert "layer 1 forward of B is A's reverse one" in outcome.out
    assert "layer 1 reverse of B is A's forward one" in outcome.out
    assert "not explained" not in outcome.out
    places = {"0": "2", "2": "0", "1": "1"}
    moved = {f"layers.{places[name[7]]}{name[8:]}": value for name, value in w.items()}
    outcome = compare(w, moved, config)
    assert "layer 0 forward of B is layer 2 forward of A" in outcome.out
    assert "not explained" not in outcome.out


def test_known_errors_of_whole_layers(compare):
    config = net({"type": "lstm", "hidden_size": 5})
    w = weights(config)
    W, U = (np.split(w[f"layers.0.{name}"], 4) for name in ("weight_ih", "weight_hh"))
    slots = [*W, *U]
    wrong = {
        "layers.0.weight_ih": np.concatenate(slots[::2]),
        "layers.0.weight_hh": np.concatenate(slots[1::2]),
        "layers.0.bias": w["layers.0.bias"],
    }
    outcome = compare(w, wrong, config)
    assert "as TMVA's elements give them when they are read by their labels" in outcome.out
    assert "--tmva-order slots" in outcome.out


def test_units_in_another_order(compare):
    """A permutation of the units through a whole network, which computes the same function."""
    lstm = {"type": "lstm", "hidden_size": 6}
    config = net(lstm, {**lstm, "peepholes": True}, {"type": "dense", "units": 3})
    w = weights(config)
    moved = dict(w)
    first, second = (np.random.default_rng(seed).permutation(6) for seed in (3, 4))
    for name, value in w.items():
        order = {"0": first, "1": second}.get(name[7])
        if order is not None:
            value = value.reshape(-1, 6, *value.shape[1:])[:, order].reshape(value.shape)
            value = value[:, order] if name.endswith("hh") else value
        if name.startswith(("layers.1.weight_ih", "layers.2.weight")):
            value = value[:, first if name[7] == "1" else second]
        moved[name] = value
    outcome = compare(w, moved, config)
    assert "B is A with its units in another order" in outcome.out
    assert "and its inputs in another" in outcome.out
    assert "W of B has its columns in another order" in outcome.out
    assert "not explained" not in outcome.out


def test_layouts_signs_and_scales(compare):
    config = net({"type": "gru", "hidden_size": 4})
    w = weights(config)
    z = {name: value.copy() for name, value in w.items()}
    for value in z.values():
        value[4:8] *= -1
    assert "z is exchanged with 1 - z" in compare(w, z, config).out
    assert "times 0.5" in compare(w, {k: v / 2 for k, v in w.items()}, config).out
    transposed = {**w, "layers.0.weight_ih": w["layers.0.weight_ih"].T}
    assert "W of B is stored transposed" in compare(w, transposed, None).out
    name = "layers.0.weight_ih"
    reshaped = {**w, name: w[name].T.reshape(w[name].shape)}
    assert "in column order" in compare(w, reshaped, config).out
    interleaved = {**w, name: w[name].reshape(3, 4, 5).swapaxes(0, 1).reshape(12, 5)}
    assert "the gates of one unit next to each other" in compare(w, interleaved, config).out
    zero = {**w, "layers.0.bias_hh": 0 * w["layers.0.bias_hh"]}
    assert "b_h of B is zero" in compare(w, zero, config).out


def test_one_of_two_biases_left_out(compare):
    config = net({"type": "lstm", "hidden_size": 4})
    w = weights(config)
    rng = np.random.default_rng(5)
    parts = {f"layers.0.bias_{s}": rng.standard_normal(16).astype(np.float32) for s in ("ih", "hh")}
    a = {k: v for k, v in w.items() if "bias" not in k} | parts
    whole = {**w, "layers.0.bias": sum(parts.values())}
    assert compare(a, whole, config).code == 0
    short = {**w, "layers.0.bias": parts["layers.0.bias_ih"]}
    assert "b of B is A's bias_ih alone: bias_hh was left out" in compare(a, short, config).out


def test_one_of_a_state_dicts_biases_left_out(lstm, tmp_path):
    config = net({"type": "lstm", "hidden_size": 4})
    w = weights(config)
    rng = np.random.default_rng(6)
    halves = {s: rng.standard_normal(16).astype(np.float32) for s in ("bias_ih", "bias_hh")}
    matrices = {name.rpartition(".")[2]: v for name, v in w.items() if "bias" not in name}
    state = {f"rnn.{stem}_l0": v for stem, v in {**matrices, **halves}.items()}
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state, a, {"format": "pt"})
    for bias, code, message in (
        (halves["bias_ih"] + halves["bias_hh"], 0, "equal"),
        (halves["bias_hh"], 1, "b of B is A's bias_hh alone: bias_ih was left out"),
    ):
        native.write(b, {**w, "layers.0.bias": bias}, config.to_yaml())
        outcome = lstm("compare", a, b)
        assert outcome.code == code
        assert message in outcome.out


def test_layers_and_options_that_differ(compare):
    layers = [{"type": "lstm", "hidden_size": 4}, {"type": "dropout", "rate": 0.5}]
    a = net(*layers, {"type": "gru", "hidden_size": 3}, {"type": "dense", "units": 2})
    w = weights(a)
    # Dropout does not shift the pairing, and changes no output.
    moved = {
        k.replace("layers.2", "layers.1").replace("layers.3", "layers.2"): v for k, v in w.items()
    }
    b = net(
        {"type": "lstm", "hidden_size": 4},
        {"type": "gru", "hidden_size": 3},
        {"type": "dense", "units": 2},
    )
    assert compare(w, moved, a, other=b).code == 0
    hard = {
        "type": "lstm",
        "hidden_size": 4,
        "recurrent_activation": "hard_sigmoid",
        "dropout": 0.1,
    }
    b = net(
        hard, {"type": "gru", "hidden_size": 3, "reset_after": False}, {"type": "dense", "units": 2}
    )
    outcome = compare(w, moved, a, other=b)
    assert outcome.code == 1
    assert "differs: layer 0: recurrent_activation sigmoid in A, hard_sigmoid in B" in outcome.out
    assert "differs: layer 2: reset_after true in A, false in B" in outcome.out
    assert "note: layer 0: dropout 0 in A, 0.1 in B; it changes no output" in outcome.out
    b = net({"type": "lstm", "hidden_size": 6}, {"type": "rnn", "hidden_size": 3})
    outcome = compare(w, weights(b), a, other=b)
    assert outcome.code == 1
    assert "differs: A has 3 layers with weights, B has 2" in outcome.out
    assert "differs: layer 0: lstm 5 → 4 in A; lstm 5 → 6 in B" in outcome.out
    assert "differs: layer 2: gru 4 → 3 in A; rnn 6 → 3 in B (its layer 1)" in outcome.out
    assert re.search(r"i +W +\(4, 5\) +\(6, 5\)\n", outcome.out)


@pytest.mark.parametrize("exchanged", [False, True])
def test_no_biases_compared_with_biases_of_zero(compare, exchanged):
    """Biases of 0 are explained, since both compute the same; other biases are not."""
    a = net(*STACKED)
    b = net(*({**layer, "bias": False} for layer in STACKED))
    w = {name: value * ("bias" not in name) for name, value in weights(a).items()}
    no_bias = {name: value for name, value in w.items() if "bias" not in name}
    sides = (no_bias, w, b, a) if exchanged else (w, no_bias, a, b)
    has, lacks = "BA" if exchanged else "AB"

    def run(a, b, config, other):
        return compare(a, b, config, other=other)

    outcome = run(*sides)
    assert outcome.code == 1
    explained = f"explained: {lacks} has no biases where {has}'s are 0: both compute the same"
    assert f"{explained}\n" in outcome.out
    assert "not explained" not in outcome.out
    assert f"lstm 5 → 12, both directions, no biases in {lacks}" in outcome.out
    values = ("false", "true") if exchanged else ("true", "false")
    assert "differs: layer 1: bias {} in A, {} in B".format(*values) in outcome.out
    w["layers.0.reverse.bias"] = w["layers.0.reverse.bias"] + np.float32(0.5)
    outcome = run(*sides)
    assert f"{explained} (layer 0 forward, layer 1, layer 2)" in outcome.out
    assert "not explained: layer 0 reverse: b" in outcome.out
    assert compare(no_bias, no_bias, b).code == 0


def test_an_option_that_a_file_does_not_state_is_no_difference(lstm, tmp_path):
    relu = {"hidden_size": 4, "activation": "relu", "recurrent_activation": "softsign"}
    layers = [{"type": "lstm", "hidden_size": 4}, {"type": "lstm", **relu}]
    config = net(*layers, {"type": "gru", "hidden_size": 3, "return_sequences": False})
    w = weights(config)
    a, b = tmp_path / "a.safetensors", tmp_path / "b.weights.h5"
    native.write(a, w, config.to_yaml())
    registry.write(b, "keras", Export("net", 5, None, config.specs, w, config.to_yaml()))
    outcome = lstm("compare", a, b)
    assert outcome.code == 0
    assert "note: layer 1: activation relu in A, tanh in B; B does not say" in outcome.out
    assert "note: layer 1: recurrent_activation softsign in A" in outcome.out
    assert "note: layer 2: return_sequences false in A, true in B" in outcome.out
    (tmp_path / "net.yaml").write_text(config.to_yaml())
    outcome = lstm("compare", a, b, "--config", tmp_path / "net.yaml")
    assert outcome.code == 0
    assert "layer 1: activation" not in outcome.out


def test_unreadable_files_and_values(compare, lstm, tmp_path):
    config = net({"type": "lstm", "hidden_size": 4})
    w = weights(config)
    odd = {**w, "layers.0.bias": w["layers.0.bias"].copy()}
    odd["layers.0.bias"][3] = np.nan
    outcome = compare(w, odd, config, "--json")
    assert outcome.code == 1
    assert outcome.json["diagnosis"]["unexplained"] == ["layer 0: b_i"]
    assert compare(odd, odd, config).code == 0
    assert compare(w, {**w, "extra": w["layers.0.bias"]}, config).code == 1
    assert lstm("compare", tmp_path / "a.safetensors", tmp_path / "none.onnx").code == 4
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    assert lstm("compare", tmp_path / "bad.safetensors", tmp_path / "a.safetensors").code == 4


def test_data_show_the_first_difference(compare, data):
    config = net(*STACKED)
    w = weights(config)
    other = {**w, "layers.0.reverse.weight_hh": w["layers.0.reverse.weight_hh"].copy()}
    other["layers.0.reverse.weight_hh"][7, 2] += 0.2  # f reads it from its second step on
    outcome = compare(w, other, config, "--data", data)
    first = "the networks first differ at layer 0 reverse, gate f, step 2 (sequence 0)"
    assert first in outcome.out
    assert "the networks' outputs differ by up to" in outcome.out
    divergence = compare(w, other, config, "--data", data, "--json").json["divergence"]
    parts = {(p["layer"], p["direction"], p["value"]): p for p in divergence["parts"]}
    assert parts[0, "forward", "c"]["largest"] == 0
    assert parts[0, "reverse", "f"]["turn"] == 1
    assert parts[2, "", "output"]["largest"] == divergence["outputs"]["largest"] > 0
    assert divergence["sequences"] == 7
    assert "no value differs by more than 1e-06" in compare(w, w, config, "--data", data).out


def test_data_need_a_config(compare, data, tmp_path):
    config = net(*STACKED)
    w = weights(config)
    outcome = compare(w, w, None, "--data", data)
    assert outcome.code == 4
    assert "--config" in outcome.err
    (tmp_path / "net.yaml").write_text(config.to_yaml())
    outcome = compare(w, w, None, "--data", data, "--config", tmp_path / "net.yaml")
    assert outcome.code == 0
    narrow = net({"type": "lstm", "hidden_size": 3}, input_size=4)
    assert compare(weights(narrow), weights(narrow), narrow, "--data", data).code == 3


def test_width_and_quiet(compare, monkeypatch):
    config = net(*STACKED)
    wide = net(
        {"type": "lstm", "hidden_size": 6, "bidirectional": True}, {"type": "gru", "hidden_size": 5}
    )
    outcome = compare(weights(config, 1), weights(wide, 2), config, "--quiet", other=wide)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = compare(weights(config, 1), weights(wide, 2), config, "--quiet", other=wide)
    for shown, width in ((outcome, 100), (narrow, 80)):
        tables = [
            line for line in shown.out.splitlines() if line[:1] not in "AB" and ":" not in line
        ]
        assert max(map(len, tables)) <= width
        assert "…" not in shown.out.partition("layer")[2]
        assert not shown.err


def test_hint_for_a_path_that_is_no_file(lstm, tmp_path: Path):
    outcome = lstm("compare", tmp_path, tmp_path)
    assert outcome.code == 4
