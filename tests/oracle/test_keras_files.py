"""Models that Keras itself saves, read and run; files written here, opened by Keras: equal outputs.

Every variable is drawn afresh, biases too: Keras makes them 0.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import keras_files as kf
import numpy as np
import pytest
from codec_cases import imported_outputs
from networks import TOLERANCES, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported, ReadOptions
from lstm_cli.network.network import Network
from lstm_cli.workflows.weights_files import config_of

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
L = keras.layers

GATES = ["sigmoid", "hard_sigmoid", "tanh", "softsign"]
VALUES = ["tanh", "relu", "linear", "elu", "softplus", "softsign", "leaky_relu", "sigmoid"]
HEADS = [*VALUES, "softmax", "hard_sigmoid"]
STEPS, FEATURES = 6, 5


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Keras calls its own ``.h5`` legacy, by way of absl's log, and torch may warn of NumPy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="keras")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras|torch")
        yield


class Draw:
    """Random layers of Keras."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def yes(self) -> bool:
        return bool(self.rng.integers(2))

    def name(self) -> dict[str, str]:
        return {"name": f"my {self.rng.integers(10**6)}-x"} if self.yes() else {}

    def activation(self) -> Any:
        objects = [L.LeakyReLU(0.15), L.ELU(0.6), L.ReLU(max_value=1.0), keras.activations.relu]
        return self.one([*VALUES, *objects])

    def recurrent(self, last: bool) -> Any:
        kind = self.one(["LSTM", "GRU", "SimpleRNN"])
        options: dict[str, Any] = {"activation": self.activation(), "use_bias": self.yes()}
        if kind != "SimpleRNN":
            options["recurrent_activation"] = self.one(GATES)
        if kind == "GRU":
            options["reset_after"] = self.yes()
        whole = {"return_sequences": not last, "dropout": 0.3 if self.yes() else 0.0}
        units = int(self.rng.integers(1, 8))
        if not self.yes():
            return self.bidirectional(kind, units, options | whole)
        if self.yes():
            return getattr(L, kind)(units, **options, **whole, **self.name())
        return L.RNN(getattr(L, f"{kind}Cell")(units, **options), return_sequences=not last)

    def bidirectional(self, kind: str, units: int, options: dict[str, Any]) -> Any:
        layer = getattr(L, kind)
        forward = layer(units, **options)
        if self.yes():
            return L.Bidirectional(forward, **self.name())
        other = options | {"activation": self.activation(), "use_bias": self.yes()}
        return L.Bidirectional(forward, backward_layer=layer(units, **other, go_backwards=True))

    def between(self, sequence: bool) -> list[Any]:
        units = int(self.rng.integers(1, 8))
        dense = L.Dense(units, activation=self.activation(), **self.name())
        choice = [
            [],
            [L.Dropout(0.4)],
            [dense, L.LeakyReLU()],
            [L.Activation(self.one(VALUES)), L.ReLU(negative_slope=0.1)],
        ]
        if sequence:
            choice += [[L.SpatialDropout1D(0.2), L.GaussianNoise(0.1)], [L.TimeDistributed(dense)]]
        return choice[self.rng.integers(len(choice))]

    def layers(self) -> list[Any]:
        depth = int(self.rng.integers(1, 4))
        sequence = self.yes()
        chain = []
        for k in range(depth):
            last = k == depth - 1 and not sequence
            chain += [self.recurrent(last), *self.between(not last)]
        if sequence and self.yes():
            chain += [self.one([L.Flatten(), L.Reshape((-1,))])]
        if self.yes():
            head = [L.Dense(3), L.Softmax()]
        else:
            head = [L.Dense(4, activation=self.one(HEADS), use_bias=self.yes(), **self.name())]
        return chain + head

    def model(self) -> Any:
        layers = self.layers()
        for layer in layers:
            layer.trainable = self.yes()  # older files list what is frozen last
            if isinstance(layer, L.Bidirectional):
                layer.trainable = True
                layer.forward_layer.trainable = self.yes()
        flat = any(isinstance(layer, L.Flatten | L.Reshape) for layer in layers)
        shape = (STEPS if flat or self.yes() else None, FEATURES)
        if self.yes():
            x = y = keras.Input(shape)
            for layer in layers:
                y = layer(y)
            model = keras.Model(x, y)
        elif self.yes() and len(layers) > 3:
            inner = keras.Sequential([keras.Input(shape), *layers[:3]])
            model = keras.Sequential([keras.Input(shape), inner, *layers[3:]])
        else:
            model = keras.Sequential([keras.Input(shape), *layers])
        return shaken(model, self.rng)


