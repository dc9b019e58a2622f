"""Keras weights without a model: whose they are, in which order, with which defaults."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import keras_files as kf
import numpy as np
import pytest
from codec_cases import imported_outputs
from networks import random_inputs

from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.keras.options import DEFAULTS, find_release
from lstm_cli.network.network import Network

N, T, D, H = 2, 5, 4, 3
WAYS = ("forward", "backward")
CELLS = ["LSTM", "GRU", "SimpleRNN"]
TYPES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}


def config_of(*layers: dict[str, Any], input_size: int = D) -> dict[str, Any]:
    return {"model": {"input_size": input_size, "layers": list(layers)}}


def read(path: Path, config: dict[str, Any] | None = None) -> Imported:
    layers = None if config is None else from_mapping(config).specs
    return registry.read(path, ReadOptions(layers=layers))


def refused(path: Path, config: dict[str, Any] | None = None) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read(path, config)
    assert str(path) in str(caught.value)
    return caught.value


def settings(notes: Any) -> list[str]:
    """Settings that the notes propose."""
    words = " ".join(notes).replace(";", " ").split()
    return [after for word, after in pairwise(words) if word == "--set"]


NAMES = {
    "Keras 2.2": ("bi_1/forward_{}_1", "bi_1/backward_{}_1"),
    "TensorFlow": ("bi_1/forward_{0}/{0}_cell", "bi_1/backward_{0}/{0}_cell_1"),
    "backward_layer": ("net/bi_1/forward_mine/{}_cell", "net/bi_1/backward_forward_x/{}_cell"),
    "no scope": ("forward_{}", "backward_{}"),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("first", ["forward", "backward"])
@pytest.mark.parametrize("kind", CELLS)
def test_directions_are_found_by_their_names(
    kind: str, first: str, case: str, tmp_path: Path
) -> None:
    """Keras lists the frozen half last, whichever it is."""
    rng, x = np.random.default_rng(1), random_inputs(N, T, D)
    halves = [kf.drawn(kind, D, H, rng) for _ in range(2)]
    names = [name.format(kind.lower()) for name in NAMES[case]]
    both = [kf.cell_names(name, half) for name, half in zip(names, halves, strict=True)]
    listed = both if first == "forward" else both[::-1]
    path = kf.legacy(tmp_path / "w.h5", {"bi_1": listed[0] | listed[1]})
    y = [kf.recurrence(kind, x, w, kf.sigmoid, back=k == 1) for k, w in enumerate(halves)]
    np.testing.assert_allclose(
        imported_outputs(read(path), x), np.concatenate(y, axis=2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", CELLS)
def test_halves_of_which_one_has_a_bias(kind: str, tmp_path: Path) -> None:
    rng, x = np.random.default_rng(1), random_inputs(N, T, D)
    halves = [kf.drawn(kind, D, H, rng, two=kind == "GRU") for _ in range(2)]
    halves[1][2] = np.zeros_like(halves[1][2])
    names = [kf.cell_names(f"b/{half}_r", w) for half, w in zip(WAYS, halves, strict=True)]
    del names[1]["b/backward_r/bias:0"]
    imported = read(kf.legacy(tmp_path / "w.h5", {"b": names[1] | names[0]}))
    y = [kf.recurrence(kind, x, w, kf.sigmoid, back=k == 1) for k, w in enumerate(halves)]
    np.testing.assert_allclose(
        imported_outputs(imported, x), np.concatenate(y, axis=2), rtol=0, atol=1e-12
    )


def test_one_direction_alone(tmp_path: Path) -> None:
    half = kf.cell_names("bi/backward_lstm", kf.drawn("LSTM", D, H, np.random.default_rng(0)))
    error = refused(kf.legacy(tmp_path / "w.h5", {"bi": half}))
    assert "bi has only one direction" in str(error)
    named = {name.replace("bi/", ""): value for name, value in half.items()}
    imported = read(kf.legacy(tmp_path / "v.h5", {"backward_lstm": named}))  # a name of the user's
    assert imported.config["model"]["layers"] == [{"type": "lstm", "hidden_size": H}]


def nested(path: Path, *kinds: str, width: int = D, last: int | None = None, **how: Any) -> Any:
    """A model in the model, whose last layer is listed first."""
    rng = np.random.default_rng(3)
    parts, weights = [], []
    for k, kind in enumerate(kinds):
        units = last if k == len(kinds) - 1 and last is not None else width
        if kind == "Dense":
            weights.append([0.6 * rng.standard_normal(s) for s in ((width, units), (units,))])
            roles = ("kernel:0", "bias:0")
            names = {f"dense_{k}/{r}": w for r, w in zip(roles, weights[-1], strict=True)}
        else:
            weights.append(kf.drawn(kind, width, units, rng))
            names = kf.cell_names(f"{kind.lower()}_{k}", weights[-1])
        parts.append(names)
    listed = {name: value for part in parts[::-1] for name, value in part.items()}
    kf.legacy(path, {"sequential_1": listed}, **how)
    return weights


def computed(kinds: Any, weights: Any, x: Any) -> Any:
    for kind, w in zip(kinds, weights, strict=True):
        x = x @ w[0] + w[1] if kind == "Dense" else kf.recurrence(kind, x, w, kf.sigmoid)
    return x


@pytest.mark.parametrize("kinds", [("LSTM", "Dense"), ("GRU", "LSTM"), ("Dense", "SimpleRNN")])
def test_a_list_without_an_order(kinds: tuple[str, str], tmp_path: Path) -> None:
    """A model in the model lists what is frozen last: sizes tell the order, or a config does."""
    path, x = tmp_path / "w.h5", random_inputs(N, T, D)
    weights = nested(path, *kinds)
    error = refused(path)
    assert "several fit" in str(error)
    assert "model.save('model.keras')" in error.hints[0]
    assert "--weights FILE" in error.hints[0]
    layers = [
        {"type": "dense", "units": D}
        if kind == "Dense"
        else {"type": TYPES[kind], "hidden_size": D, "reset_after": False}
        if kind == "GRU"
        else {"type": TYPES[kind], "hidden_size": D}
        for kind in kinds
    ]
    imported = read(path, config_of(*layers))
    expected = computed(kinds, weights, x)
    np.testing.assert_allclose(
        imported_outputs(imported, x, config_of(*layers)), expected, atol=1e-12
    )
    assert "sequential_1 is read as a nested model" in "".join(imported.notes)

    weights = nested(path, *kinds, last=D + 1)  # only one order fits
    np.testing.assert_allclose(
        imported_outputs(read(path), x), computed(kinds, weights, x), atol=1e-12
    )


def test_equal_layers_without_numbers(tmp_path: Path) -> None:
    """Numbers count what was made, and the list ends with what was frozen."""
    path = tmp_path / "w.h5"
    nested(path, "LSTM", "LSTM")
    error = refused(path)
    assert "--weights" not in error.hints[0]  # it would not help:
    error = refused(path, config_of(*[{"type": "lstm", "hidden_size": D}] * 2))
    assert "lstm_1 and lstm_0 are alike" in str(error)
    assert "model.save('model.keras')" in error.hints[0]


@pytest.mark.parametrize(
    ("scope", "numbered"), [("net/", False), ("sequential_3/", True), ("", True)]
)
def test_a_model_of_ones_own_class_lists_what_it_made(
    scope: str, numbered: bool, tmp_path: Path
) -> None:
    """Keras puts the name of such a model before the names of its layers."""
    rng, x = np.random.default_rng(5), random_inputs(N, T, D)
    weights = [kf.drawn("LSTM", D, D, rng) for _ in range(2)]
    groups = {f"lstm_{k}": kf.cell_names(f"{scope}lstm_{k}/cell", weights[k]) for k in range(2)}
    path = kf.legacy(tmp_path / "w.h5", groups)
    if not numbered:
        assert "several fit: lstm_0 -> lstm_1; lstm_1 -> lstm_0" in str(refused(path))
        return
    np.testing.assert_allclose(
        imported_outputs(read(path), x), computed(("LSTM", "LSTM"), weights, x), rtol=0, atol=1e-12
    )


def test_a_config_of_other_layers(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    nested(path, "LSTM", "Dense")
    error = refused(
        path, config_of({"type": "gru", "hidden_size": D}, {"type": "dense", "units": D})
    )
    assert "expected gru 4 -> 4, dense 4 -> 4" in str(error)
    assert "lstm_0 (lstm 4 -> 4)" in str(error)
    config = config_of({"type": "lstm", "hidden_size": D}, {"type": "dense", "units": D})
    read(path, config)  # as the hint says


def test_a_config_of_the_other_gru(tmp_path: Path) -> None:
    """One bias is that of reset_after: false: not the config's default."""
    rng, x = np.random.default_rng(5), random_inputs(N, T, D)
    weights = kf.drawn("GRU", D, H, rng)
    path = kf.legacy(tmp_path / "w.h5", {"gru": kf.cell_names("gru", weights)})
    config = config_of({"type": "gru", "hidden_size": H})
    error = refused(path, config)
    assert "reset_after: false, layer 0 of the config has reset_after: true" in str(error)
    specs = from_mapping(config, settings(error.hints)).specs
    imported = registry.read(path, ReadOptions(layers=specs))
    found = Network(specs, imported.tensors, ReferenceEngine(dtype="float64")).run(x).outputs
    np.testing.assert_allclose(found, kf.recurrence("GRU", x, weights, kf.sigmoid), atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "net"])
