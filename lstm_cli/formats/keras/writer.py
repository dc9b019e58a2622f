"""Writer of Keras 3's files: ``.keras``, and ``.weights.h5`` for a model of the same layers.

Equal networks give equal bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import h5py
import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.types import Array, DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.capabilities import StorableLayer, check_cell, storable_layers
from lstm_cli.formats.gates import (
    KERAS_GATES,
    NATIVE_GATES,
    OPEN_GATE_BIAS,
    lacks_forget_gate,
    open_forget_gate,
    reorder_gates,
)
from lstm_cli.formats.interchange import Export
from lstm_cli.formats.keras.architecture import snake_case
from lstm_cli.formats.keras.options import keras_activation
from lstm_cli.formats.keras.recurrent import CLASSES
from lstm_cli.formats.keras.weights_only import LAYER_ORDER_ATTRIBUTE
from lstm_cli.output_files import HDF5_ATTRIBUTE, SIGNATURE, write_atomically
from lstm_cli.version import __version__

KERAS_VERSION = "3.0.0"
"""Oldest version of Keras that reads the written files; later ones do as well."""
NAMES_PER_ATTRIBUTE = 500
"""Names in one attribute, which HDF5 limits to 64 KiB."""
DATE = (1980, 1, 1, 0, 0, 0)
MASKING_NOTE = (
    "sequences of different lengths: the model computes all steps; Keras needs a Masking layer "
    "before the first layer, or batches of one length"
)
WEIGHTS_ONLY_NOTE = (
    "a .weights.h5 holds no layers and no activations: load_weights wants a model of the same "
    "layers; a .keras file holds both"
)


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a ``.keras`` or ``.weights.h5`` file; the notes name parts with another form in Keras.

    Raises
    ------
    WeightsError
        The name has neither suffix, or Keras lacks an option; the error names the layer.
    LstmCliError
        The file cannot be written. An older file is kept.
    """
    name = path.name.lower()
    if not name.endswith((".keras", ".weights.h5")):
        raise WeightsError(
            f"Keras does not open {path.name} as a file of Keras 3, because of its name",
            expected="a name that ends in .keras (the model) or .weights.h5 (its weights)",
            hint=f"name the file {path.with_suffix('').name}.keras",
        )
    exporter = KerasExporter(export)
    layers = [exporter.layer(spec) for spec in storable_layers(export.layers)]
    data = _weights(layers)
    notes = [*exporter.notes, MASKING_NOTE]
    if name.endswith(".keras"):
        data = _archive(data, _model(export, layers, exporter.dtype))
    else:
        notes.append(WEIGHTS_ONLY_NOTE)
    write_atomically(path, data, "the weights")
    return tuple(dict.fromkeys(notes))


def _model(export: Export, layers: Sequence[ExportedLayer], dtype: str) -> dict[str, Any]:
    """Description of the model."""
    shape = [None, export.steps, export.input_size]
    input_config = {"name": "input_layer", "batch_shape": shape, "dtype": dtype, "sparse": False}
    config = {
        "name": re.sub(r"[^\w.-]+", "_", export.name) or "sequential",
        "trainable": True,
        "dtype": dtype,
        "layers": [
            serialize("InputLayer", input_config),
            *(serialize(layer.kind, layer.config) for layer in layers),
        ],
        "build_input_shape": shape,
    }
    return serialize("Sequential", config) | {
        "module": "keras",
        "build_config": {"input_shape": shape},
    }


def _weights(layers: Sequence[ExportedLayer]) -> bytes:
    """HDF5 file of the weights; unlike Keras's own, it states the order of the layers."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs[HDF5_ATTRIBUTE] = __version__
        file.create_group("vars")
        order = [layer.folder.removeprefix("layers/").encode() for layer in layers]
        group = file.create_group("layers")
        for k in range(0, len(order), NAMES_PER_ATTRIBUTE):
            group.attrs[f"{LAYER_ORDER_ATTRIBUTE}{k // NAMES_PER_ATTRIBUTE}"] = np.array(
                order[k : k + NAMES_PER_ATTRIBUTE]
            )
        for layer in layers:
            file.create_group(f"{layer.folder}/vars")
            for inner, values in layer.variables.items():
                folder = "/".join(part for part in (layer.folder, inner, "vars") if part)
                group = file.require_group(folder)
                for k, value in enumerate(values):
                    group.create_dataset(
                        str(k), data=np.ascontiguousarray(value), track_times=False
                    )
    return buffer.getvalue()


def _archive(weights: bytes, model: dict[str, Any]) -> bytes:
    metadata = {"keras_version": KERAS_VERSION, "date_saved": "1980-01-01@00:00:00"}
    metadata["producer"] = SIGNATURE
    members = {
        "metadata.json": json.dumps(metadata).encode(),
        "config.json": json.dumps(model).encode(),
        "model.weights.h5": weights,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3
            archive.writestr(info, data)
    return buffer.getvalue()


OPENING_ACTIVATIONS = ("sigmoid", "hard_sigmoid", "tanh")


@dataclass(frozen=True)
class ExportedLayer:
    """Layer in Keras's terms.

    Attributes
    ----------
    kind, config
        Class and options in Keras.
    folder
        Path of its variables: ``layers/lstm_1``.
    variables
        Arrays by path below `folder`, such as ``forward_layer/cell``.
    """

    kind: str
    config: dict[str, Any]
    folder: str
    variables: Mapping[str, Sequence[Array]] = field(default_factory=dict)


def serialize(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Serialize a layer as Keras 3 does."""
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": config,
        "registered_name": None,
    }