def shaken(model: Any, rng: np.random.Generator) -> Any:
    """The model with every variable drawn afresh."""
    model.set_weights([0.6 * rng.standard_normal(value.shape) for value in model.get_weights()])
    return model


def inputs(seed: int, D: int = FEATURES, T: int = STEPS) -> Any:
    return np.random.default_rng(seed).standard_normal((3, T, D)).astype(np.float32)


def predicted(model: Any, x: Any) -> Any:
    return keras.ops.convert_to_numpy(model(x, training=False))


def assert_equal(imported: Imported, model: Any, x: Any, config: Any = None) -> None:
    config = imported.config if config is None else config
    actual = imported_outputs(imported, x, config, dtype="float32")
    expected = predicted(model, x)
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", range(14))
def test_random_models(seed: int, tmp_path: Path) -> None:
    model, x = Draw(seed).model(), inputs(seed)
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        imported = registry.read(tmp_path / name)
        assert imported.format == "keras"
        assert keras.__version__ in imported.title
        assert_equal(imported, model, x)
        check_stored(imported)


def check_stored(imported: Imported) -> None:
    """Every part that is listed has the size of the block that it gives."""
    for stored in imported.sources:
        whole = np.empty(stored.shape, np.int8)
        part = eval(f"whole{stored.part}" if stored.part else "whole", {"whole": whole})
        blocks = {s.block for s in imported.sources if s.native == stored.native}
        assert part.size * len(blocks) == imported.tensors[stored.native].size


def weights_only(draw: Draw) -> Any:
    """A model whose options are Keras's defaults; parts of it frozen, parts models of their own.

    Its layers were made in another order than they run in, and some are alike.
    """
    sizes = [3] if draw.yes() else [2, 3, 4]
    layers: list[Any] = []
    for _ in range(int(draw.rng.integers(1, 5))):
        kind, units = draw.one(["LSTM", "GRU", "SimpleRNN", "Dense", "Dense"]), draw.one(sizes)
        extra = {"reset_after": draw.yes()} if kind == "GRU" else {}
        if kind == "Dense":
            layers.append(L.TimeDistributed(L.Dense(units)) if draw.yes() else L.Dense(units))
            continue
        layer = getattr(L, kind)(units, return_sequences=True, **extra)
        layers.append(L.Bidirectional(layer) if draw.yes() else layer)
    layers = [layers[k] for k in draw.rng.permutation(len(layers))]
    for layer in layers:
        layer.trainable = draw.yes()
        if isinstance(layer, L.Bidirectional):
            layer.trainable = True
            layer.forward_layer.trainable = draw.yes()
    cut = int(draw.rng.integers(len(layers) + 1))
    if cut and draw.yes():
        layers[:cut] = [keras.Sequential(layers[:cut])]
    layers += draw.one([[], [L.Dropout(0.1)], [L.Flatten(), L.Dense(2)]])
    x = y = keras.Input((STEPS, draw.one(sizes)))
    for layer in layers:
        y = layer(y)
    model = keras.Model(x, y) if draw.yes() else keras.Sequential([x, *layers])
    return shaken(model, draw.rng)