def test_names_that_a_model_has_twice(name: str, tmp_path: Path) -> None:
    """A model named like its layer; and names that tell no layer, which are refused."""
    rng, x = np.random.default_rng(6), random_inputs(N, T, D)
    lstm, kernel = kf.drawn("LSTM", D, D, rng), rng.standard_normal((D, D))
    inner = [
        kf.entry("LSTM", "lstm", units=D, return_sequences=True, recurrent_activation="sigmoid",
                 batch_input_shape=[None, None, D]),
        kf.entry("Dense", "dense", units=D, use_bias=False),
    ]  # fmt: skip
    model = {
        "class_name": "Sequential",
        "config": [{"class_name": "Sequential", "config": {"name": name, "layers": inner}}],
    }
    listed = {f"{name}/dense/kernel:0": kernel, **kf.cell_names(f"{name}/lstm", lstm)}
    imported = read(kf.legacy(tmp_path / "w.h5", {name: listed}, model))
    expected = kf.recurrence("LSTM", x, lstm, kf.sigmoid) @ kernel
    np.testing.assert_allclose(imported_outputs(imported, x), expected, rtol=0, atol=1e-12)
    listed = {f"a/{k}" if "dense" in k else f"b/{k}": v for k, v in listed.items()}
    listed = {n.replace("/lstm", "").replace("/dense", ""): v for n, v in listed.items()}
    listed = {n.replace("lstm", "x"): v for n, v in listed.items()}
    error = refused(kf.legacy(tmp_path / "v.h5", {name: listed}, model))
    assert "which kernel belongs to the layer lstm" in str(error)


