"""Writing Keras 3's files: ``.keras``, and ``.weights.h5`` for a model of the same layers.

The same network gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.bare import ORDER_ATTRIBUTE
from lstm_cli.formats.keras.exported import Exporter, Written, serialised
from lstm_cli.formats.model import Export
from lstm_cli.output_files import HDF5_ATTRIBUTE, SIGNATURE, write_atomically
from lstm_cli.version import __version__

VERSION = "3.0.0"
"""The oldest Keras that reads what is written; every later one does as well."""
NAMES = 500
"""Names in one attribute, which HDF5 bounds at 64 KiB."""
DATE = (1980, 1, 1, 0, 0, 0)
MASKING = (
    "sequences of different lengths: the model computes all steps; Keras needs a Masking layer "
    "in front, or batches of one length"
)
BARE = (
    "a .weights.h5 holds no layers and no activations: load_weights wants a model of the same "
    "layers; a .keras file holds both"
)


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a ``.keras`` or ``.weights.h5`` file; what Keras has in another form, as notes.

    Raises
    ------
    WeightsError
        A name that says neither, or an option that Keras has not: names the layer.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    name = path.name.lower()
    if not name.endswith((".keras", ".weights.h5")):
        raise WeightsError(
            f"Keras opens no file of the name {path.name} as what lstm-cli writes",
            expected="a name that ends in .keras (the model) or .weights.h5 (its weights)",
            hint=f"write {path.with_suffix('').name}.keras",
        )
    exporter = Exporter(export)
    layers = [exporter.layer(spec) for spec in export.layers]
    data = _weights(layers)
    notes = [*exporter.notes, MASKING]
    if name.endswith(".keras"):
        data = _archive(data, _model(export, layers, exporter.dtype))
    else:
        notes.append(BARE)
    write_atomically(path, data, "the weights")
    return tuple(dict.fromkeys(notes))


def _model(export: Export, layers: Sequence[Written], dtype: str) -> dict[str, Any]:
    """The model's description."""
    shape = [None, export.steps, export.input_size]
    given = {"name": "input_layer", "batch_shape": shape, "dtype": dtype, "sparse": False}
    config = {
        "name": re.sub(r"[^\w.-]+", "_", export.name) or "sequential",
        "trainable": True,
        "dtype": dtype,
        "layers": [
            serialised("InputLayer", given),
            *(serialised(layer.kind, layer.config) for layer in layers),
        ],
        "build_input_shape": shape,
    }
    return serialised("Sequential", config) | {
        "module": "keras",
        "build_config": {"input_shape": shape},
    }


def _weights(layers: Sequence[Written]) -> bytes:
    """The HDF5 file; beside what Keras writes, it says in which order the layers are."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs[HDF5_ATTRIBUTE] = __version__
        file.create_group("vars")
        order = [layer.folder.removeprefix("layers/").encode() for layer in layers]
        group = file.create_group("layers")
        for k in range(0, len(order), NAMES):
            group.attrs[f"{ORDER_ATTRIBUTE}{k // NAMES}"] = np.array(order[k : k + NAMES])
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
    metadata = {"keras_version": VERSION, "date_saved": "1980-01-01@00:00:00"}
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
