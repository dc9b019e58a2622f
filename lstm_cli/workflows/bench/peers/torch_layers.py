"""Layers of a network in ``torch.nn``, their trained parameters, and packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from lstm_cli.cells import Cell
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.formats.capabilities import storable_layer, unsupported_options
from lstm_cli.formats.gates import lacks_forget_gate
from lstm_cli.workflows.bench.peers.base import Unsupported
from lstm_cli.workflows.bench.peers.torch_device import TorchDevice
from lstm_cli.workflows.bench.sizes import GridSize

_DENSE = ("identity", "tanh", "relu", "sigmoid", "softmax")
"""Activations of dense layers in ``torch.nn``."""
_OPTIONS = (
    "recurrent_activation", "activation", "cell_activation", "clip", "peepholes",
    "coupled_input_forget", "forget_gate", "reset_after", "projection_size",
)  # fmt: skip
"""Options of a recurrent layer, in the order of messages."""


@dataclass(frozen=True)
class TorchLayer:
    """A layer in PyTorch.

    Attributes
    ----------
    call
        Maps a tensor to a tensor. In a ragged batch it maps a packed sequence to a packed
        sequence, or to a tensor (N, F) if the layer returns no sequences.
    parameters
        Trained parameters by stored name.
    """

    call: Callable[[Any], Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def torch_layer(
    device: TorchDevice,
    spec: LayerSpec,
    weights: Mapping[str, Array],
    size: GridSize,
    *,
    training: bool = False,
) -> TorchLayer:
    """The layer with copies of these weights; with `training` they require gradients.

    Raises
    ------
    Unsupported
        ``torch.nn`` cannot express the layer.
    """
    layer = storable_layer(spec)
    match layer:
        case RecurrentSpec():
            return _recurrent(device, layer, weights, training)
        case DenseSpec():
            return _dense(device, layer, weights, training)
        case DropoutSpec():
            return TorchLayer(lambda x: x)
        case FlattenSpec():
            return _flatten(device.torch, layer, size)
        case _:
            assert_never(layer)


def _flatten(torch: Any, spec: FlattenSpec, size: GridSize) -> TorchLayer:
    missing = max(0, spec.steps - size.steps)
    return TorchLayer(lambda x: torch.nn.functional.pad(x, (0, 0, 0, missing)).flatten(1))


def _dense(
    device: TorchDevice, spec: DenseSpec, weights: Mapping[str, Array], training: bool
) -> TorchLayer:
    name, torch = spec.activation_name, device.torch
    if name not in _DENSE:
        raise Unsupported(f"layer {spec.index}: torch.nn has no {name} for a dense layer")
    parameters = {
        stored: device.weight(weights[stored]).requires_grad_(training)
        for stored in spec.parameters()
    }
    weight, bias = (parameters.get(f"layers.{spec.index}.{part}") for part in ("weight", "bias"))
    function = {
        "identity": lambda x: x,
        "softmax": lambda x: torch.softmax(x, -1),
    }.get(name) or getattr(torch, name)
    return TorchLayer(
        _on_rows(torch, lambda x: function(torch.nn.functional.linear(x, weight, bias))), parameters
    )


def _on_rows(torch: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Apply a function of single steps to tensors and to packed sequences."""
    kind = torch.nn.utils.rnn.PackedSequence

    def call(x: Any) -> Any:
        if not isinstance(x, kind):
            return function(x)
        return kind(function(x.data), x.batch_sizes, x.sorted_indices, x.unsorted_indices)

    return call


def _recurrent(
    device: TorchDevice, spec: RecurrentSpec, weights: Mapping[str, Array], training: bool
) -> TorchLayer:
    for cell in spec.cells:
        _check(spec, cell)
    if len(set(spec.cells)) > 1:
        raise Unsupported(f"layer {spec.index}: torch.nn has one kind of cell for both directions")
    module = _module(device, spec)
    module.load_state_dict(_state(device, spec, weights))
    # PyTorch's second bias of an lstm or rnn is no parameter of this package. Trained, it would
    # repeat the steps of the first bias. It stays 0, without a gradient.
    module.requires_grad_(False)
    module.train(training)
    parameters = {
        stored: getattr(module, torch_name).requires_grad_(training)
        for stored, torch_name in _names(spec).items()
    }
    return TorchLayer(_sequences(module) if spec.return_sequences else _last(module), parameters)