def test_a_wrapper_in_a_model(tmp_path: Path) -> None:
    """Keras 2 names variables of a TimeDistributed by the wrapper, and counts a model's making."""
    rng, x = np.random.default_rng(6), random_inputs(N, T, D)
    W, V = (rng.standard_normal((D, D)) for _ in range(2))
    lstm = kf.drawn("LSTM", D, D, rng)
    inner = [
        kf.entry("LSTM", "l", units=D, return_sequences=True, recurrent_activation="sigmoid"),
        kf.entry("TimeDistributed", "td",
                 layer=kf.entry("Dense", "dense_9", units=D, use_bias=False)),
        kf.entry("Dense", "dense_8", units=D, use_bias=False),
    ]  # fmt: skip
    layers = [
        kf.entry("InputLayer", "in", batch_input_shape=[None, None, D]) | {"inbound_nodes": []},
        {"class_name": "Sequential", "config": {"name": "s", "layers": inner}}
        | {"inbound_nodes": [[["in", 0, 0, {}]]]},
        kf.entry("Activation", "act", activation="relu") | {"inbound_nodes": [[["s", 1, 0, {}]]]},
    ]
    for layer in layers:
        layer["name"] = layer["config"]["name"]
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["act", 0, 0]]}
    model = {"class_name": "Functional", "config": {"name": "m", "layers": layers} | ends}
    listed = {"dense_8/kernel:0": V, "td/kernel:0": W, **kf.cell_names("l/lstm_cell", lstm)}
    path = kf.legacy(tmp_path / "w.h5", {"in": {}, "s": listed, "act": {}}, model)
    expected = np.maximum(kf.recurrence("LSTM", x, lstm, kf.sigmoid) @ W @ V, 0)
    np.testing.assert_allclose(imported_outputs(read(path), x), expected, rtol=0, atol=1e-12)