class KerasExporter:
    """Converts native layers to Keras layers.

    Attributes
    ----------
    notes
        Notes on parts that have another form in Keras.
    """

    def __init__(self, export: Export) -> None:
        self.notes: list[str] = []
        self._tensors = export.tensors
        wide = any(value.dtype == np.float64 for value in export.tensors.values())
        self.dtype = "float64" if wide else "float32"
        self._counts: Counter[str] = Counter()

    def layer(self, spec: StorableLayer) -> ExportedLayer:
        """Convert one layer.

        Raises
        ------
        WeightsError
            Keras lacks an option of the layer; the error names both.
        """
        match spec:
            case RecurrentSpec():
                return self._recurrent(spec)
            case DenseSpec():
                return self._dense(spec)
            case DropoutSpec():
                return self._exported_layer("Dropout", {"rate": spec.rate}, {})
            case FlattenSpec():
                return self._exported_layer("Flatten", {"data_format": "channels_last"}, {})
            case _:
                assert_never(spec)

    def _exported_layer(
        self, kind: str, config: dict[str, Any], variables: Mapping[str, Sequence[Array]]
    ) -> ExportedLayer:
        """Layer with the name that Keras itself would choose."""
        stem = snake_case(kind)
        count = self._counts[stem]
        self._counts[stem] += 1
        name = f"{stem}_{count}" if count else stem
        return ExportedLayer(kind, self._common_config(name) | config, f"layers/{name}", variables)

    def _common_config(self, name: str) -> dict[str, Any]:
        return {"name": name, "trainable": True, "dtype": self.dtype}

    def _dense(self, spec: DenseSpec) -> ExportedLayer:
        weight, *bias = (self._tensor(name) for name in spec.parameters())
        title = f"layer {spec.index} (dense)"
        activation = keras_activation(spec.activation, title, "activation", self.dtype)
        config = {"units": spec.units, "activation": activation, "use_bias": spec.bias}
        return self._exported_layer("Dense", config, {"": (weight.T, *bias)})

    def _recurrent(self, spec: RecurrentSpec) -> ExportedLayer:
        title, kind = f"layer {spec.index} ({spec.kind})", CLASSES[spec.kind]
        configs = [self._config(spec, cell, title) for cell in spec.cells]
        cells = [self._variables(spec, d, title) for d in range(spec.directions)]
        if spec.directions == 1:
            return self._exported_layer(kind, configs[0], {"cell": cells[0]})
        stem = snake_case(kind)
        forward = self._common_config(f"forward_{stem}") | configs[0]
        backward = self._common_config(f"backward_{stem}") | configs[1] | {"go_backwards": True}
        config = {
            "merge_mode": "concat",
            "layer": serialize(kind, forward),
            "backward_layer": serialize(kind, backward),
        }
        variables = {"forward_layer/cell": cells[0], "backward_layer/cell": cells[1]}
        return self._exported_layer("Bidirectional", config, variables)

    def _config(self, spec: RecurrentSpec, cell: Cell, title: str) -> dict[str, Any]:
        check_cell("keras", spec, cell)
        config = {
            "units": cell.hidden_size,
            "activation": keras_activation(cell.activation, title, "activation", self.dtype),
            "use_bias": cell.bias,
            "return_sequences": spec.return_sequences,
            "go_backwards": False,
            "dropout": spec.dropout,
            "recurrent_dropout": spec.recurrent_dropout,
        }
        if spec.kind != "rnn":
            gates = keras_activation(
                cell.recurrent_activation, title, "recurrent_activation", self.dtype
            )
            config["recurrent_activation"] = gates
        if spec.kind == "lstm":
            config["unit_forget_bias"] = spec.bias and spec.forget_bias == 1
        if spec.kind == "gru":
            config["reset_after"] = getattr(cell, "reset_after", True)
        return config

    def _variables(self, spec: RecurrentSpec, direction: int, title: str) -> tuple[Array, ...]:
        """Kernel (D, G * H), recurrent kernel (H, G * H) and bias, gates in Keras's order."""
        cell, prefix = spec.cells[direction], spec.prefix(direction)
        names = ["weight_ih", "weight_hh", *(cell.bias_names if cell.bias else ())]
        tensors = {name: self._tensor(prefix + name) for name in names}
        if lacks_forget_gate(cell):
            if cell.recurrent_activation.name not in OPENING_ACTIVATIONS:
                raise WeightsError(
                    f"{title} has forget_gate: false with gates that never reach 1, which Keras's "
                    "files cannot hold"
                )
            tensors = open_forget_gate(tensors)
            self.notes.append(
                f"{title} has no forget gate: written with one that is always 1 (weights 0, bias "
                f"{OPEN_GATE_BIAS:g})"
            )
        order, new_order = NATIVE_GATES[spec.kind], KERAS_GATES[spec.kind]
        arrays = [reorder_gates(value, order, new_order) for value in tensors.values()]
        if len(arrays) == 2:
            return arrays[0].T, arrays[1].T
        bias = arrays[2]
        if spec.kind == "gru" and getattr(cell, "reset_after", True):
            bias = np.stack(arrays[2:])
        elif spec.kind == "gru":
            bias = (arrays[2].astype(np.float64) + arrays[3]).astype(arrays[2].dtype)
        return arrays[0].T, arrays[1].T, bias

    def _tensor(self, name: str) -> Array:
        return np.asarray(self._tensors[name], self.dtype)
