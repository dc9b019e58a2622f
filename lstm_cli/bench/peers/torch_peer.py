"""PyTorch: the layers of ``torch.nn``, in inference mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import Run, Unsupported, activations, dtype_of, load_package
from lstm_cli.bench.sizes import Size
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

_Layer = Callable[[Any], Any]

_PLAIN = {"recurrent_activation": "sigmoid", "activation": "tanh", "cell_activation": "tanh"}
_DENSE = ("identity", "tanh", "relu", "sigmoid", "softmax")


class TorchPeer:
    """PyTorch on the CPU.

    Raises
    ------
    DeviceError
        PyTorch is not installed.
    """

    name = "torch"

    def __init__(self) -> None:
        self._torch = load_package("torch", self.name, "pip install torch")
        self.version = str(self._torch.__version__).partition("+")[0]
        self.title = f"PyTorch {self.version}"

    @contextmanager
    def prepare(
        self, layers: Layers, weights: Mapping[str, Array], size: Size, threads: int
    ) -> Iterator[Run]:
        """See `lstm_cli.bench.peers.base.Peer`; the thread count is put back afterwards."""
        torch = self._torch
        stack = [_layer(torch, spec, weights, size) for spec in layers]

        def run(x: Array) -> Array:
            with torch.inference_mode():
                y = torch.from_numpy(x)
                for layer in stack:
                    y = layer(y)
                return np.asarray(y.numpy())

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                # It warns, once a process, where it cannot take its fast way.
                warnings.simplefilter("ignore")
                run(np.zeros((1, size.steps, layers[0].input_size), dtype_of(weights)))
            yield run
        finally:
            torch.set_num_threads(before)


def _layer(torch: Any, spec: LayerSpec, weights: Mapping[str, Array], size: Size) -> _Layer:
    if isinstance(spec, RecurrentSpec):
        return _recurrent(torch, spec, weights)
    if isinstance(spec, DenseSpec):
        return _dense(torch, spec, weights)
    if isinstance(spec, DropoutSpec):
        return lambda x: x
    return _flatten(torch, spec, size)


def _flatten(torch: Any, spec: FlattenSpec, size: Size) -> _Layer:
    missing = max(0, spec.steps - size.steps)
    return lambda x: torch.nn.functional.pad(x, (0, 0, 0, missing)).flatten(1)


def _dense(torch: Any, spec: DenseSpec, weights: Mapping[str, Array]) -> _Layer:
    name = spec.activation_name
    if name not in _DENSE:
        raise Unsupported(f"layer {spec.index}: torch.nn has no {name} for a dense layer")
    weight, bias = (
        torch.from_numpy(weights[f"layers.{spec.index}.{part}"].copy())
        for part in ("weight", "bias")
    )
    function: _Layer = {
        "identity": lambda x: x,
        "softmax": lambda x: torch.softmax(x, -1),
    }.get(name) or getattr(torch, name)
    return lambda x: function(torch.nn.functional.linear(x, weight, bias))


def _recurrent(torch: Any, spec: RecurrentSpec, weights: Mapping[str, Array]) -> _Layer:
    for cell in spec.cells:
        _check(spec, cell)
    if len(set(spec.cells)) > 1:
        raise Unsupported(f"layer {spec.index}: torch.nn has one kind of cell for both directions")
    module = _module(torch, spec, getattr(torch, dtype_of(weights)))
    module.load_state_dict(_state(torch, spec, weights))
    module.eval()
    if spec.return_sequences:
        return lambda x: module(x)[0]

    def last(x: Any) -> Any:
        final = module(x)[1]
        h = final[0] if isinstance(final, tuple) else final  # (directions, N, P)
        return h.transpose(0, 1).flatten(1)

    return last


def _module(torch: Any, spec: RecurrentSpec, dtype: Any) -> Any:
    cell = spec.cells[0]
    options: dict[str, Any] = {"batch_first": True, "bidirectional": spec.directions == 2}
    if spec.kind == "lstm":
        options["proj_size"] = getattr(cell, "projection_size", None) or 0
    if spec.kind == "rnn":
        options["nonlinearity"] = cell.activation.name
    kind = getattr(torch.nn, spec.kind.upper())
    return kind(spec.input_size, spec.hidden_size, dtype=dtype, **options)


def _state(torch: Any, spec: RecurrentSpec, weights: Mapping[str, Array]) -> dict[str, Any]:
    """Native tensors under PyTorch's names; gate order and shapes are the same."""
    state: dict[str, Any] = {}
    for d in range(spec.directions):
        prefix, suffix = spec.prefix(d), "_l0" + ("_reverse" if d else "")
        own = {k: weights[prefix + k] for k in spec.cells[d].tensor_names}
        if "bias" in own:  # PyTorch has two, and adds them
            own["bias_ih"] = own.pop("bias")
            own["bias_hh"] = np.zeros_like(own["bias_ih"])
        state |= {name + suffix: torch.from_numpy(value.copy()) for name, value in own.items()}
    return state


def _check(spec: RecurrentSpec, cell: Cell) -> None:
    """Raise `Unsupported` for what ``torch.nn`` cannot express."""
    lacks = [
        f"{key}: {name}"
        for key, name in activations(cell).items()
        if name not in _allowed(spec.kind, key)
    ]
    if cell.clip is not None:
        lacks.append("clip")
    for option, plain in (
        ("peepholes", False),
        ("coupled_input_forget", False),
        ("use_forget_gate", True),
        ("reset_after", True),
    ):
        if getattr(cell, option, plain) != plain:
            lacks.append(f"{option}: {str(not plain).lower()}".replace("use_", ""))
    projection = getattr(cell, "projection_size", None)
    if projection is not None and projection >= cell.hidden_size:
        lacks.append(f"projection_size as large as hidden_size ({projection})")
    if lacks:
        kind = spec.kind.upper()
        raise Unsupported(f"layer {spec.index}: torch.nn.{kind} has no {', '.join(lacks)}")


def _allowed(kind: str, key: str) -> tuple[str, ...]:
    if kind == "rnn":  # its one gate has no other activation
        return ("tanh", "relu") if key == "activation" else (_PLAIN[key],)
    return (_PLAIN[key],)
