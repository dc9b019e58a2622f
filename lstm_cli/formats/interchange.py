"""Types that every codec shares: a network in native terms, and the sources of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lstm_cli.engines.types import Array, Layers, LayerSpec, ZeroStates, with_biases
from lstm_cli.errors import UsageError

TmvaOrder: TypeAlias = Literal["slots", "labels"]
"""Meaning of the matrices in a TMVA file: by slot (today's ROOT) or by label (an older ROOT)."""


@dataclass(frozen=True)
class ReadOptions:
    """Facts that a file does not state about itself.

    Attributes
    ----------
    format
        Name of the format; None: detected from the content.
    prefix
        Take only the tensors of a state dict whose names start with this prefix.
    tmva_order
        Order of the matrices in an ambiguous TMVA file; None: refuse it.
    layers
        Layers of a config that goes with the file. They decide the order of the file's layers
        where the file does not state one.
    only, ignore
        Patterns of a state dict's names, such as ``lstm.*``. Take only tensors that `only`
        matches, and none that `ignore` matches.
    """

    format: str | None = None
    prefix: str | None = None
    tmva_order: TmvaOrder | None = None
    layers: Layers | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @property
    def selecting(self) -> str | None:
        """Name of the first option that selects a part of a state dict; None without one."""
        values = {"prefix": self.prefix, "only": self.only, "ignore": self.ignore}
        return next((name for name, value in values.items() if value), None)


def parse_name_patterns(value: str | Iterable[str] | None, name: str) -> tuple[str, ...]:
    """Parse patterns of names from a sequence, or from text with commas.

    Raises
    ------
    UsageError
        A pattern is empty or not a text.
    """
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    try:
        items: tuple[object, ...] = tuple(parts)
    except TypeError:  # a scalar array has __iter__, but iteration fails
        items = (parts,)
    texts = tuple(one.strip() for one in items if isinstance(one, str))
    if len(texts) != len(items) or not all(texts) or not texts:
        raise UsageError(
            f"{name} is not a list of patterns",
            expected="names of tensors, in which * stands for anything: lstm.*,fc.*",
            found=repr(value)[:200],
        )
    return texts


@dataclass(frozen=True)
class TensorSource:
    """Source of one block of a native tensor: a part of a tensor in the file.

    Attributes
    ----------
    name
        Name of the tensor in the file.
    shape, dtype
        Shape and dtype of the whole tensor in the file.
    part
        Index of the part, such as ``[:, 100:200]``; empty for the whole tensor.
    native
        Name of the native tensor, such as ``layers.0.weight_ih``.
    block
        Letter of the gate in the native tensor; empty for a tensor without gates.
    change
        Conversion in a few words: ``transposed``, ``added to bias_ih_l0``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: str
    native: str
    block: str
    change: str = ""


@dataclass(frozen=True)
class Imported:
    """Network that was read from a file of any format.

    Attributes
    ----------
    path
        Path of the file.
    format
        Name of the format: ``native``, ``pytorch``, ``keras``, ``onnx`` or ``tmva``.
    title
        Format in words, with the version of its writer where the file states it.
    sha256
        SHA-256 of the file, in hexadecimal.
    config
        Config as a mapping with the YAML's keys, ``{"model": {...}}``; None if the file
        holds none and its tensors do not determine one.
    text
        YAML text of the config in a native file.
    split_biases
        The two biases of an lstm or rnn, where the file has both, by native name such as
        ``layers.0.bias_ih``. `tensors` has their sum.
    tensors
        Tensors by native name, in native layout; float16 and bfloat16 widened to float32.
    sources
        Sources of all blocks of `tensors`.
    gate_orders
        Gate order of the format for each kind of layer, such as ``{"lstm": "i f c o"}``.
    notes
        Assumptions where the file states nothing, and parts left out that change no output.
    describes_layers
        Whether the file describes its layers: an option that it leaves out has the default of
        its format. Otherwise `config` is inferred from the tensors.
    read_options
        Options with which the file was read.
    zero_states
        Initial states that the model fixes at 0: layer and letter (``h``, ``c``) to
        directions, 0 forward and 1 reverse.
    """

    path: Path
    format: str
    title: str
    sha256: str
    config: Mapping[str, Any] | None
    tensors: Mapping[str, Array]
    sources: tuple[TensorSource, ...] = ()
    gate_orders: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    text: str | None = None
    split_biases: Mapping[str, Array] = field(default_factory=dict)
    describes_layers: bool = False
    read_options: ReadOptions = field(default_factory=ReadOptions)
    zero_states: ZeroStates = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """Network to be written to a file.

    Attributes
    ----------
    name
        Name of the model; any characters.
    input_size, steps
        Number of input features D; number of steps T where the config fixes it.
    layers
        Specifications of the layers, input to output.
    tensors
        Finite tensors by native name, in the shapes of `layers`, float32 or float64.
    config
        Config as YAML text.
    """

    name: str
    input_size: int
    steps: int | None
    layers: tuple[LayerSpec, ...]
    tensors: Mapping[str, Array]
    config: str

    def with_biases(self, indices: Collection[int]) -> Export:
        """Copy of this network in which the layers `indices` have biases of 0."""
        layers, tensors = list(self.layers), self.tensors
        for k, spec in enumerate(layers):
            if spec.index in indices:
                layers[k], tensors = with_biases(spec, tensors)
        return replace(self, layers=tuple(layers), tensors=tensors)


@dataclass(frozen=True)
class WriteOptions:
    """Optional inputs and outputs of a written model.

    Attributes
    ----------
    lengths
        The model has an input ``lengths`` (N,): valid steps of each sequence.
    states
        Initial states are inputs of the model, and final states outputs.
    """

    lengths: bool = False
    states: bool = False