CUDNN = {"LSTM": ("cu_dnnlstm_1", {}), "GRU": ("gru_7", {"reset_after": True})}


@pytest.mark.parametrize("form", ["weights", "model", "bidirectional", "described", "today"])
@pytest.mark.parametrize("kind", CUDNN)
def test_layout_of_cudnn(kind: str, form: str, tmp_path: Path) -> None:
    """A layer of cuDNN is named at any position; Keras converts it to a plain layer."""
    name, options = CUDNN[kind]
    rng, x, gates = np.random.default_rng(2), random_inputs(N, T, D), kf.GATES[kind]
    W, U, b = (rng.standard_normal(s) for s in ((D, gates * H), (H, gates * H), 2 * gates * H))
    path, weights = tmp_path / "w.h5", kf.cell_names(name, [W, U, b])
    entry = kf.entry(
        kind, name, units=H, return_sequences=True, batch_input_shape=[None, None, D],
        recurrent_activation="sigmoid", **options,
    )  # fmt: skip
    model: Any = {"class_name": "Sequential", "config": [entry]}
    if form == "weights":
        kf.legacy(path, {name: weights})
    elif form == "described":  # the class says it
        named = {"class_name": f"CuDNN{kind}", "config": entry["config"]}
        kf.legacy(path, {name: weights}, {"class_name": "Sequential", "config": [named]})
    elif form == "model":  # the class does not
        kf.legacy(path, {name: weights}, model)
    elif form == "bidirectional":
        halves = [kf.cell_names(f"bi/{d}_{name}", [W, U, b]) for d in ("forward", "backward")]
        kf.legacy(path, {"bi": halves[1] | halves[0]})
    else:
        with h5py.File(path, "w") as file:
            for k, value in enumerate((W, U, b)):
                file[f"layers/cu_dnn{kind.lower()}/vars/{k}"] = value
    error = refused(path)
    assert "cuDNN's layout" in str(error)
    assert f"CuDNN{kind}" in str(error)
    assert f"{kind}(units, recurrent_activation='sigmoid'" in error.hints[0]
    if form == "model":  # what Keras 2 makes of the same weights, when it follows the hint
        W = np.hstack([m.T.reshape(m.shape, order="F") for m in np.split(W, gates, 1)])
        U = np.hstack([m.T for m in np.split(U, gates, 1)])
        biases = b.reshape(2, -1)
        plain = [W, U, biases.sum(0) if kind == "LSTM" else biases]
        kf.legacy(path, {name: kf.cell_names(name, plain)}, model)
        np.testing.assert_allclose(
            imported_outputs(read(path), x),
            kf.recurrence(kind, x, plain, kf.sigmoid),
            rtol=0,
            atol=1e-12,
        )


VERSIONS = {
    "2.0.9": (True, False),
    "2.1.6-tf": (True, False),
    "2.2.4": (True, False),
    "2.2.5": (True, False),
    "2.3.1": (False, False),
    "2.3.0-tf": (False, True),
    "2.4.0": (False, True),
    "2.15.0": (False, True),
    "3.4.1": (False, True),
}
"""Keras: hard_sigmoid for gates, reset_after, where nothing is said."""