def test_weights_alone(tmp_path: Path) -> None:
    """Right or refused, alone and beside a config, in both kinds of file, also when copied."""
    checked = set()
    whole, legacy, today = (tmp_path / name for name in ("m.h5", "b.h5", "m.weights.h5"))
    for seed in range(16):
        model = weights_only(Draw(seed + 100))
        x = inputs(seed, model.input_shape[-1])
        model.save(whole)
        config = registry.read(whole).config
        kf.bare(legacy, whole)
        model.save_weights(today)
        if seed % 2:
            today.write_bytes(kf.copied(today.read_bytes(), attributes=True))
        for path in (legacy, today):
            for layers in (None, from_mapping(config).specs):
                try:
                    imported = registry.read(path, ReadOptions(layers=layers))
                except WeightsError:
                    checked.add((path, layers is None, "refused"))
                    continue
                checked.add((path, layers is None, "read"))
                assert_equal(imported, model, x, config if layers else None)
                if len({name.split(".")[1] for name in imported.tensors}) > 1:
                    assert "one after the other, each once" in "".join(imported.notes)
    assert len(checked) >= 7  # every one of them but, perhaps, refusals beside a config


def test_layers_that_make_no_chain_by_their_sizes(tmp_path: Path) -> None:
    """Weightless layers stand anywhere, but a Flatten whose place the sizes tell."""
    last = [L.LSTM(4, return_sequences=True), L.LeakyReLU(), L.Dense(3)]
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), *last])
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(WeightsError, match="leaky_re_lu"):
        registry.read(tmp_path / "m.weights.h5")
    first = [L.GRU(3, return_sequences=True), L.LSTM(4, return_sequences=True)]
    model = keras.Sequential([keras.Input((STEPS, 3)), *first, L.Flatten(), L.Dense(3)])
    shaken(model, np.random.default_rng(0)).save_weights(tmp_path / "m.weights.h5")
    assert_equal(registry.read(tmp_path / "m.weights.h5"), model, inputs(0, 3))


@pytest.mark.parametrize("names", [("lstm_b", "lstm_a"), ("b", "a"), ("z", "lstm")])
def test_a_class_of_ones_own_with_layers_alike(names: tuple[str, str], tmp_path: Path) -> None:
    """Keras counts its layers as they were made, here not as they run."""

    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, L.LSTM(FEATURES, return_sequences=True))

        def call(self, x: Any) -> Any:
            return getattr(self, names[0])(getattr(self, names[1])(x))

    model, x = Mine(), inputs(0)
    model(x)
    model.save_weights(tmp_path / "m.weights.h5")
    layers = from_mapping(
        {"model": {"input_size": FEATURES, "layers": [{"type": "lstm", "hidden_size": 5}] * 2}}
    ).specs
    for given in (None, layers):
        with pytest.raises(WeightsError) as caught:
            registry.read(tmp_path / "m.weights.h5", ReadOptions(layers=given))
        assert "--weights" not in caught.value.hints[0]  # a config would not tell them apart
    chain = keras.Sequential([keras.Input((STEPS, FEATURES)), *(getattr(model, n) for n in names)])
    chain.save(tmp_path / "m.keras")  # what the hint says
    assert_equal(registry.read(tmp_path / "m.keras"), chain, x)


def test_weights_of_a_class_of_ones_own(tmp_path: Path) -> None:
    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.read = L.Bidirectional(L.LSTM(3, return_sequences=True))
            self.mix = L.GRU(4, return_sequences=True)
            self.answer = L.Dense(2)

        def call(self, x: Any) -> Any:
            return self.answer(self.mix(self.read(x)))

    model, x = Mine(), inputs(0)
    model(x)
    shaken(model, np.random.default_rng(5)).save_weights(tmp_path / "m.weights.h5")
    imported = registry.read(tmp_path / "m.weights.h5")
    assert_equal(imported, model, x)
    assert "bidirectional -> layers/gru -> answer; the order is the only one" in "".join(
        imported.notes
    )
    model.save(tmp_path / "m.keras")
    with pytest.raises(WeightsError, match="Mine.*class"):
        registry.read(tmp_path / "m.keras")