def _sequences(module: Any) -> Callable[[Any], Any]:
    return lambda x: module(x)[0]


def _last(module: Any) -> Callable[[Any], Any]:
    def last(x: Any) -> Any:
        final = module(x)[1]
        h = final[0] if isinstance(final, tuple) else final  # (directions, N, P)
        return h.transpose(0, 1).flatten(1)

    return last


def _module(device: TorchDevice, spec: RecurrentSpec) -> Any:
    cell = spec.cells[0]
    options: dict[str, Any] = {
        "batch_first": True,
        "bidirectional": spec.directions == 2,
        "bias": spec.bias,
    }
    if spec.kind == "lstm":
        options["proj_size"] = getattr(cell, "projection_size", None) or 0
    if spec.kind == "rnn":
        options["nonlinearity"] = cell.activation.name
    kind = getattr(device.torch.nn, spec.kind.upper())
    placement = {"dtype": device.stored, "device": device.device}
    return kind(spec.input_size, spec.hidden_size, **placement, **options)


def _names(spec: RecurrentSpec) -> dict[str, str]:
    """PyTorch's name of every tensor by stored name; gate order and shapes are equal."""
    return {
        spec.prefix(d) + name: ("bias_ih" if name == "bias" else name)
        + ("_l0_reverse" if d else "_l0")
        for d, cell in enumerate(spec.cells)
        for name in cell.tensor_names
    }


def _state(
    device: TorchDevice, spec: RecurrentSpec, weights: Mapping[str, Array]
) -> dict[str, Any]:
    state = {name: device.weight(weights[stored]) for stored, name in _names(spec).items()}
    for name in [name for name in state if name.startswith("bias_ih")]:
        other = name.replace("bias_ih", "bias_hh")
        state.setdefault(other, device.torch.zeros_like(state[name]))
    return state


def _check(spec: RecurrentSpec, cell: Cell) -> None:
    """Raise `Unsupported` for a cell that ``torch.nn`` cannot express."""
    lacks = {
        limit.key: _option_text(limit.key, value)
        for limit, value in unsupported_options("pytorch", spec, cell)
    }
    if lacks_forget_gate(cell):  # a state dict holds it by a bias, which would be other work
        lacks["forget_gate"] = "forget_gate: false"
    if lacks:
        kind = spec.kind.upper()
        options = ", ".join(lacks[key] for key in sorted(lacks, key=_OPTIONS.index))
        raise Unsupported(f"layer {spec.index}: torch.nn.{kind} has no {options}")


def _option_text(key: str, value: Any) -> str:
    if key == "clip":
        return key
    if key == "projection_size":
        return f"projection_size as large as hidden_size ({value})"
    return f"{key}: {str(value).lower()}"


class SequencePacking:
    """Packed sequences, PyTorch's form of ragged batches.

    Sequences are in any order, as in a file. All layers share one packing, as do the layers of
    one ``torch.nn.LSTM``.
    """

    def __init__(self, torch: Any, lengths: Array | None) -> None:
        self._tools = torch.nn.utils.rnn
        self._lengths = None if lengths is None else torch.from_numpy(lengths)

    def packed(self, x: Any) -> Any:
        """Pack (N, T, ...); unchanged where every sequence has all steps."""
        if self._lengths is None:
            return x
        pack = self._tools.pack_padded_sequence
        return pack(x, self._lengths, batch_first=True, enforce_sorted=False)

    def is_packed(self, y: Any) -> bool:
        """Whether `y` is a packed sequence."""
        return isinstance(y, self._tools.PackedSequence)

    def unpacked(self, y: Any, steps: int) -> Any:
        """Unpack to (N, T, F) with 0 in padding; tensors are unchanged."""
        if not self.is_packed(y):
            return y
        return self._tools.pad_packed_sequence(y, batch_first=True, total_length=steps)[0]


def packing_of(torch: Any, layers: Layers, lengths: Array | None) -> SequencePacking:
    """The packing for these lengths.

    Raises
    ------
    Unsupported
        A flatten layer would read a packed sequence.
    """
    if lengths is not None:
        for spec in layers:
            if isinstance(spec, FlattenSpec):
                raise Unsupported(f"layer {spec.index}: flatten does not take packed sequences")
    return SequencePacking(torch, lengths)