@pytest.mark.parametrize("version", [*VERSIONS, "2.2.4-tf", None])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "weights"])
def test_defaults_by_version(version: str | None, whole: bool, tmp_path: Path) -> None:
    """Options left out, against Keras's equations; the notes' settings give the others."""
    rng, x = np.random.default_rng(9), random_inputs(N, T, D)
    W, U, b = kf.drawn("LSTM", D, H, rng)
    V, R, _ = kf.drawn("GRU", H, H, rng)
    layers = {"a": kf.cell_names("a", [W, U, b]), "g": {"g/kernel:0": V, "g/recurrent_kernel:0": R}}
    first = kf.entry("LSTM", "a", units=H, return_sequences=True, batch_input_shape=[None, None, D])
    entries = [first, kf.entry("GRU", "g", units=H, return_sequences=True, use_bias=False)]
    model = {"class_name": "Sequential", "config": {"name": "s", "layers": entries}}
    path = kf.legacy(tmp_path / "w.h5", layers, model if whole else None, version)
    imported = read(path)

    def expected(hard: bool, after: bool) -> Any:
        gate = kf.hard_sigmoid if hard else kf.sigmoid
        bias = np.zeros((2, 3 * H) if after else 3 * H)
        return kf.recurrence("GRU", kf.recurrence("LSTM", x, [W, U, b], gate), [V, R, bias], gate)

    hard, after = VERSIONS.get(version or "", (False, True))
    np.testing.assert_allclose(
        imported_outputs(imported, x), expected(hard, after), rtol=0, atol=1e-12
    )
    notes = [note for note in imported.notes if "does not state" in note and "outputs" not in note]
    others = [text for text in settings(notes) if "return_sequences" not in text]
    other_gate = "sigmoid" if hard else "hard_sigmoid"
    reset = [f"model.layers.1.reset_after={str(not after).lower()}"]
    gates = [f"model.layers.{k}.recurrent_activation={other_gate}" for k in (0, 1)]
    told = version not in (None, "2.2.4-tf") and not hard and not whole
    assert others == (reset if told else gates + reset)
    if not told:
        found = imported_outputs(imported, x, overrides=others)
        np.testing.assert_allclose(found, expected(not hard, not after), rtol=0, atol=1e-12)
    said = {None: "nor a version", "2.2.4-tf": "TensorFlow 1.13 to 1.15"}
    assert said.get(version, f"Keras {version}") in " ".join(notes)


@pytest.mark.parametrize("version", ["2.2.4", "2.2.4-tf", None, "2.9.0"])
def test_a_config_with_older_weights(version: str, tmp_path: Path) -> None:
    """The config has another default than the file's version of Keras: a note states both."""
    weights = kf.drawn("LSTM", D, H, np.random.default_rng(0))
    path = kf.legacy(tmp_path / "w.h5", {"a": kf.cell_names("a", weights)}, version=version)
    layer = {"type": "lstm", "hidden_size": H}
    for more, noted in (
        ({}, version != "2.9.0"),
        ({"recurrent_activation": "hard_sigmoid"}, False),
    ):
        notes = read(path, config_of(layer | more)).notes
        assert any("layer 0 of the config has recurrent_activation" in n for n in notes) == noted


@pytest.mark.parametrize("module", [True, False], ids=["3", "2"])
def test_hard_sigmoid_without_a_version(module: bool, tmp_path: Path) -> None:
    """The two functions of that name, each by the setting of the note that names both."""
    weights, x = kf.drawn("LSTM", D, H, np.random.default_rng(0)), random_inputs(N, T, D)
    entry = kf.entry(
        "LSTM", "a", units=H, return_sequences=True, batch_input_shape=[None, None, D],
        recurrent_activation="hard_sigmoid",
    )  # fmt: skip
    model = {
        "class_name": "Sequential",
        "config": [entry],
        **({"module": "keras"} if module else {}),
    }
    path = kf.legacy(tmp_path / "w.h5", {"a": kf.cell_names("a", weights)}, model, None)
    imported = read(path)
    major = 3 if module else 2
    for version, overrides in ((major, []), (5 - major, settings(imported.notes))):
        wanted = kf.recurrence("LSTM", x, weights, lambda a, v=version: kf.hard_sigmoid(a, v))
        found = imported_outputs(imported, x, overrides=overrides)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