def test_weights_say_neither_the_last_step_nor_the_final_states(tmp_path: Path) -> None:
    """The note names both, and each gives what Keras does."""
    x, start = inputs(4), keras.Input((STEPS, FEATURES))
    steps = L.Bidirectional(L.GRU(3, return_sequences=True))(start)
    last = shaken(keras.Model(start, L.Dense(2)(steps[:, -1])), np.random.default_rng(4))
    final = keras.Model(start, L.Dense(2)(L.Bidirectional(L.GRU(3))(start)))
    final.set_weights(last.get_weights())
    last.save_weights(tmp_path / "m.weights.h5")
    imported = registry.read(tmp_path / "m.weights.h5")
    (note,) = (note for note in imported.notes if "outputs[:, -1] of the results" in note)
    setting = note.split("--set ")[1].split()[0]
    for model, settings in ((last, []), (final, [setting])):
        specs = config_of(imported, settings).specs
        found = Network(specs, imported.tensors, ReferenceEngine("float64")).run(x).outputs
        expected = keras.ops.convert_to_numpy(model(x))
        found = found if settings else found[:, -1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("forward", "reverse"), [(False, True), (True, False), (False, False)])
def test_weights_of_a_gru_without_biases(forward: bool, reverse: bool, tmp_path: Path) -> None:
    """Biases tell how a GRU resets: those of the other direction, else it is Keras's default."""
    options = {"return_sequences": True, "reset_after": not (forward or reverse)}
    one = L.GRU(3, use_bias=forward, **options)
    other = L.GRU(3, use_bias=reverse, go_backwards=True, **options)
    layers = [L.Bidirectional(one, backward_layer=other), L.Reshape((-1,)), L.Dense(2)]
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), *layers])
    shaken(model, np.random.default_rng(8)).save_weights(tmp_path / "m.weights.h5")
    imported = registry.read(tmp_path / "m.weights.h5")
    assert_equal(imported, model, inputs(8))
    assumed = any("--set model.layers.0.reset_after=false" in note for note in imported.notes)
    assert assumed == (not forward and not reverse)
    assert any("read as a Flatten" in note for note in imported.notes)


def test_functional_with_mask_and_states(tmp_path: Path) -> None:
    x = keras.Input((STEPS, FEATURES))
    y = L.Masking()(x)
    y, _ = L.GRU(4, return_sequences=True, return_state=True, name="a/b"[:1])(y)
    y = L.Dense(2, activation=L.Softmax())(y)
    model = shaken(keras.Model(x, y), np.random.default_rng(3))
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        imported = registry.read(tmp_path / name)
        assert_equal(imported, model, inputs(3))
        assert any("Masking" in note for note in imported.notes)


def test_double_precision(tmp_path: Path) -> None:
    layers = [L.LSTM(3, dtype="float64"), L.Dense(2, dtype="float64")]
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), *layers])
    shaken(model, np.random.default_rng(1)).save(tmp_path / "m.keras")
    imported = registry.read(tmp_path / "m.keras")
    assert {value.dtype.name for value in imported.tensors.values()} == {"float64"}
    kernel = keras.ops.convert_to_numpy(model.layers[1].kernel)
    np.testing.assert_array_equal(imported.tensors["layers.1.weight"], kernel.T)


def two_inputs() -> Any:
    x, y = keras.Input((4, 3)), keras.Input((4, 2))
    return keras.Model([x, y], L.LSTM(2)(L.Concatenate()([x, y])))


def branches() -> Any:
    x = keras.Input((4, 3))
    return keras.Model(x, L.Add(name="both")([L.LSTM(3)(x), L.GRU(3)(x)]))


def two_outputs() -> Any:
    x = keras.Input((4, 3))
    return keras.Model(x, [L.LSTM(2)(x), L.GRU(2)(x)])


def states_used() -> Any:
    x = keras.Input((4, 3))
    _, h, _ = L.LSTM(2, return_state=True, name="source")(x)
    return keras.Model(x, L.Dense(2)(h))


