"""The section `train`: loss, optimiser, schedule and what surrounds the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from lstm_cli.config.layers import LARGEST, Rate, Section, Size
from lstm_cli.config.options import BareName, is_number, refuse
from lstm_cli.config.words import did_you_mean, either, shown
from lstm_cli.errors import nearest_first

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]

Loss: TypeAlias = Literal["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"]
Monitor: TypeAlias = Literal[
    "loss", "accuracy", "auc", "mse", "mae",
    "val_loss", "val_accuracy", "val_auc", "val_mse", "val_mae",
]  # fmt: skip


class Optimizer(Section):
    """What every optimiser has."""

    type: str = Field(description="Kind of optimiser.")
    learning_rate: Positive = Field(default=0.001, description="Step size.")
    weight_decay: NotNegative = Field(
        default=0.0,
        description="Weights shrink by learning_rate x this each step, apart from the gradient.",
    )
    l1: NotNegative = Field(
        default=0.0, description="This x sign(weight) is added to the gradient."
    )
    l2: NotNegative = Field(default=0.0, description="This x weight is added to the gradient.")


class SGD(Optimizer):
    """Stochastic gradient descent."""

    type: Literal["sgd"] = Field(description="Gradient descent, with momentum if asked for.")
    learning_rate: Positive = Field(default=0.01, description="Step size.")
    momentum: Rate = Field(default=0.0, description="Share of the last step that is kept.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum; needs momentum.")


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015)."""

    type: Literal["adam"] = Field(description="Adam.")
    beta1: Rate = Field(default=0.9, description="Decay of the mean of gradients.")
    beta2: Rate = Field(default=0.999, description="Decay of the mean of squared gradients.")
    epsilon: Positive = Field(default=1e-8, description="Added to the root in the denominator.")


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"] = Field(  # type: ignore[assignment]
        description="Adam with weight decay apart from the gradient."
    )
    weight_decay: NotNegative = Field(
        default=0.01,
        description="Weights shrink by learning_rate x this each step, apart from the gradient.",
    )


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012)."""

    type: Literal["rmsprop"] = Field(description="RMSprop.")
    rho: Rate = Field(default=0.9, description="Decay of the mean of squared gradients.")
    momentum: Rate = Field(default=0.0, description="Share of the last step that is kept.")
    epsilon: Positive = Field(default=1e-8, description="Added to the root in the denominator.")


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011)."""

    type: Literal["adagrad"] = Field(description="Adagrad.")
    learning_rate: Positive = Field(default=0.01, description="Step size.")
    epsilon: Positive = Field(default=1e-10, description="Added to the root in the denominator.")


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012)."""

    type: Literal["adadelta"] = Field(description="Adadelta.")
    learning_rate: Positive = Field(default=1.0, description="Factor of each step.")
    rho: Rate = Field(default=0.95, description="Decay of the means.")
    epsilon: Positive = Field(default=1e-6, description="Added to both means.")


OPTIMIZERS: dict[str, type[Section]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
}


class Schedule(Section):
    """What every schedule has: a linear rise of the learning rate at the start."""

    type: str = Field(description="Kind of schedule.")
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=LARGEST,
        description="Updates in which the rate rises from 0; not with epochs.",
    )
    warmup_epochs: int = Field(
        default=0,
        ge=0,
        le=LARGEST,
        description="Epochs in which the rate rises from 0; not with steps.",
    )


class ConstantSchedule(Schedule):
    """The learning rate as it is."""

    type: Literal["constant"] = Field(description="The rate stays.")


class StepSchedule(Schedule):
    """A factor every so many epochs."""

    type: Literal["step"] = Field(description="The rate is multiplied every so many epochs.")
    every: Size = Field(default=10, description="Epochs between two changes.")
    factor: float = Field(default=0.1, gt=0, le=1, description="Factor of each change.")


class ExponentialSchedule(Schedule):
    """A factor each epoch."""

    type: Literal["exponential"] = Field(description="The rate is multiplied after each epoch.")
    factor: float = Field(default=0.95, gt=0, le=1, description="Factor of each epoch.")


class CosineSchedule(Schedule):
    """Half a cosine from the learning rate to its minimum."""

    type: Literal["cosine"] = Field(description="The rate follows half a cosine to its minimum.")
    epochs: Size | None = Field(default=None, description="Length; default: all epochs of the run.")
    minimum: NotNegative = Field(default=0.0, description="Learning rate at the end.")


class PlateauSchedule(Schedule):
    """A factor whenever the monitored value has stopped improving."""

    type: Literal["reduce_on_plateau"] = Field(
        description="The rate is multiplied when `monitor` stops improving."
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="Factor of each change.")
    patience: Size = Field(default=5, description="Epochs without improvement that are waited for.")
    minimum: NotNegative = Field(default=0.0, description="The rate goes no lower.")


SCHEDULES: dict[str, type[Section]] = {
    "constant": ConstantSchedule,
    "step": StepSchedule,
    "exponential": ExponentialSchedule,
    "cosine": CosineSchedule,
    "reduce_on_plateau": PlateauSchedule,
}


def _check_validation(value: Any) -> Any:
    if (is_number(value) and 0 < value < 1) or (isinstance(value, str) and value):
        return value
    return refuse(
        "is neither a share nor a file",
        expected="a share between 0 and 1, or a path such as words.h5:/test",
        found=shown(value),
    )


def _check_class_weights(value: Any) -> Any:
    if value == "balanced":
        return value
    if isinstance(value, str) or not value or not isinstance(value, list | dict):
        refuse(
            "does not weight classes",
            expected="balanced, a list with a weight for each class, or {class: weight}",
            found=shown(value),
            hint=did_you_mean(value, ("balanced",)),
        )
    for key, weight in value.items() if isinstance(value, dict) else enumerate(value):
        if not is_number(weight) or weight < 0:
            refuse(
                "is no weight",
                expected="a number, at least 0",
                found=shown(weight),
                path=(key,),
            )
    return value


def _check_normalize(value: Any) -> Any:
    if isinstance(value, bool) or value in ("standard", "minmax"):
        return value
    return refuse(
        "has an unknown value",
        expected=either(nearest_first(value, ("true", "false", "standard", "minmax"))),
        found=shown(value),
        hint=did_you_mean(value, ("standard", "minmax", "true", "false")),
    )


class TrainSection(Section):
    """How the network is trained."""

    loss: Loss = Field(description="What is minimised.", examples=["cross_entropy"])
    optimizer: Annotated[
        Annotated[SGD | Adam | AdamW | RMSprop | Adagrad | Adadelta, Field(discriminator="type")],
        BareName(tuple(OPTIMIZERS), "adam"),
    ] = Field(
        default=Adam(type="adam"),
        description="Optimiser: its name, or {type, learning_rate, …}; without a type it is adam.",
    )
    batch_size: Size = Field(default=32, description="Sequences in a batch.")
    epochs: Size = Field(default=50, description="Passes over the data.")
    schedule: Annotated[
        Annotated[
            ConstantSchedule | StepSchedule | ExponentialSchedule | CosineSchedule
            | PlateauSchedule,
            Field(discriminator="type"),
        ],
        BareName(tuple(SCHEDULES), "constant"),
    ] = Field(
        default=ConstantSchedule(type="constant"),
        description="Course of the learning rate: a name, or {type, …}; without a type constant.",
    )  # fmt: skip
    validation: Annotated[float | str | None, BeforeValidator(_check_validation)] = Field(
        default=None,
        description="Share of the sequences held out, or FILE.h5:/group relative to this file, in "
        "--set to where it is typed.",
    )
    monitor: Monitor | None = Field(
        default=None,
        description="What picks the best epoch; default: val_loss, or loss if none is held out.",
    )
    patience: Size | None = Field(
        default=None, description="Stop after this many epochs without improvement; default: never."
    )
    clip_norm: Positive | None = Field(
        default=None, description="Scale the gradient down to at most this norm."
    )
    clip_value: Positive | None = Field(
        default=None, description="Limit each gradient to [-value, value]."
    )
    truncate: Size | None = Field(
        default=None, description="Backpropagate through at most this many steps; default: all."
    )
    class_weights: Annotated[
        Literal["balanced"] | list[float] | dict[str | int, float] | None,
        BeforeValidator(_check_class_weights),
    ] = Field(default=None, description="balanced, a weight for each class, or {class: weight}.")
    label_smoothing: Rate = Field(
        default=0.0, description="Share of each target spread over all classes."
    )
    normalize: Annotated[
        bool | Literal["standard", "minmax"], BeforeValidator(_check_normalize)
    ] = Field(
        default=False, description="Scale each feature by the training data; true is standard."
    )
    seed: Seed = Field(default=0, description="Seed of shuffling, dropout and held-out sequences.")

    @property
    def scaling(self) -> Literal["standard", "minmax"] | None:
        """How features are scaled: `normalize` with its booleans resolved."""
        if isinstance(self.normalize, bool):
            return "standard" if self.normalize else None
        return self.normalize