KERAS_1 = [
    ("model", "1.2.2", {"units": H}),
    ("model", None, {"output_dim": H, "inner_activation": "hard_sigmoid"}),
    ("weights", "1.1.0", {}),
]


@pytest.mark.parametrize(("form", "version", "options"), KERAS_1)
def test_keras_1(form: str, version: Any, options: Any, tmp_path: Path) -> None:
    weights = kf.drawn("LSTM", D, H, np.random.default_rng(0))
    model = {"class_name": "Sequential", "config": [kf.entry("LSTM", "a", **options)]}
    path = tmp_path / "w.h5"
    given = model if form == "model" else None
    kf.legacy(path, {"a": kf.cell_names("a", weights)}, given, version)
    error = refused(path)
    assert "Keras 1" in str(error)
    assert "load the file in Keras 2" in error.hints[0]


@pytest.mark.parametrize(
    ("kind", "options", "slope"),
    [
        ("LeakyReLU", {}, 0.3),
        ("LeakyReLU", {"alpha": 0.1}, 0.1),
        ("LeakyReLU", {"negative_slope": 0.2}, 0.2),
        ("Activation", {"activation": "leaky_relu"}, 0.2),
        ("Activation", {"activation": "LeakyReLU"}, 0.3),
        ("Activation", {"activation": {"class_name": "LeakyReLU", "config": {}}}, 0.3),
        ("ReLU", {"negative_slope": 0.4}, 0.4),
        ("ReLU", {}, 0.0),
    ],
)
@pytest.mark.parametrize("version", ["2.2.4", "3.0.0"])
def test_slopes(version: str, kind: str, options: Any, slope: float, tmp_path: Path) -> None:
    x = random_inputs(N, T, D)
    kernel = np.random.default_rng(0).standard_normal((D, 2))
    dense = kf.entry("Dense", "d", units=2, use_bias=False, batch_input_shape=[None, None, D])
    model = {"class_name": "Sequential", "config": [dense, kf.entry(kind, "act", **options)]}
    path = tmp_path / "w.h5"
    kf.legacy(path, {"d": {"d/kernel:0": kernel}, "act": {}}, model, version)
    y = x @ kernel
    np.testing.assert_allclose(
        imported_outputs(read(path), x), np.where(y > 0, y, slope * y), atol=1e-12
    )


def test_every_default_names_its_source() -> None:
    for option, defaults in DEFAULTS.items():
        assert all(one.source for one in defaults), option
        assert [one.since for one in defaults] == sorted(one.since for one in defaults)
    assert find_release("2.2.4-tf", today=False).possible_defaults("hard_sigmoid")[0].value == 0.2


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("add_1", "add_1 has, by its name, no counterpart"),
        ("global_average_pooling1d", "no counterpart"),
        ("thresholded_re_lu", "Keras's default slopes assumed for ThresholdedReLU"),
        ("reshape", "read as a Flatten"),
        ("mine", "assumed to change nothing, since they have no weights: mine"),
    ],
)
def test_layers_without_weights_in_a_list(name: str, notes: str, tmp_path: Path) -> None:
    """Only their names are there, which are usual ones, or the user's."""
    rng = np.random.default_rng(2)
    lstm = kf.cell_names("lstm", kf.drawn("LSTM", D, H, rng))
    dense = {"dense/kernel:0": rng.standard_normal((T * H if name == "reshape" else H, 2))}
    path = kf.legacy(tmp_path / "w.h5", {"lstm": lstm, name: {}, "dense": dense})
    if "counterpart" in notes:
        assert notes in str(refused(path))
    else:
        assert notes in "\n".join(read(path).notes)


def test_the_last_layer_joins_its_directions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    both = [
        kf.cell_names(f"b/{d}_lstm", kf.drawn("LSTM", D, H, rng)) for d in ("forward", "backward")
    ]
    path = kf.legacy(tmp_path / "w.h5", {"b": both[0] | both[1]})
    assert "merge_mode concat" in "".join(read(path).notes)
