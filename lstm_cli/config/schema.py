"""The schema of a config: the whole document and the sections `model` and `data`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema

from lstm_cli.cells import Activation
from lstm_cli.config.layers import LARGEST, MOST_LAYERS, Layer, Section, Size
from lstm_cli.config.options import written
from lstm_cli.config.train import Seed, TrainSection
from lstm_cli.overwriting import SIGNATURE

InitScheme: TypeAlias = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "orthogonal", "uniform",
    "xavier", "xavier_uniform", "gauss", "zero", "identity",
]  # fmt: skip
INIT_SCHEMES: tuple[str, ...] = get_args(InitScheme)

EXAMPLE = {"input_size": 12, "layers": [{"type": "lstm", "hidden_size": 100}]}
DatasetName = Annotated[str, Field(min_length=1)]


class InitSection(Section):
    """How weights begin where none are loaded."""

    scheme: InitScheme = Field(
        default="glorot_uniform", description="Initialisation of the matrices."
    )
    seed: Seed = Field(default=0, description="Seed of the initial weights.")


class ModelSection(Section):
    """The network."""

    input_size: Size = Field(description="Features D of each step.", examples=[12])
    layers: list[Annotated[Layer, Field(discriminator="type")]] = Field(
        min_length=1,
        max_length=MOST_LAYERS,
        description="The layers, from input to output.",
        examples=[[{"type": "lstm", "hidden_size": 100}]],
    )
    steps: Size | None = Field(
        default=None,
        description="Fixed number of steps T, which flatten needs; shorter ones are padded.",
    )
    init: InitSection = Field(default=InitSection(), description="Initialisation of the weights.")


class WindowSection(Section):
    """How every sequence is cut into windows; none crosses the end of a sequence."""

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
    """Names of the datasets in the HDF5 file, where they are not found by themselves."""

    inputs: DatasetName | None = Field(default=None, description="Dataset of the input sequences.")
    targets: DatasetName | None = Field(default=None, description="Dataset of the targets.")
    lengths: DatasetName | None = Field(default=None, description="Dataset of the lengths, (N,).")
    offsets: DatasetName | None = Field(
        default=None, description="Dataset of the offsets, (N + 1,)."
    )
    mask: DatasetName | None = Field(default=None, description="Dataset of the mask, (N, T).")
    layout: Literal["dense", "concatenated", "vlen", "groups", "series"] | None = Field(
        default=None, description="Layout of the file; default: recognised."
    )
    window: WindowSection | None = Field(
        default=None, description="Windows that sequences are cut into."
    )
    transpose: bool | None = Field(
        default=None,
        description="Axes are reversed as stored (MATLAB, Octave, Julia, Fortran, R); "
        "default: no, and a file that says so is refused.",
    )


class Document(Section):
    """A config of lstm-cli."""

    model: ModelSection = Field(description="The layers and what they read.", examples=[EXAMPLE])
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="Weights file, relative to this file, in --set to where it is typed.",
    )
    data: DataSection = Field(
        default=DataSection(), description="What the HDF5 file's datasets are."
    )
    train: TrainSection | None = Field(default=None, description="How the network is trained.")


class _Generator(GenerateJsonSchema):
    """Writes defaults as a user would."""

    def encode_default(self, dft: Any) -> Any:
        return super().encode_default(written(dft) if isinstance(dft, tuple | Activation) else dft)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config, with descriptions, for editors."""
    schema = Document.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": SIGNATURE,
        **schema,
        "title": "lstm-cli config",
    }