def shared() -> Any:
    x, dense = keras.Input((4, 3)), L.Dense(3, name="twice")
    return keras.Model(x, L.LSTM(2)(dense(dense(x))))


def chain(*layers: Any) -> Any:
    return lambda: keras.Sequential([keras.Input((4, 3)), *layers])


REFUSED = {
    "inputs": (two_inputs, "2 input layers"),
    "branches": (branches, "both.*reads 2 tensors: lstm.*, gru"),
    "outputs": (two_outputs, "2 output layers"),
    "states": (states_used, "reads a state of source"),
    "shared": (shared, "twice.*more than once"),
    "backwards": (chain(L.LSTM(2, go_backwards=True)), "go_backwards"),
    "merge": (chain(L.Bidirectional(L.GRU(2), merge_mode="sum")), "merge_mode: sum"),
    "gelu": (chain(L.GRU(2, name="g", activation="gelu")), r"layer g \(GRU\).*activation: gelu"),
    "softmax": (chain(L.LSTM(2, activation="softmax")), "activation: softmax"),
    "layer": (chain(L.LSTM(2), L.BatchNormalization(name="bn")), "bn .BatchNormalization"),
    "relu6": (chain(L.LSTM(2), L.ReLU(max_value=6.0)), "max_value: 6"),
    "lambda": (chain(L.LSTM(2), L.Lambda(lambda x: x + 1)), "Lambda.*holds Python code"),
    "reshape": (chain(L.Reshape((3, 4)), L.LSTM(2)), "target_shape"),
    "softmax axis": (chain(L.LSTM(2, return_sequences=True), L.Softmax(axis=1)), "axis: 1"),
    "cell": (chain(L.RNN([L.LSTMCell(2), L.GRUCell(2)])), "StackedRNNCells"),
    "wrapped": (chain(L.TimeDistributed(L.LayerNormalization())), "TimeDistributed.*wraps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented(case: str, tmp_path: Path) -> None:
    make, text = REFUSED[case]
    make().save(tmp_path / "m.keras")
    with pytest.raises(WeightsError) as caught:
        registry.read(tmp_path / "m.keras")
    assert re.search(text, str(caught.value)), str(caught.value)
    assert str(tmp_path / "m.keras") in str(caught.value)


def drawn_specs(seed: int) -> list[Any]:
    """Native layers that Keras has as well."""
    rng = np.random.default_rng(seed)
    names = ["tanh", "relu", "identity", "softsign", "elu", "leaky_relu", "softplus"]
    specs: list[Any] = []
    width, depth, sequence = FEATURES, int(rng.integers(1, 4)), bool(rng.integers(2))
    for k in range(depth):
        kind = str(rng.choice(["lstm", "gru", "rnn"]))
        options: dict[str, Any] = {"activation": Activation(str(rng.choice(names)))}
        if rng.integers(3) == 0:
            options["activation"] = Activation("elu", alpha=0.7)
        if kind == "lstm":
            options |= {"cell_activation": options["activation"]}
            options |= {"use_forget_gate": bool(rng.integers(3))}
        if kind == "gru":
            options["reset_after"] = bool(rng.integers(2))
        if kind != "rnn" and rng.integers(2):
            options["recurrent_activation"] = Activation("hard_sigmoid", alpha=1 / 6)
        options["return_sequences"] = k < depth - 1 or sequence
        directions, H = int(rng.integers(1, 3)), int(rng.integers(1, 7))
        specs.append(recurrent(kind, H, width, index=len(specs), directions=directions, **options))
        width = specs[-1].output_size
        if rng.integers(2):
            specs.append(DropoutSpec(len(specs), width, 0.25))
    if sequence and rng.integers(2):
        specs.append(FlattenSpec(len(specs), width, STEPS))
        width *= STEPS
    head = [None, Activation("leaky_relu", alpha=0.3), Activation("sigmoid")][rng.integers(3)]
    return [*specs, DenseSpec(len(specs), width, 3, head)]


def export(specs: list[Any], seed: int, dtype: str = "float32") -> Export:
    tensors = {name: v.astype(dtype) for name, v in random_weights(specs, seed).items()}
    return Export("räume/1", FEATURES, STEPS, tuple(specs), tensors, "")


@pytest.mark.parametrize("seed", range(8))
def test_written_files(seed: int, tmp_path: Path) -> None:
    """Keras opens them, gives the same outputs, and they are read back bit by bit."""
    dtype = "float64" if seed % 4 == 0 else "float32"
    written_export = export(drawn_specs(seed), seed, dtype)
    path, weights = tmp_path / "m.keras", tmp_path / "m.weights.h5"
    registry.write(path, "keras", written_export)
    x = inputs(seed)
    network = Network(written_export.layers, written_export.tensors, ReferenceEngine(dtype=dtype))
    expected = network.run(x.astype(dtype)).outputs
    model = keras.saving.load_model(path)
    # Keras takes float64 inputs as float32 all the same.
    close = {"rtol": 0, "atol": 2e-5 if dtype == "float32" else 1e-6}
    np.testing.assert_allclose(predicted(model, x.astype(dtype)), expected, **close)

    again = registry.read(path)
    found = imported_outputs(again, x.astype(dtype), dtype=dtype)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype])

    registry.write(weights, "keras", written_export)
    shaken(model, np.random.default_rng(0)).load_weights(weights)
    np.testing.assert_allclose(predicted(model, x.astype(dtype)), expected, **close)
    bare = registry.read(weights)
    for name, value in again.tensors.items():
        np.testing.assert_array_equal(bare.tensors[name], value)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("functional", [False, True])
