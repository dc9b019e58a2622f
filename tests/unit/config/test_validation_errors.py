"""Messages for a faulty config: path, expected, found, line and hint, all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lstm_cli.config import from_mapping, from_text
from lstm_cli.errors import ConfigError, Problem

Only = Callable[..., Problem]
Problems = Callable[..., list[Problem]]

HEAD = "model:\n  input_size: 3\n  layers:\n    - {type: lstm, hidden_size: 4}\n"


def test_the_error_of_the_screens(only: Only) -> None:
    text = (
        "model:\n  input_size: 3\n  layers:\n    - type: lstm\n      hidden_size: 4\n"
        "    -\n      type: dense\n\n      unit: 9\n"
    )
    with pytest.raises(ConfigError) as caught:
        from_text_named(text)
    assert str(caught.value) == (
        "model.layers[1].unit is not a key of a dense layer\n"
        "  configs/mine.yaml line 9\n"
        "hint: did you mean `units`?"
    )
    assert only(text).hint == "did you mean `units`?"


def from_text_named(text: str) -> None:
    from_text(text, "configs/mine.yaml", None)


@pytest.mark.parametrize(
    ("layer", "what", "hint"),
    [
        ("{type: lstm, hidden_size: 4, peephole: true}", ".peephole is not a key of an lstm layer",
         "did you mean `peepholes`?"),
        ("{type: gru, hidden_size: 4, peepholes: true}", ".peepholes is not a key of a gru layer",
         None),
        ("{type: gru, hidden_size: 4, cell_activation: tanh}",
         ".cell_activation is not a key of a gru layer", None),
        ("{type: rnn, hidden_size: 4, recurrent_activation: tanh}",
         ".recurrent_activation is not a key of an rnn layer", None),
        ("{type: lstm, units: 4}", ".units is not a key of an lstm layer",
         "here it is called `hidden_size`"),
        ("{type: flatten, rate: 1}", ".rate is not a key of a flatten layer",
         "`rate` belongs to the type dropout"),
    ],
)  # fmt: skip
def test_an_unknown_key_of_a_layer(only: Only, layer: str, what: str, hint: str | None) -> None:
    problem = only(f"model:\n  steps: 3\n  input_size: 3\n  layers:\n    - {layer}\n")
    assert problem.what == f"model.layers[0]{what}"
    assert problem.where == ("configs/mine.yaml line 5",)
    assert hint is None or problem.hint == hint


@pytest.mark.parametrize(
    ("tail", "what", "line", "hint"),
    [
        ("wieghts: a\n", "wieghts is not a key of a config", 5, "did you mean `weights`?"),
        ("epochs: 3\n", "epochs is not a key of a config", 5, "`epochs` belongs to train"),
        ("data:\n  input: a\n", "data.input is not a key of data", 6, "did you mean `inputs`?"),
        ("data:\n  window: {length: 3, steps: 2}\n",
         "data.window.steps is not a key of data.window", 6, "`steps` belongs to model"),
        ("train:\n  loss: mse\n  optimiser: sgd\n", "train.optimiser is not a key of train", 7,
         "did you mean `optimizer`?"),
        ("train:\n  loss: mse\n  optimizer:\n    type: sgd\n    lr: 1\n",
         "train.optimizer.lr is not a key of an sgd optimizer", 9,
         "here it is called `learning_rate`"),
        ("train:\n  loss: mse\n  schedule: {type: cosine, factor: .5}\n",
         "train.schedule.factor is not a key of a cosine schedule", 7,
         "`factor` belongs to the types step, exponential, reduce_on_plateau"),
        ("train:\n  loss: mse\n  optimizer: {momentum: .5}\n",
         "train.optimizer.momentum is not a key of an adam optimizer", 7,
         "`momentum` belongs to the types sgd, rmsprop"),
        ("train:\n  loss: mse\n  learning_rate: 1\n",
         "train.learning_rate is not a key of train", 7,
         "`learning_rate` belongs to train.optimizer"),
    ],
)  # fmt: skip
def test_an_unknown_key_of_a_section(
    only: Only, tail: str, what: str, line: int, hint: str | None
) -> None:
    problem = only(HEAD + tail)
    assert problem.what == what
    assert problem.where == (f"configs/mine.yaml line {line}",)
    assert hint is None or problem.hint == hint


WHOLE = "a whole number, at least 1 and at most 16777216"


@pytest.mark.parametrize(
    ("value", "expected", "found", "hint"),
    [
        ("hidden_size: true", WHOLE, "true", None),
        ("hidden_size: 3.0", WHOLE, "3.0", "write `hidden_size: 3`"),
        ("hidden_size: 3.5", WHOLE, "3.5", None),
        ("hidden_size: '12'", WHOLE, "'12'",
         "write `hidden_size: 12`, without quotes or separators"),
        ("hidden_size: 1_000", WHOLE, "'1_000'",
         "write `hidden_size: 1000`, without quotes or separators"),
        ("hidden_size: 0", WHOLE, "0", None),
        ("hidden_size: 16777217", WHOLE, "16777217", None),
        ("hidden_size: 99999999999999999999999999", WHOLE, "99999999999999999999999999", None),
        ("hidden_size: .inf", WHOLE, ".inf", None),
        ("hidden_size:", WHOLE, "nothing", None),
        ("hidden_size: [4]", WHOLE, "a list of 1 item", None),
        ("hidden_size: {a: 4}", WHOLE, "a mapping with the keys a", None),
        ("bidirectional: yes", "true or false", "'yes'", "write `bidirectional: true`"),
        ("bidirectional: Off", "true or false", "'Off'", "write `bidirectional: false`"),
        ("bidirectional: 1", "true or false", "1", None),
        ("clip: 0", "a number, above 0", "0", None),
        ("clip: .nan", "a number, above 0", ".nan", None),
        ("clip: .inf", "a number, above 0", ".inf", None),
        ("clip: true", "a number, above 0", "true", None),
        ("dropout: 1", "a number, at least 0 and below 1", "1", None),
        ("dropout: -1e-9", "a number, at least 0 and below 1", "-1e-09", None),
        ("recurrent_dropout: a", "a number, at least 0 and below 1", "'a'", None),
        ("projection_size: 0", WHOLE, "0", None),
        ("forget_bias: .inf", "a number", ".inf", None),
        ("forget_gate: 0", "true or false", "0", None),
    ],
)  # fmt: skip
def test_a_wrong_value(only: Only, value: str, expected: str, found: str, hint: str | None) -> None:
    size = "" if value.startswith("hidden_size") else "      hidden_size: 4\n"
    layer = f"    - type: lstm\n{size}      {value}\n"
    problem = only(f"model:\n  input_size: 3\n  layers:\n{layer}")
    assert problem.what.startswith(f"model.layers[0].{value.partition(':')[0]} ")
    assert problem.expected == expected
    assert problem.found == found
    assert problem.where == (f"configs/mine.yaml line {6 if size else 5}",)
    assert problem.hint == hint


@pytest.mark.parametrize(
    ("layer", "what", "found", "hint"),
    [
        ("{type: lstmm, hidden_size: 3}", "model.layers[0].type names no layer", "'lstmm'",
         "did you mean `lstm`?"),
        ("{type: LSTM, hidden_size: 3}", "model.layers[0].type names no layer", "'LSTM'",
         "did you mean `lstm`?"),
        ("{type: 3}", "model.layers[0].type names no layer", "3", None),
        ("{type: [a]}", "model.layers[0].type names no layer", "a list of 1 item", None),
        ("{hidden_size: 3}", "model.layers[0].type is missing", None, "add `type: lstm`"),
        ("{type: }", "model.layers[0].type names no layer", "nothing", None),
        ("gru", "model.layers[0] is no layer", "'gru'", "write {type: gru, hidden_size: 100}"),
        ("[a]", "model.layers[0] is no layer", "a list of 1 item",
         "write {type: lstm, hidden_size: 100}"),
    ],
)  # fmt: skip
def test_what_is_no_layer(
    only: Only, layer: str, what: str, found: str | None, hint: str | None
) -> None:
    problem = only(f"model:\n  input_size: 3\n  layers:\n    - {layer}\n")
    assert problem.what == what
    assert problem.found == found
    assert problem.where == ("configs/mine.yaml line 4",)
    assert problem.hint == hint


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("weights: a", "model is missing", "configs/mine.yaml"),
        ("model:\n", "model is missing", "configs/mine.yaml line 1"),
        ("model: {layers: [{type: lstm, hidden_size: 4}]}", "model.input_size is missing",
         "configs/mine.yaml line 1"),
        ("\nmodel:\n  input_size: 3", "model.layers is missing", "configs/mine.yaml line 2"),
        ("model:\n  input_size: 3\n  layers: []", "model.layers is too short",
         "configs/mine.yaml line 3"),
        ("model:\n  input_size: 3\n  layers: {type: lstm}",
         "model.layers has a value of the wrong type", "configs/mine.yaml line 3"),
        ("model:\n  input_size: 3\n  layers:\n  -\n    type: dense",
         "model.layers[0].units is missing", "configs/mine.yaml line 5"),
        (HEAD + "train: {epochs: 3}", "train.loss is missing", "configs/mine.yaml line 5"),
        (HEAD + "data: {window: {}}", "data.window.length is missing", "configs/mine.yaml line 5"),
        (HEAD + "data: 3", "data is no mapping", "configs/mine.yaml line 5"),
    ],
)  # fmt: skip
def test_what_is_missing_or_no_section(only: Only, text: str, what: str, where: str) -> None:
    problem = only(text)
    assert problem.what == what
    assert problem.where == (where,)


@pytest.mark.parametrize(
    ("train", "path", "hint"),
    [
        ("loss: mes", "loss", "did you mean `mse`?"),
        ("optimizer: adamm", "optimizer", "did you mean `adam`?"),
        ("optimizer: 3", "optimizer", "write {type: adam}"),
        ("optimizer: {type: adamm}", "optimizer.type", "did you mean `adam`?"),
        ("optimizer: {type: adam, learning_rate: 0}", "optimizer.learning_rate", None),
        ("optimizer: {type: adam, learning_rate: 1e400}", "optimizer.learning_rate", None),
        ("optimizer: {type: adam, beta1: 1}", "optimizer.beta1", None),
        ("schedule: cosin", "schedule", "did you mean `cosine`?"),
        ("schedule: {type: step, every: 0}", "schedule.every", None),
        ("validation: 1", "validation", None),
        ("validation: 0", "validation", None),
        ("validation: true", "validation", None),
        ("validation: ''", "validation", None),
        ("monitor: val_los", "monitor", "did you mean `val_loss`?"),
        ("patience: 0", "patience", None),
        ("clip_norm: 0", "clip_norm", None),
        ("clip_value: -1", "clip_value", None),
        ("truncate: 1.5", "truncate", None),
        ("class_weights: balance", "class_weights", "did you mean `balanced`?"),
        ("class_weights: []", "class_weights", None),
        ("class_weights: [1, -1]", "class_weights[1]", None),
        ("class_weights: {0: 1, b: .inf}", "class_weights.b", None),
        ("label_smoothing: 1", "label_smoothing", None),
        ("normalize: minmx", "normalize", "did you mean `minmax`?"),
        ("normalize: yes", "normalize", None),
        ("seed: -1", "seed", None),
        ("seed: 9223372036854775808", "seed", None),
        ("batch_size: 0", "batch_size", None),
        ("epochs: 2.5", "epochs", None),
    ],
)
def test_faults_of_training(only: Only, train: str, path: str, hint: str | None) -> None:
    loss = "" if train.startswith("loss") else "  loss: mse\n"
    problem = only(f"{HEAD}train:\n{loss}  {train}\n")
    assert problem.what.startswith(f"train.{path} ")
    assert problem.where == (f"configs/mine.yaml line {7 if loss else 6}",)
    assert problem.expected is not None
    assert hint is None or problem.hint == hint


@pytest.mark.parametrize(
    ("activation", "path", "told"),
    [
        ("tahn", "activation", "'tahn' is not an activation"),
        ("softmax", "activation", "only a dense layer has"),
        ("{name: elu, alfa: 1}", "activation.alfa", "is not a key of an activation"),
        ("{name: elu, alpha: .nan}", "activation.alpha", "is no number"),
        ("{name: elu, alpha: '1'}", "activation.alpha", "is no number"),
        ("{name: tanh, alpha: 1}", "activation", "the activation tanh has no alpha"),
        ("{alpha: 1}", "activation", "names no activation"),
        ("[tanh]", "activation", "not a pair"),
        ("[tanh, relo]", "activation[1]", "'relo' is not an activation"),
        ("[tanh, {name: elu, alpha: x}]", "activation[1].alpha", "is no number"),
        ("3", "activation", "is no activation"),
    ],
)
def test_faults_of_an_activation(only: Only, activation: str, path: str, told: str) -> None:
    layer = f"    - type: gru\n      hidden_size: 4\n      activation: {activation}\n"
    problem = only(f"model:\n  input_size: 3\n  layers:\n{layer}")
    assert problem.what.startswith(f"model.layers[0].{path} ")
    assert told in problem.what
    assert problem.where == ("configs/mine.yaml line 6",)


def test_one_error_reports_every_problem(problems: Problems) -> None:
    text = (
        "model:\n  input_size: 0\n  input_size: 1\n  layers:\n"
        "    - {type: lstm, hidden_size: 4, return_sequences: false}\n"
        "    - {type: gru, hidden_size: 3, bidirectional: no}\n"
        "    - {type: rnn, hidden_size: 2}\n"
        "    - {type: dense, unit: 2}\n"
        "train: {loss: mse, monitor: val_loss}\nfoo: 1\n"
    )
    found = problems(text, "model.nothing", "data.layout=tree")
    assert {p.what for p in found} == {
        "model.input_size is given twice",
        "'--set model.nothing' is no setting",
        "model.input_size is out of range",
        "model.layers[1].bidirectional has a value of the wrong type",
        "model.layers[3].unit is not a key of a dense layer",
        "data.layout has an unknown value",
        "foo is not a key of a config",
        "model.layers[0].return_sequences is false, but model.layers[2], an rnn layer, "
        "reads every step",
        "train.monitor is val_loss, but train.validation is missing",
    }


def test_a_mapping_has_paths_and_no_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"model": {"input_size": 3, "layers": [{"type": "dense", "unit": 3}]}})
    (problem,) = caught.value.problems
    assert problem.what == "model.layers[0].unit is not a key of a dense layer"
    assert problem.where == ("config",)


def test_control_characters_of_a_key_do_not_reach_the_terminal(problems: Problems) -> None:
    for problem in problems(HEAD + '"\\e[31mred\\n": 1\n'):
        assert all(c.isprintable() for c in problem.what)


def test_no_word_of_pydantic_is_heard(problems: Problems) -> None:
    text = (
        "model: {input_size: [], layers: [{type: lstm, hidden_size: {}, x: 1}, 3, {}, "
        "{type: q}, {type: dense, units: 1.5, activation: []}], init: {scheme: x, seed: a}, "
        "steps: q}\ndata: {inputs: 3, layout: x, window: {length: q}}\nweights: {}\n"
        "train: {loss: [], optimizer: {type: adam, beta1: x}, schedule: [], class_weights: 3}\n"
    )
    said = "\n".join(line for p in problems(text) for line in p.lines())
    for word in ("Input should", "valid", "pydantic", "Field required", "None", "dict", "tag"):
        assert word not in said, said
