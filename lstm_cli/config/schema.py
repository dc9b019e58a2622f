"""The schema of a config: layers, optimizers, schedules, and the sections of the document.

Every section is a pydantic model, and its fields are the keys that users write.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.json_schema import GenerateJsonSchema

from lstm_cli.cells import CELLS, Activation, Cell
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.config.field_types import (
    Choice,
    DenseActivation,
    KindChoice,
    RecurrentActivation,
    is_number,
    refuse,
    to_yaml_value,
)
from lstm_cli.config.problems import describe_value, did_you_mean, one_of
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.errors import nearest_first
from lstm_cli.network.initializers import SCHEMES
from lstm_cli.output_files import SIGNATURE
from lstm_cli.training import optimizers, schedules
from lstm_cli.training.losses import LOSSES, METRICS
from lstm_cli.training.options import LARGEST, Kind, options

MOST_LAYERS = 500
"""Most layers: each layer costs some milliseconds in every command."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PerDirection = Annotated[tuple[Activation, ...], RecurrentActivation]


class Section(BaseModel):
    """A mapping of the config: immutable, without unknown keys, conversions and NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )


class LayerSection(Section):
    """Options of a layer. A new layer is a class here, and a name in `LAYERS`."""

    type: str = Field(description="Kind of layer.")

    @abstractmethod
    def to_spec(self, index: int, input_size: int, steps: int) -> LayerSpec:
        """The layer that engines compute.

        Parameters
        ----------
        steps
            ``model.steps``; 1 if it is not set.
        """


class RecurrentLayer(LayerSection):
    """Options of all recurrent layers."""

    hidden_size: Size = Field(description="Number of units H.", examples=[100])
    bidirectional: bool = Field(
        default=False,
        description="Also run from the last step to the first; outputs are concatenated.",
    )
    return_sequences: bool = Field(
        default=True,
        description="Output every step; false: the last valid step, and the final state of the "
        "reverse direction.",
    )
    stateful: bool = Field(
        default=False, description="Row j of a batch continues row j of the batch before."
    )
    bias: bool = Field(default=True, description="false: no biases, neither stored nor trained.")
    clip: float | None = Field(
        default=None, gt=0, description="Limit pre-activations to [-clip, clip]; default: no limit."
    )
    activation: PerDirection = Field(
        default=(TANH,),
        description="Candidate's activation: a name, {name, alpha, beta}, or a pair: forward, "
        "reverse.",
    )
    dropout: Rate = Field(default=0.0, description="Share of the inputs dropped in training.")
    recurrent_dropout: Rate = Field(
        default=0.0, description="Share of the recurrent values dropped in training."
    )

    def cell_options(self) -> dict[str, Any]:
        """Options of the cell in `CELLS`, by field; an activation is a tuple by direction."""
        return {
            option.name: getattr(self, option.name)
            for option in fields(CELLS[self.type])
            if option.name in type(self).model_fields
        }

    def _cell(self, direction: int) -> Cell:
        options = {
            name: value[min(direction, len(value) - 1)] if isinstance(value, tuple) else value
            for name, value in self.cell_options().items()
        }
        return CELLS[self.type](**options)

    def to_spec(self, index: int, input_size: int, steps: int) -> RecurrentSpec:
        return RecurrentSpec(
            index,
            input_size,
            tuple(self._cell(direction) for direction in range(2 if self.bidirectional else 1)),
            return_sequences=self.return_sequences,
            stateful=self.stateful,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
        )


class LSTMLayer(RecurrentLayer):
    """Long short-term memory."""

    type: Literal["lstm"] = Field(description="Long short-term memory.")
    recurrent_activation: PerDirection = Field(
        default=(SIGMOID,), description="Activation of the gates i, f and o."
    )
    cell_activation: PerDirection | None = Field(
        default=None,
        description="Activation of the cell state in the output; default: `activation`.",
    )
    peepholes: bool = Field(default=False, description="Gates i, f and o also read the cell state.")
    projection_size: Size | None = Field(
        default=None, description="Project the output to this many features P; default: none."
    )
    coupled_input_forget: bool = Field(
        default=False, description="Compute the forget gate as f = 1 - i."
    )
    forget_gate: bool = Field(
        default=True,
        description="false: no forget gate, c = c + i g, as in the LSTM before 2000.",
    )
    forget_bias: float = Field(
        default=1.0,
        description="Initial value of the forget gate's bias; not with `bias: false`.",
    )

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `forget_bias` out of a layer without biases."""
        values: dict[str, Any] = handler(self)
        if not self.bias:
            del values["forget_bias"]
        return values

    def cell_options(self) -> dict[str, Any]:
        return {
            **super().cell_options(),
            "cell_activation": self.cell_activation or self.activation,
            "use_forget_gate": self.forget_gate,
        }

    def to_spec(self, index: int, input_size: int, steps: int) -> RecurrentSpec:
        spec = super().to_spec(index, input_size, steps)
        return replace(spec, forget_bias=self.forget_bias)