def test_layers_in_front_that_are_not_here(suffix: str, functional: bool, tmp_path: Path) -> None:
    """They are named, each; the hint saves the layers after them."""
    keras.utils.set_random_seed(3)
    front = [L.Embedding(9, 3, name="words"), L.BatchNormalization()]
    rest = [L.LSTM(4, return_sequences=True), L.GRU(3), L.Dense(2, activation="softmax")]
    if functional:
        source = value = keras.Input((STEPS,))
        for layer in [*front, *rest]:
            value = layer(value)
        model = keras.Model(source, value)
    else:
        model = keras.Sequential([keras.Input((STEPS,)), *front, *rest])
    path = tmp_path / f"m{suffix}"
    (model.save_weights if "weights" in suffix else model.save)(path)
    with pytest.raises(WeightsError) as caught:
        registry.read(path)
    said = str(caught.value)
    assert "the layer words (Embedding) has no counterpart" in said or suffix == ".weights.h5"
    assert "(BatchNormalization) has no counterpart" in said
    assert "config comes before" not in said
    code = re.search(
        r"(k = .*?; )?keras\.Sequential.*?\.save\('rest\.keras'\)", caught.value.hints[0]
    )
    inputs = re.search(r"the values of (.*)", caught.value.hints[0])
    assert code is not None
    assert inputs is not None
    x = np.random.default_rng(0).integers(0, 9, (4, STEPS))
    names = {"keras": keras, "model": model, "x": x, "k": model.layers.index(front[-1])}
    exec(code[0].replace("rest.keras", str(tmp_path / "rest.keras")), names)
    imported = registry.read(tmp_path / "rest.keras")
    found = imported_outputs(imported, eval(inputs[1], names), dtype="float32")
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=2e-5)


def test_a_description_without_weights(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((STEPS, 3)), L.LSTM(4), L.Dense(2)])
    (tmp_path / "m.json").write_text(model.to_json())
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(WeightsError, match="a Keras model's description") as caught:
        registry.read(tmp_path / "m.json")
    code = (
        caught.value.hints[0].partition(": ")[2].replace("model.keras", str(tmp_path / "a.keras"))
    )
    exec(code, {"FILE": tmp_path / "m.weights.h5"})
    x = np.random.default_rng(0).standard_normal((4, STEPS, 3))
    imported = registry.read(tmp_path / "a.keras")
    found = imported_outputs(imported, x, dtype="float32")
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=2e-5)
