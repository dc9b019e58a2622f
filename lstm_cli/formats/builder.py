"""Builder of a network in native terms, with which every reader of a foreign format ends.

A reader converts stored tensors to native ones (`whole_tensor`, `gate_tensor`, `stack_gates`) and
joins the two directions of a layer (`join_directions`). `NetworkBuilder` takes layer after layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, ZeroStates
from lstm_cli.formats.gates import NATIVE_GATES, reorder_gates
from lstm_cli.formats.interchange import Imported, TensorSource

DIRECTIONS = ("", "reverse.")
"""Prefix of the tensors of each direction: forward, reverse."""
DEFAULTS: Mapping[str, Any] = {
    "bias": True,
    "bidirectional": False,
    "return_sequences": True,
    "stateful": False,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "dropout": 0,
    "recurrent_dropout": 0,
    "reset_after": True,
    "projection_size": None,
    "clip": None,
    "peepholes": False,
    "coupled_input_forget": False,
}
"""Options of a layer that a config leaves out; ``activation`` is that of a recurrent layer."""


@dataclass(frozen=True, eq=False)
class NativeTensor:
    """Tensor in native layout.

    Attributes
    ----------
    sources
        Sources of its blocks; `NetworkBuilder.add` fills in their native name.
    summands
        The biases for the input and for the recurrence, if the file has both.
    """

    values: Array
    sources: tuple[TensorSource, ...] = ()
    summands: tuple[Array, Array] | None = None


Tensors = Mapping[str, NativeTensor]
"""Tensors of a layer or of one direction, by native name without the layer."""


def whole_tensor(
    name: str, values: Array, dtype: str, *, shape: Sequence[int] | None = None, change: str = ""
) -> NativeTensor:
    """Native tensor from one stored tensor as a whole.

    Parameters
    ----------
    name, dtype
        Name and dtype in the file.
    values
        Values in native layout.
    shape
        Shape in the file; None: that of `values`.
    change
        Conversion in a few words; see `TensorSource`.
    """
    stored = tuple(values.shape if shape is None else shape)
    return NativeTensor(values, (TensorSource(name, stored, dtype, "", "", "", change),))


def gate_tensor(
    kind: str,
    order: Sequence[str],
    name: str,
    values: Array,
    dtype: str,
    *,
    transposed: bool = False,
    row: int | None = None,
) -> NativeTensor:
    """Native tensor from a stored tensor that stacks the gates of a layer.

    Parameters
    ----------
    order
        Native letters of the gates, in the file's order.
    name, values, dtype
        Name, values and dtype in the file.
    transposed
        Whether the gates are on the second axis.
    row
        Index on the first axis, for a tensor that holds several others.
    """
    stacked = values.T if transposed else values if row is None else values[row]
    is_native = tuple(order) == NATIVE_GATES[kind] and not transposed
    native = stacked if is_native else reorder_gates(stacked, order, NATIVE_GATES[kind])
    sources = gate_sources(
        name,
        values.shape,
        dtype,
        order,
        axis=int(transposed),
        leading=() if row is None else (row,),
        change="transposed" if transposed else "",
    )
    return NativeTensor(native, sources)


def gate_sources(
    name: str,
    shape: Sequence[int],
    dtype: str,
    order: Sequence[str],
    *,
    axis: int = 0,
    leading: tuple[int, ...] = (),
    offset: int = 0,
    size: int | None = None,
    change: str = "",
) -> tuple[TensorSource, ...]:
    """Sources of the gate blocks of one tensor, a `TensorSource` for each gate.

    Parameters
    ----------
    name, shape, dtype
        Name, shape and dtype of the tensor in the file.
    order
        Native letters of the gates, in the file's order.
    axis
        Axis that stacks the gates, not counting the axes of `leading`.
    leading
        Indices on the first axes, such as ONNX's direction.
    offset, size
        Start of the first gate along `axis`, and length of each gate; None: an equal share of
        the rest of the axis.
    change
        Conversion in a few words; see `TensorSource`.
    """
    if size is None:
        size = (shape[len(leading) + axis] - offset) // len(order)
    starts = [offset + k * size for k in range(len(order))]
    return tuple(
        TensorSource(
            name,
            tuple(shape),
            dtype,
            index_text(start, start + size, axis, leading),
            "",
            letter,
            change,
        )
        for letter, start in zip(order, starts, strict=True)
    )


def index_text(start: int, stop: int, axis: int = 0, leading: Iterable[int] = ()) -> str:
    """Index as text: ``[0:100]``, ``[:, 100:200]``, ``[1, 0:100]``."""
    indices = [*map(str, leading), *[":"] * axis, f"{start}:{stop}"]
    return f"[{', '.join(indices)}]"


def stack_gates(kind: str, blocks: Tensors) -> NativeTensor:
    """Native tensor from the tensor of each gate, by native letter."""
    letters = NATIVE_GATES[kind]
    sources = [replace(s, block=letter) for letter in letters for s in blocks[letter].sources]
    return NativeTensor(np.concatenate([blocks[x].values for x in letters]), tuple(sources))


def rounded_sum(first: Array, second: Array) -> Array:
    """Sum of two biases, computed in float64 and rounded once to their own dtype."""
    with np.errstate(all="ignore"):  # an overflow is refused later, with all values
        return np.asarray(first.astype(np.float64) + second, np.result_type(first, second))


def add_biases(first: NativeTensor, second: NativeTensor) -> NativeTensor:
    """Native bias of an lstm or rnn from the two biases that a file has for it."""
    names = [tensor.sources[0].name for tensor in (first, second)]
    sources = [
        replace(source, change=f"added to {other}")
        for tensor, other in ((first, names[1]), (second, names[0]))
        for source in tensor.sources
    ]
    total = rounded_sum(first.values, second.values)
    return NativeTensor(total, tuple(sources), (first.values, second.values))


def bias_names(kind: str) -> tuple[str, ...]:
    """Native names of the biases: a gru has one for the input and one for the recurrence."""
    return ("bias_ih", "bias_hh") if kind == "gru" else ("bias",)


def is_biased(tensors: Iterable[str]) -> bool:
    """Whether a bias is among the names of a layer's or direction's tensors."""
    return any(name.rpartition(".")[2].startswith("bias") for name in tensors)


def direction_without_bias(directions: Sequence[Tensors]) -> str | None:
    """Name of the only direction without biases, ``forward`` or ``reverse``, else None."""
    biased = [is_biased(tensors) for tensors in directions]
    return None if len(set(biased)) == 1 else ("reverse" if biased[0] else "forward")


def join_directions(kind: str, directions: Sequence[Tensors]) -> dict[str, NativeTensor]:
    """Tensors of a layer from those of its directions.

    If one direction has biases, the other one gets zeros.
    """
    joined: dict[str, NativeTensor] = {}
    biased = any(map(is_biased, directions))
    for prefix, tensors in zip(DIRECTIONS, directions, strict=False):
        joined |= {prefix + name: tensor for name, tensor in tensors.items()}
        zeros = np.zeros(len(tensors["weight_hh"].values), tensors["weight_ih"].values.dtype)
        for name in bias_names(kind) if biased else ():
            joined.setdefault(prefix + name, NativeTensor(zeros))
    return joined


def one_or_each(values: Sequence[Any]) -> Any:
    """Option of a layer from its value in each direction: one value if they are equal."""
    return values[0] if all(value == values[0] for value in values) else list(values)


@dataclass
class NetworkBuilder:
    """Network that grows layer by layer, from input to output.

    Attributes
    ----------
    input_size
        Number of input features D; None until it is known.
    steps
        Number of steps T; None until it is known, or if any number will do.
    size
        Number of features after the last layer; None until it is known.
    has_steps
        Whether the last layer gives every step, not one vector for each sequence.
    layers
        Layers of the config.
    tensors, sources, notes, split_biases
        Fields of `Imported`.
    """

    input_size: int | None = None
    steps: int | None = None
    size: int | None = None
    has_steps: bool = True
    layers: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    sources: list[TensorSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split_biases: dict[str, Array] = field(default_factory=dict)

    def set_input(self, size: int | None) -> None:
        """Set the input size of the next layer; the first one also sets that of the network."""
        if self.input_size is None:
            self.input_size = size
        self.size = size

    def add(self, kind: str, tensors: Tensors | None = None, **options: Any) -> dict[str, Any]:
        """Append a layer; return its config, to which a reader may still add options.

        Sizes, directions and the presence of biases are read from the tensors. Options that are
        equal to the config's defaults are left out.

        Parameters
        ----------
        tensors
            Tensors by native name within the layer, such as ``weight_ih``, ``reverse.bias``.
        options
            Options of the layer as in the config.
        """
        tensors = tensors or {}
        config = {"type": kind, **_sizes(kind, tensors), **options}
        defaults = {**DEFAULTS, "activation": "identity"} if kind == "dense" else DEFAULTS
        config = {k: v for k, v in config.items() if k not in defaults or v != defaults[k]}
        if kind != "dropout":
            self._set_output(config)
        prefix = f"layers.{len(self.layers)}."
        for name, tensor in tensors.items():
            self.tensors[prefix + name] = tensor.values
            if tensor.summands is not None:
                names = (f"{prefix}{name}_ih", f"{prefix}{name}_hh")
                self.split_biases |= zip(names, tensor.summands, strict=True)
            self.sources += [replace(source, native=prefix + name) for source in tensor.sources]
        self.layers.append(config)
        return config

    def _set_output(self, config: Mapping[str, Any]) -> None:
        if config["type"] == "flatten":
            if self.size is not None and self.steps is not None:
                self.size *= self.steps
            self.has_steps = False
        elif config["type"] == "dense":
            self.size = config["units"]
        else:
            width = config.get("projection_size") or config["hidden_size"]
            self.size = width * (2 if config.get("bidirectional") else 1)
            self.has_steps = config.get("return_sequences", True)

    def used_gate_orders(self, orders: Mapping[str, str]) -> dict[str, str]:
        """Gate orders of the kinds of layers in this network, from a format's table."""
        kinds = {layer["type"] for layer in self.layers}
        return {kind: order for kind, order in orders.items() if kind in kinds}

    def finish(
        self,
        path: Path,
        format: str,
        title: str,
        sha256: str,
        gate_orders: Mapping[str, str],
        *,
        describes_layers: bool,
        zero_states: ZeroStates | None = None,
    ) -> Imported:
        """Result of a reader; for the arguments see `Imported`."""
        steps = {} if self.steps is None else {"steps": self.steps}
        model = {"input_size": self.input_size, **steps, "layers": self.layers}
        return Imported(
            path=path,
            format=format,
            title=title,
            sha256=sha256,
            config={"model": model},
            tensors=self.tensors,
            sources=tuple(self.sources),
            gate_orders=gate_orders,
            notes=tuple(self.notes),
            split_biases=self.split_biases,
            describes_layers=describes_layers,
            zero_states=zero_states or {},
        )


def _sizes(kind: str, tensors: Tensors) -> dict[str, Any]:
    """Options that the tensors of a layer show."""
    if kind == "dense":
        return {"units": len(tensors["weight"].values), "bias": is_biased(tensors)}
    if kind not in NATIVE_GATES:
        return {}
    projection = tensors.get("weight_hr")
    return {
        "hidden_size": len(tensors["weight_hh"].values) // len(NATIVE_GATES[kind]),
        "bidirectional": "reverse.weight_ih" in tensors,
        "projection_size": None if projection is None else len(projection.values),
        "bias": is_biased(tensors),
        "peepholes": "peephole" in tensors,
    }