class GRULayer(RecurrentLayer):
    """Gated recurrent unit."""

    type: Literal["gru"] = Field(description="Gated recurrent unit.")
    recurrent_activation: PerDirection = Field(
        default=(SIGMOID,), description="Activation of the gates r and z."
    )
    reset_after: bool = Field(
        default=True,
        description="Reset after the recurrent product (cuDNN, PyTorch); false: before it.",
    )


class RNNLayer(RecurrentLayer):
    """Simple recurrent layer."""

    type: Literal["rnn"] = Field(description="Simple recurrent layer (Elman).")


class DenseLayer(LayerSection):
    """A matrix, an optional bias and an activation, the same on every step."""

    type: Literal["dense"] = Field(description="Dense layer, the same on every step.")
    units: Size = Field(description="Number of outputs.", examples=[9])
    activation: Annotated[Activation | Literal["softmax"], DenseActivation] = Field(
        default=Activation("identity"), description="A name, {name, alpha, beta}, or softmax."
    )
    bias: bool = Field(default=True, description="false: no bias, neither stored nor trained.")

    def to_spec(self, index: int, input_size: int, steps: int) -> DenseSpec:
        activation = None if self.activation == "softmax" else self.activation
        return DenseSpec(index, input_size, self.units, activation, self.bias)


class DropoutLayer(LayerSection):
    """Sets random values to zero in training, and scales the others up."""

    type: Literal["dropout"] = Field(description="Dropout, in training only.")
    rate: Rate = Field(description="Share of the values dropped.", examples=[0.2])

    def to_spec(self, index: int, input_size: int, steps: int) -> DropoutSpec:
        return DropoutSpec(index, input_size, self.rate)


class FlattenLayer(LayerSection):
    """Joins the features of all steps, (T, F) to (T F,); needs ``model.steps``."""

    type: Literal["flatten"] = Field(
        description="Joins the features of all steps; needs model.steps."
    )

    def to_spec(self, index: int, input_size: int, steps: int) -> FlattenSpec:
        return FlattenSpec(index, input_size, steps)


LAYERS: dict[str, type[LayerSection]] = {
    get_args(layer.model_fields["type"].annotation)[0]: layer
    for layer in (LSTMLayer, GRULayer, RNNLayer, DenseLayer, DropoutLayer, FlattenLayer)
}


Positive = Annotated[float, Field(gt=0)]
LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class KindSection(Section):
    """Options of an optimizer or a schedule."""

    type: str = Field(description="Kind.")


def _kind_section(kind: type[Kind]) -> type[KindSection]:
    """The section of an optimizer or a schedule, with a key for each option of its class."""
    keys: dict[str, Any] = {
        key: (annotation, Field(default=option.default, **option.metadata))
        for key, (annotation, option) in options(kind).items()
    }
    keys["type"] = (Literal[kind.name], Field(description=kind.description))
    summary = (kind.__doc__ or "").partition("\n\n")[0]
    name = kind.__name__.removesuffix("Optimizer")
    return create_model(name, __base__=KindSection, __doc__=summary, **keys)


OPTIMIZERS: dict[str, type[KindSection]] = {
    name: _kind_section(kind) for name, kind in optimizers.OPTIMIZERS.items()
}
SCHEDULES: dict[str, type[KindSection]] = {
    name: _kind_section(kind) for name, kind in schedules.SCHEDULES.items()
}


def _check_validation(value: Any) -> Any:
    if (is_number(value) and 0 < value < 1) or (isinstance(value, str) and value):
        return value
    return refuse(
        "is neither a share nor a file",
        expected="a share between 0 and 1, or a path such as words.h5:/test",
        found=describe_value(value),
    )


def _check_class_weights(value: Any) -> Any:
    if value == "balanced":
        return value
    if isinstance(value, str) or not value or not isinstance(value, list | dict):
        refuse(
            "holds no class weights",
            expected="balanced, a list with a weight for each class, or {class: weight}",
            found=describe_value(value),
            hint=did_you_mean(value, ("balanced",)),
        )
    for key, weight in value.items() if isinstance(value, dict) else enumerate(value):
        if not is_number(weight) or weight < 0:
            refuse(
                "is no weight",
                expected="a number, at least 0",
                found=describe_value(weight),
                path=(key,),
            )
    return value


def _check_normalize(value: Any) -> Any:
    if isinstance(value, bool) or value in ("standard", "minmax"):
        return value
    return refuse(
        "has an unknown value",
        expected=one_of(nearest_first(value, ("true", "false", "standard", "minmax"))),
        found=describe_value(value),
        hint=did_you_mean(value, ("standard", "minmax", "true", "false")),
    )


