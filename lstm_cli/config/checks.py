"""Checks across keys of a config: successive layers, and options that exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from lstm_cli.cells import Activation
from lstm_cli.config.problems import KeyPath, ProblemReport, format_path, with_article
from lstm_cli.config.schema import (
    DenseLayer,
    FlattenLayer,
    LayerSection,
    LSTMLayer,
    RecurrentLayer,
    TrainSection,
)
from lstm_cli.engines.types import LayerSpec
from lstm_cli.training.losses import FINAL_ACTIVATIONS

LAYERS: KeyPath = ("model", "layers")


@dataclass(frozen=True)
class PartialConfig:
    """The parts of a config that passed the schema.

    Attributes
    ----------
    layers
        The layers; None where a layer did not pass.
    has_steps
        Whether the config has ``model.steps``.
    """

    layers: Sequence[LayerSection | None]
    has_steps: bool
    train: TrainSection | None = None


MAX_PARAMETERS = 2**40
"""Most parameters of a network."""


def check_parameter_count(specs: Sequence[LayerSpec], report: ProblemReport) -> None:
    """Add a problem if the network is too large for any machine's memory."""
    total = sum(prod(p.shape) for spec in specs for p in spec.parameters().values())
    if total > MAX_PARAMETERS:
        report.add(
            LAYERS,
            "model.layers have more parameters than any machine holds",
            expected=f"at most {MAX_PARAMETERS:,}",
            found=f"{total:,}, {4 * total / 1e12:,.0f} TB in float32",
            hint="check hidden_size, units, input_size and steps for a typing error",
        )


def check_config(config: PartialConfig, report: ProblemReport) -> None:
    """Add every conflict between keys to `report`."""
    for index, layer in enumerate(config.layers):
        if isinstance(layer, RecurrentLayer):
            _check_pairs(index, layer, report)
        if isinstance(layer, LSTMLayer):
            _check_forget_gate(index, layer, report)
            _check_forget_bias(index, layer, report)
        if isinstance(layer, FlattenLayer) and not config.has_steps:
            _check_steps_given(index, report)
    _check_steps_remain(config.layers, report)
    if config.train is not None:
        _check_train(config.train, report)
        if config.layers and config.layers[-1] is not None:
            _check_last(config.layers, config.train, report)


def _check_pairs(index: int, layer: RecurrentLayer, report: ProblemReport) -> None:
    if layer.bidirectional:
        return
    for key in ("activation", "recurrent_activation", "cell_activation"):
        if len(getattr(layer, key, None) or ()) > 1:
            path = (*LAYERS, index, key)
            report.add(
                path,
                f"{format_path(path)} is a pair, but the layer has one direction",
                expected="one activation",
                found="two",
                hint="give one activation, or set `bidirectional: true`",
            )


def _check_forget_gate(index: int, layer: LSTMLayer, report: ProblemReport) -> None:
    if layer.coupled_input_forget and not layer.forget_gate:
        path = (*LAYERS, index, "forget_gate")
        report.add(
            path,
            f"{format_path(path)} is false, but coupled_input_forget computes that gate as 1 - i",
            also=[(*LAYERS, index, "coupled_input_forget")],
            hint="remove one of the two",
        )


def _check_forget_bias(index: int, layer: LSTMLayer, report: ProblemReport) -> None:
    if not layer.bias and layer.forget_bias and "forget_bias" in layer.model_fields_set:
        path = (*LAYERS, index, "forget_bias")
        report.add(
            path,
            f"{format_path(path)} is {layer.forget_bias:g}, but the layer has no biases",
            also=[(*LAYERS, index, "bias")],
            hint=f"remove forget_bias, or --set model.layers.{index}.bias=true",
        )


def _check_steps_given(index: int, report: ProblemReport) -> None:
    report.add(
        (*LAYERS, index),
        f"{format_path((*LAYERS, index))} flattens, but model.steps is missing",
        expected="the number of steps T that are flattened",
        hint="add `steps: 10` to model",
    )


def _check_steps_remain(layers: Sequence[LayerSection | None], report: ProblemReport) -> None:
    ending_index: int | None = None
    for index, layer in enumerate(layers):
        if not isinstance(layer, RecurrentLayer | FlattenLayer):
            continue
        if ending_index is not None:
            _report_no_steps(layers[ending_index], ending_index, index, layer.type, report)
        elif isinstance(layer, FlattenLayer) or not layer.return_sequences:
            ending_index = index


