"""The layers of a config: one pydantic model a kind, its fields the options."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from lstm_cli.cells import Activation
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.config.options import DenseActivation, Directions

LARGEST = 2**24
"""Upper bound of sizes; what is larger is a slip of the keyboard."""

MOST_LAYERS = 500
"""Upper bound of layers: each costs some milliseconds in every command, however small it is."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PerDirection = Annotated[tuple[Activation, ...], Directions]


class Section(BaseModel):
    """A mapping of the config. No unknown keys, no conversions, no NaN, no changes later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )


class RecurrentLayer(Section):
    """What all recurrent layers have."""

    type: str = Field(description="Kind of layer.")
    hidden_size: Size = Field(description="Units H.", examples=[100])
    bidirectional: bool = Field(
        default=False,
        description="Also run from the last step to the first; outputs are concatenated.",
    )
    return_sequences: bool = Field(
        default=True,
        description="Output every step; false: the last valid one only, of the reverse direction "
        "its final state.",
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
        description="Of the candidate: a name, {name, alpha, beta}, or a pair: forward, reverse.",
    )
    dropout: Rate = Field(default=0.0, description="Share of the inputs dropped in training.")
    recurrent_dropout: Rate = Field(
        default=0.0, description="Share of the recurrent values dropped in training."
    )


class LSTMLayer(RecurrentLayer):
    """Long short-term memory."""

    type: Literal["lstm"] = Field(description="Long short-term memory.")
    recurrent_activation: PerDirection = Field(
        default=(SIGMOID,), description="Of the gates i, f and o."
    )
    cell_activation: PerDirection | None = Field(
        default=None, description="Of the cell state on its way out; default: `activation`."
    )
    peepholes: bool = Field(default=False, description="Gates i, f and o see the cell state.")
    projection_size: Size | None = Field(
        default=None, description="Project the output to this many features P; default: none."
    )
    coupled_input_forget: bool = Field(default=False, description="f = 1 - i.")
    forget_gate: bool = Field(
        default=True, description="false: the LSTM before 2000, c = c + i g, which forgets nothing."
    )
    forget_bias: float = Field(
        default=1.0,
        description="Value of the forget gate's bias at initialisation; not with `bias: false`.",
    )

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The default of `forget_bias` stays out of a layer that has no biases."""
        values: dict[str, Any] = handler(self)
        if not self.bias:
            del values["forget_bias"]
        return values


class GRULayer(RecurrentLayer):
    """Gated recurrent unit."""

    type: Literal["gru"] = Field(description="Gated recurrent unit.")
    recurrent_activation: PerDirection = Field(
        default=(SIGMOID,), description="Of the gates r and z."
    )
    reset_after: bool = Field(
        default=True,
        description="Reset after the recurrent product (cuDNN, PyTorch); false: before it.",
    )


class RNNLayer(RecurrentLayer):
    """Simple recurrent layer."""

    type: Literal["rnn"] = Field(description="Simple recurrent layer (Elman).")


class DenseLayer(Section):
    """A matrix, a bias unless it has none, and an activation, on every step alike."""

    type: Literal["dense"] = Field(description="Dense layer, on every step alike.")
    units: Size = Field(description="Outputs.", examples=[9])
    activation: Annotated[Activation | Literal["softmax"], DenseActivation] = Field(
        default=Activation("identity"), description="A name, {name, alpha, beta}, or softmax."
    )
    bias: bool = Field(default=True, description="false: no bias, neither stored nor trained.")


class DropoutLayer(Section):
    """Sets values to zero in training, scaling the rest up."""

    type: Literal["dropout"] = Field(description="Dropout, in training only.")
    rate: Rate = Field(description="Share of the values dropped.", examples=[0.2])


class FlattenLayer(Section):
    """(steps, features) to steps x features; needs ``model.steps``."""

    type: Literal["flatten"] = Field(
        description="All steps' features side by side; needs model.steps."
    )


Layer: TypeAlias = LSTMLayer | GRULayer | RNNLayer | DenseLayer | DropoutLayer | FlattenLayer

LAYERS: dict[str, type[Layer]] = {
    "lstm": LSTMLayer,
    "gru": GRULayer,
    "rnn": RNNLayer,
    "dense": DenseLayer,
    "dropout": DropoutLayer,
    "flatten": FlattenLayer,
}
