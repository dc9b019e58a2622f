"""What every codec gives and takes: a network in native terms, and where each part of it stood."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lstm_cli.engines.types import Array, Layers, LayerSpec, ZeroStates, with_biases
from lstm_cli.errors import UsageError

TmvaOrder: TypeAlias = Literal["slots", "labels"]
"""Whether TMVA's elements hold what their slot says (today's writer) or what their label says."""


@dataclass(frozen=True)
class ReadOptions:
    """What a file cannot say about itself.

    Attributes
    ----------
    format
        Name of the format; None: recognised by content.
    prefix
        Take only what stands below this prefix of a state dict's names.
    tmva_order
        How to read an ambiguous TMVA file; None: refuse it.
    layers
        Layers of a config that the file is read for: where it does not say in which order its
        own are, it is that of these.
    only, ignore
        Patterns of a state dict's names, such as ``lstm.*``: take only what the first match, and
        nothing that the others match.
    """

    format: str | None = None
    prefix: str | None = None
    tmva_order: TmvaOrder | None = None
    layers: Layers | None = None
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @property
    def selecting(self) -> str | None:
        """The first option that takes a part of a state dict, or None: all of it is taken."""
        given = {"prefix": self.prefix, "only": self.only, "ignore": self.ignore}
        return next((name for name, value in given.items() if value), None)


def patterns(value: str | Iterable[str] | None, name: str) -> tuple[str, ...]:
    """Patterns of names, as a sequence or a text with commas.

    Raises
    ------
    UsageError
        One is empty or no text.
    """
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found: tuple[object, ...] = tuple(parts)
    except TypeError:  # a scalar array has __iter__, and cannot be iterated
        found = (parts,)
    texts = tuple(one.strip() for one in found if isinstance(one, str))
    if len(texts) != len(found) or not all(texts) or not texts:
        raise UsageError(
            f"{name} is no list of patterns",
            expected="names of tensors, in which * stands for anything: lstm.*,fc.*",
            found=repr(value)[:200],
        )
    return texts


@dataclass(frozen=True)
class Stored:
    """A part of a stored tensor, and the block of a native tensor that it gives.

    Attributes
    ----------
    name
        Of the tensor, as the file has it.
    shape, dtype
        Of the whole stored tensor.
    part
        Which part of it, as an index: ``[:, 100:200]``; empty for the whole.
    native
        The native tensor that it gives, such as ``layers.0.weight_ih``.
    block
        The gate's letter there; empty for a tensor that is not by gate.
    change
        What was done to it, in a word or two: ``transposed``, ``added to bias_ih_l0``.
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
    """A network read from a file of any format.

    Attributes
    ----------
    path
        Where it was read from.
    format
        Name of the format: ``native``, ``pytorch``, ``keras``, ``onnx`` or ``tmva``.
    title
        The format in words, with the writer's version where the file says it.
    sha256
        Of the file.
    config
        The config as a mapping in the YAML's words, ``{"model": {...}}``; None if the file
        carries none, and none can be told from its tensors.
    text
        A native file's config as the YAML text it carries.
    halves
        The two biases of an lstm or rnn whose sum stands in `tensors`, where the file has
        both: by native name, such as ``layers.0.bias_ih``.
    tensors
        By native name, in native layout; a half widened to float32.
    stored
        Where every block of `tensors` stood.
    order
        The gate order of the format for each kind of layer, such as ``{"lstm": "i f c o"}``.
    notes
        What was assumed because the file does not say it, and what was left out because it
        changes no output.
    described
        Whether the file itself describes its layers: what it does not mention has the default of
        its format. Else `config` is told from its tensors.
    reading
        How it was read.
    zero_states
        Initial states that the model holds at 0, whatever others it is given: layer and letter
        (``h``, ``c``) to directions, 0 forward and 1 reverse.
    """

    path: Path
    format: str
    title: str
    sha256: str
    config: Mapping[str, Any] | None
    tensors: Mapping[str, Array]
    stored: tuple[Stored, ...] = ()
    order: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    text: str | None = None
    halves: Mapping[str, Array] = field(default_factory=dict)
    described: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    zero_states: ZeroStates = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """A network to be written.

    Attributes
    ----------
    name
        What the model is called; letters of any kind.
    input_size, steps
        Features D it reads; steps T where the config fixes them.
    layers
        Specifications, input to output.
    tensors
        By native name; each the shape its layer wants, finite, float32 or float64.
    config
        The config as YAML text.
    """

    name: str
    input_size: int
    steps: int | None
    layers: tuple[LayerSpec, ...]
    tensors: Mapping[str, Array]
    config: str

    def with_biases(self, indices: Collection[int]) -> Export:
        """This network, zeros written out for the biases that these layers do not have."""
        layers, tensors = list(self.layers), self.tensors
        for k, spec in enumerate(layers):
            if spec.index in indices:
                layers[k], tensors = with_biases(spec, tensors)
        return replace(self, layers=tuple(layers), tensors=tensors)


@dataclass(frozen=True)
class WriteOptions:
    """What a written model takes and gives besides one batch of whole sequences.

    Attributes
    ----------
    lengths
        The model has an input ``lengths`` (N,), the valid steps of each sequence.
    states
        Initial states are inputs of the model, and final states outputs.
    """

    lengths: bool = False
    states: bool = False