def _report_no_steps(
    ending_layer: LayerSection | None,
    ending_index: int,
    index: int,
    kind: str,
    report: ProblemReport,
) -> None:
    path: KeyPath = (*LAYERS, ending_index)
    reads = f"but {format_path((*LAYERS, index))}, {with_article(kind)} layer, reads every step"
    if isinstance(ending_layer, FlattenLayer):
        what, hint = "flattens the steps away", "put the flatten layer after all recurrent ones"
    else:
        path = (*path, "return_sequences")
        what, hint = "is false", f"set `return_sequences: true` in layer {ending_index}"
    report.add(path, f"{format_path(path)} {what}, {reads}", also=[(*LAYERS, index)], hint=hint)


def _check_last(
    layers: Sequence[LayerSection | None], train: TrainSection, report: ProblemReport
) -> None:
    final = FINAL_ACTIVATIONS.get(train.loss)
    if final is None:
        return
    index, last = len(layers) - 1, layers[-1]
    path: KeyPath = (*LAYERS, index)
    if not isinstance(last, DenseLayer):
        kind = last.type if last is not None else "none"
        found = f"{format_path(path)} is {with_article(kind)} layer"
    elif (activation := _name(last.activation)) != final:
        path = (*path, "activation")
        found = f"{format_path(path)} is {activation}"
    else:
        _check_classes(last, index, train, report)
        return
    report.add(
        path,
        f"train.loss is {train.loss}, which needs {with_article(final)} at the end",
        expected=f"a last layer that is dense, with activation {final}",
        found=found,
        also=[("train", "loss")],
        hint=f"end with {{type: dense, units: …, activation: {final}}}, or train with loss: mse",
    )


def _name(activation: Activation | str) -> str:
    return activation if isinstance(activation, str) else activation.name


def _check_classes(
    last: DenseLayer, index: int, train: TrainSection, report: ProblemReport
) -> None:
    units: KeyPath = (*LAYERS, index, "units")
    if train.loss == "cross_entropy" and last.units == 1:
        report.add(
            units,
            f"{format_path(units)} is 1, and a softmax over one unit is always 1",
            expected="a unit for each class",
            hint="set units, or use a sigmoid and loss: binary_cross_entropy",
        )
    weights = train.class_weights
    if train.loss == "cross_entropy" and isinstance(weights, list) and len(weights) != last.units:
        report.add(
            ("train", "class_weights"),
            "train.class_weights does not have a weight for each class",
            expected=f"{last.units} weights, as many as {format_path(units)}",
            found=str(len(weights)),
            also=[units],
        )


def _check_train(train: TrainSection, report: ProblemReport) -> None:
    _check_loss_options(train, report)
    _check_monitor(train, report)
    schedule, optimizer = train.schedule.model_dump(), train.optimizer.model_dump()
    if schedule["warmup_steps"] and schedule["warmup_epochs"]:
        report.add(
            ("train", "schedule", "warmup_steps"),
            "train.schedule has both warmup_steps and warmup_epochs",
            also=[("train", "schedule", "warmup_epochs")],
            hint="remove one of the two",
        )
    if optimizer.get("nesterov") and not optimizer["momentum"]:
        report.add(
            ("train", "optimizer", "nesterov"),
            "train.optimizer.nesterov needs momentum",
            expected="momentum above 0",
            found="0",
            hint="add `momentum: 0.9`",
        )


def _check_loss_options(train: TrainSection, report: ProblemReport) -> None:
    if train.loss in FINAL_ACTIVATIONS:
        return
    for key in ("class_weights", "label_smoothing"):
        if getattr(train, key):
            report.add(
                ("train", key),
                f"train.{key} needs classes, but the loss {train.loss} has none",
                expected=f"loss: {' or '.join(FINAL_ACTIVATIONS)}",
                also=[("train", "loss")],
                hint=f"remove train.{key}, or change train.loss",
            )


def _check_monitor(train: TrainSection, report: ProblemReport) -> None:
    if train.monitor is None:
        return
    metric = train.monitor.removeprefix("val_")
    if metric != train.monitor and train.validation is None:
        report.add(
            ("train", "monitor"),
            f"train.monitor is {train.monitor}, but train.validation is missing",
            hint="add `validation: 0.1`",
        )
    of_classes, of_values = metric in ("accuracy", "auc"), metric in ("mse", "mae")
    if (of_classes and train.loss not in FINAL_ACTIVATIONS) or (
        of_values and train.loss in FINAL_ACTIVATIONS
    ):
        report.add(
            ("train", "monitor"),
            f"train.monitor is {train.monitor}, which is no metric of the loss {train.loss}",
            expected="loss, accuracy or auc" if of_values else "loss, mse or mae",
            also=[("train", "loss")],
        )