class TrainSection(Section):
    """Options of training."""

    loss: Annotated[str, Choice(LOSSES)] = Field(
        description="Loss that training minimizes.", examples=["cross_entropy"]
    )
    optimizer: Annotated[KindSection, KindChoice(OPTIMIZERS, "adam")] = Field(
        default=OPTIMIZERS["adam"](type="adam"),
        description="Optimizer: its name, or {type, learning_rate, …}; the default type is adam.",
    )
    batch_size: Size = Field(default=32, description="Sequences per batch.")
    micro_batches: Size = Field(
        default=1,
        description="Parts that each batch is computed in, whose gradients are added.",
    )
    epochs: Size = Field(default=50, description="Passes over the data.")
    schedule: Annotated[KindSection, KindChoice(SCHEDULES, "constant")] = Field(
        default=SCHEDULES["constant"](type="constant"),
        description="Course of the learning rate: a name, or {type, …}; the default type is "
        "constant.",
    )
    validation: Annotated[float | str | None, BeforeValidator(_check_validation)] = Field(
        default=None,
        description="Share of the sequences held out, or FILE.h5:/group relative to this file (in "
        "--set to the working directory).",
    )
    monitor: Annotated[str, Choice((*METRICS, *(f"val_{name}" for name in METRICS)))] | None = (
        Field(
            default=None,
            description="Metric of the best epoch; default: val_loss, or loss without validation.",
        )
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
        """Scaling of the features: `normalize` without its booleans."""
        if isinstance(self.normalize, bool):
            return "standard" if self.normalize else None
        return self.normalize


INIT_SCHEMES = tuple(SCHEMES)

EXAMPLE = {"input_size": 12, "layers": [{"type": "lstm", "hidden_size": 100}]}
DatasetName = Annotated[str, Field(min_length=1)]


class InitSection(Section):
    """Initialization of weights that are not loaded."""

    scheme: Annotated[str, Choice(INIT_SCHEMES)] = Field(
        default="glorot_uniform", description="Initialization of the matrices."
    )
    seed: Seed = Field(default=0, description="Seed of the initial weights.")


class ModelSection(Section):
    """The network."""

    input_size: Size = Field(description="Features D of each step.", examples=[12])
    layers: list[Annotated[LayerSection, KindChoice(LAYERS)]] = Field(
        min_length=1,
        max_length=MOST_LAYERS,
        description="The layers, from input to output.",
        examples=[[{"type": "lstm", "hidden_size": 100}]],
    )
    steps: Size | None = Field(
        default=None,
        description="Fixed number of steps T, which flatten needs; shorter sequences are padded.",
    )
    init: InitSection = Field(default=InitSection(), description="Initialization of the weights.")

    def to_specs(self) -> tuple[LayerSpec, ...]:
        """The layers in order, each of which reads the outputs of the one before.

        The config must have passed `lstm_cli.config.checks.check_config`.
        """
        specs: list[LayerSpec] = []
        size = self.input_size
        for index, layer in enumerate(self.layers):
            spec = layer.to_spec(index, size, self.steps or 1)
            specs.append(spec)
            size = spec.output_size
        return tuple(specs)


class WindowSection(Section):
    """Windows of every sequence; none crosses the end of a sequence."""

    length: Size = Field(description="Steps of a window.", examples=[64])
    stride: Size = Field(default=1, description="Steps from one window's start to the next one's.")
    horizon: int = Field(
        default=1,
        ge=0,
        le=LARGEST,
        description="The first target lies this many steps after a window's last step; "
        "0 is the last step itself.",
    )
    predict: Size = Field(
        default=1, description="Consecutive steps that the targets cover, flattened step by step."
    )


class DataSection(Section):
    """Names of datasets, layout and windows of the HDF5 file; default: recognized."""

    inputs: DatasetName | None = Field(default=None, description="Dataset of the input sequences.")
    targets: DatasetName | None = Field(default=None, description="Dataset of the targets.")
    lengths: DatasetName | None = Field(default=None, description="Dataset of the lengths, (N,).")
    offsets: DatasetName | None = Field(
        default=None, description="Dataset of the offsets, (N + 1,)."
    )
    mask: DatasetName | None = Field(default=None, description="Dataset of the mask, (N, T).")
    layout: Literal["dense", "concatenated", "vlen", "groups", "series"] | None = Field(
        default=None, description="Layout of the file; default: recognized from its datasets."
    )
    window: WindowSection | None = Field(
        default=None, description="Cut every sequence into windows."
    )
    transpose: bool | None = Field(
        default=None,
        description="Stored axes are reversed (MATLAB, Octave, Julia, Fortran, R); "
        "default: no, and a file with a mark of reversed axes is refused.",
    )


class ConfigDocument(Section):
    """A config of lstm-cli."""

    model: ModelSection = Field(description="The layers and their inputs.", examples=[EXAMPLE])
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="Weights file, relative to this file (in --set to the working directory).",
    )
    data: DataSection = Field(default=DataSection(), description="Datasets of the HDF5 file.")
    train: TrainSection | None = Field(default=None, description="How the network is trained.")


class _Generator(GenerateJsonSchema):
    """Generator of the JSON Schema that writes defaults as users write them."""

    def encode_default(self, dft: Any) -> Any:
        return super().encode_default(
            to_yaml_value(dft) if isinstance(dft, tuple | Activation) else dft
        )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config, with descriptions, for editors."""
    schema = ConfigDocument.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": SIGNATURE,
        **schema,
        "title": "lstm-cli config",
    }
