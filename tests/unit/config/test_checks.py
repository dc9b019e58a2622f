"""Checks across keys: steps through the layers, pairs, losses and last layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lstm_cli.config import from_text
from lstm_cli.errors import Problem

Only = Callable[..., Problem]


def config(*layers: str, steps: str = "", tail: str = "") -> str:
    """A config with its first layer on line 4."""
    rows = "".join(f"    - {layer}\n" for layer in layers)
    return f"model:\n  input_size: 3\n  layers:\n{rows}{steps}{tail}"


LAST = "{type: lstm, hidden_size: 4, return_sequences: false}"
STEPS = "  steps: 7\n"


@pytest.mark.parametrize(
    ("layers", "what", "lines"),
    [
        ([LAST, "{type: gru, hidden_size: 2}"],
         "model.layers[0].return_sequences is false, but model.layers[1], a gru layer", (4, 5)),
        ([LAST, "{type: dropout, rate: .5}", "{type: dense, units: 2}", "{type: flatten}"],
         "model.layers[0].return_sequences is false, but model.layers[3], a flatten layer", (4, 7)),
        (["{type: flatten}", "{type: rnn, hidden_size: 2}"],
         "model.layers[0] flattens the steps away, but model.layers[1], an rnn layer", (4, 5)),
        (["{type: lstm, hidden_size: 2}", "{type: flatten}", "{type: flatten}"],
         "model.layers[1] flattens the steps away, but model.layers[2], a flatten layer", (5, 6)),
    ],
)  # fmt: skip
def test_steps_that_are_gone(
    only: Only, layers: list[str], what: str, lines: tuple[int, ...]
) -> None:
    problem = only(config(*layers, steps=STEPS))
    assert problem.what == f"{what}, reads every step"
    assert problem.where == tuple(f"configs/mine.yaml line {line}" for line in lines)


def test_every_layer_that_misses_the_steps_is_named(
    problems: Callable[..., list[Problem]],
) -> None:
    found = problems(config(LAST, "{type: gru, hidden_size: 2}", "{type: rnn, hidden_size: 2}"))
    assert ["[1]" in p.what for p in found] == [True, False]
    assert ["[2]" in p.what for p in found] == [False, True]


def test_flatten_needs_steps(only: Only) -> None:
    problem = only(config("{type: lstm, hidden_size: 4}", "{type: flatten}"))
    assert problem.what == "model.layers[1] flattens, but model.steps is missing"
    assert problem.hint == "add `steps: 10` to model"


@pytest.mark.parametrize("key", ["activation", "recurrent_activation", "cell_activation"])
def test_a_pair_needs_two_directions(only: Only, key: str) -> None:
    text = "{{type: lstm, hidden_size: 4, bidirectional: {}, {}: [tanh, relu]}}"
    problem = only(config(text.format("false", key)))
    assert problem.what == f"model.layers[0].{key} is a pair, but the layer has one direction"
    from_text(config(text.format("true", key)), "a", None)


def test_a_coupled_gate_that_is_not_there(only: Only) -> None:
    problem = only(
        config("{type: lstm, hidden_size: 4, coupled_input_forget: true, forget_gate: false}")
    )
    assert problem.what.startswith("model.layers[0].forget_gate is false, but coupled")


def test_absurd_sizes_are_refused_and_large_ones_are_not(only: Only) -> None:
    # 2**22 units: 4 * 2**22 * (3 + 2**22 + 1) is above 2**40; 2**18 is below.
    problem = only(config("{type: lstm, hidden_size: 4194304}"))
    assert "more parameters than any machine holds" in problem.what
    assert problem.found == f"{4 * 2**22 * (3 + 2**22 + 1):,}, 281 TB in float32"
    from_text(config("{type: lstm, hidden_size: 262144}"), "a", None)


@pytest.mark.parametrize(
    ("loss", "last", "found"),
    [
        ("cross_entropy", "{type: dense, units: 3}", "model.layers[0].activation is identity"),
        ("cross_entropy", "{type: dense, units: 3, activation: sigmoid}",
         "model.layers[0].activation is sigmoid"),
        ("cross_entropy", "{type: gru, hidden_size: 3}", "model.layers[0] is a gru layer"),
        ("binary_cross_entropy", "{type: dense, units: 3, activation: softmax}",
         "model.layers[0].activation is softmax"),
        ("binary_cross_entropy", "{type: rnn, hidden_size: 3, activation: sigmoid}",
         "model.layers[0] is an rnn layer"),
    ],
)  # fmt: skip
def test_a_loss_that_the_last_layer_does_not_suit(
    only: Only, loss: str, last: str, found: str
) -> None:
    problem = only(config(last, tail=f"train:\n  loss: {loss}\n"))
    assert problem.what.startswith(f"train.loss is {loss}, which needs a s")
    assert problem.found == found
    assert problem.where == ("configs/mine.yaml line 4", "configs/mine.yaml line 6")


@pytest.mark.parametrize("value", ["1.0", "2.5", "-1.0"])
def test_a_forget_bias_without_biases(only: Only, value: str) -> None:
    row = f"{{type: lstm, hidden_size: 4, bias: false, forget_bias: {value}}}"
    problem = only(config(row))
    number = f"{float(value):g}"
    assert problem.what == f"model.layers[0].forget_bias is {number}, but the layer has no biases"
    assert problem.hint == "remove forget_bias, or --set model.layers.0.bias=true"
    assert from_text(config(row), "a", None, ["model.layers.0.bias=true"]).specs[0].parameters()
    bare = from_text(config("{type: lstm, hidden_size: 4, bias: false}"), "a", None)
    assert "forget_bias" not in bare.to_yaml()
    assert from_text(bare.to_yaml(), "a", None) == bare
    from_text(config("{type: lstm, hidden_size: 4, bias: false, forget_bias: 0.0}"), "a", None)


SOFTMAX = "{type: dense, units: 3, activation: softmax}"


@pytest.mark.parametrize(
    ("last", "train"),
    [
        (SOFTMAX, "{loss: cross_entropy, class_weights: [1, 2, 0.5], monitor: accuracy}"),
        ("{type: dense, units: 1, activation: sigmoid}", "{loss: binary_cross_entropy}"),
        ("{type: dense, units: 3}", "{loss: huber, monitor: val_mae, validation: 0.1}"),
        (SOFTMAX, "{loss: mse}"),
        (SOFTMAX, "{loss: cross_entropy, class_weights: {0: 2, b: 3}, label_smoothing: 0.1}"),
    ],
)
def test_losses_that_suit(last: str, train: str) -> None:
    assert from_text(config(last, tail=f"train: {train}\n"), "a", None).train is not None


@pytest.mark.parametrize(
    ("last", "train", "what"),
    [
        ("{type: dense, units: 1, activation: softmax}", "{loss: cross_entropy}",
         "model.layers[0].units is 1, and a softmax over one unit is always 1"),
        (SOFTMAX, "{loss: cross_entropy, class_weights: [1, 2]}",
         "train.class_weights does not have a weight for each class"),
        (SOFTMAX, "{loss: mse, class_weights: balanced}",
         "train.class_weights needs classes, but the loss mse has none"),
        (SOFTMAX, "{loss: mae, label_smoothing: 0.1}",
         "train.label_smoothing needs classes, but the loss mae has none"),
        (SOFTMAX, "{loss: mse, monitor: val_loss}",
         "train.monitor is val_loss, but train.validation is missing"),
        (SOFTMAX, "{loss: mse, monitor: auc}",
         "train.monitor is auc, which is no metric of the loss mse"),
        (SOFTMAX, "{loss: cross_entropy, monitor: mae}",
         "train.monitor is mae, which is no metric of the loss cross_entropy"),
        (SOFTMAX, "{loss: mse, schedule: {type: step, warmup_steps: 2, warmup_epochs: 1}}",
         "train.schedule has both warmup_steps and warmup_epochs"),
        (SOFTMAX, "{loss: mse, optimizer: {type: sgd, nesterov: true}}",
         "train.optimizer.nesterov needs momentum"),
    ],
)  # fmt: skip
def test_options_of_training_that_exclude_each_other(
    only: Only, last: str, train: str, what: str
) -> None:
    assert only(config(last, tail=f"train: {train}\n")).what == what


def test_structure_is_checked_along_with_the_schema(
    problems: Callable[..., list[Problem]],
) -> None:
    found = problems(config(LAST, "{type: dense}", "{type: gru, hidden_size: 2}"))
    assert len(found) == 2
    assert "reads every step" in found[1].what
