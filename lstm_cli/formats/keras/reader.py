"""Reader of Keras's files: ``.keras``, ``.weights.h5`` and legacy ``.h5``."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lstm_cli.engines.types import Layers, RecurrentSpec
from lstm_cli.errors import WeightsError, memory_error, shortened
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.keras.architecture import (
    MAX_LAYERS,
    KerasLayer,
    NamedVariables,
    PathVariables,
    VariableSource,
    list_layers,
)
from lstm_cli.formats.keras.network_builder import (
    INPUT_SHAPE_KEYS,
    KerasNetworkBuilder,
    check_kinds,
)
from lstm_cli.formats.keras.options import (
    DEFAULTS,
    NEWEST_RELEASE,
    Release,
    find_release,
    keras_1_error,
)
from lstm_cli.formats.keras.recurrent import GATE_ORDERS, KINDS
from lstm_cli.formats.keras.weights_only import has_variable_paths, layers_by_name, layers_by_path
from lstm_cli.formats.limits import member_bytes, open_archive, read_whole
from lstm_cli.hdf5.image import Hdf5Tree

WEIGHTS = "model.weights.h5"
CONFIG_FIRST_HINT = "the config comes before the data: lstm-cli run CONFIG DATA"
MAX_DESCRIPTION_BYTES = 16 << 20
"""Bytes of the largest JSON description; its objects need many times as many."""


def read(path: Path, options: ReadOptions) -> Imported:
    """Read a model, or its weights alone, of Keras 2 or 3.

    Raises
    ------
    WeightsError
        The file is missing, damaged or hostile, or lstm-cli cannot represent the model; the
        error names the layer and the option.
    """
    data = read_whole(path)
    try:
        layers = options.layers
        is_archive = data.startswith(b"PK")
        builder, title = _read_archive(path, layers) if is_archive else _read_hdf5(data, layers)
        network = builder.complete()
    except WeightsError as error:
        problems = [replace(p, where=(*p.where, str(path))) for p in error.problems]
        raise WeightsError(problems, headline=error.headline) from None
    except MemoryError as error:
        raise memory_error(str(path)) from error
    except RecursionError as error:
        raise WeightsError(
            f"the model in {path} is nested too deep", found=type(error).__name__
        ) from None
    sha256 = hashlib.sha256(data).hexdigest()
    return network.finish(
        path,
        "keras",
        title,
        sha256,
        dict(GATE_ORDERS),
        describes_layers=builder.describes_layers,
    )


def _read_archive(path: Path, layers: Layers | None) -> tuple[KerasNetworkBuilder, str]:
    with open_archive(path) as archive:
        names = archive.namelist()
        tree = _tree(member_bytes(archive, _weights_name(names)))
        if "config.json" not in names:
            return _read_weights_only(tree, layers)
        model = _parse_json(_member(archive, "config.json"), "config.json")
        metadata = _metadata(archive, names)
    version = metadata.get("keras_version")
    return _read_model(
        model, tree, version if isinstance(version, str) else None, PathVariables(tree)
    )


def _weights_name(names: Sequence[str]) -> str:
    candidates = [name for name in names if name.endswith(".weights.h5")]
    if WEIGHTS in candidates or len(candidates) != 1:
        return WEIGHTS
    return candidates[0]


def _metadata(archive: zipfile.ZipFile, names: Sequence[str]) -> Mapping[str, Any]:
    if "metadata.json" not in names:
        return {}
    metadata = _parse_json(_member(archive, "metadata.json"), "metadata.json")
    return metadata if isinstance(metadata, Mapping) else {}


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    return member_bytes(archive, name, MAX_DESCRIPTION_BYTES)


def _parse_json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise WeightsError(f"{name} is not JSON", found=shortened(found)) from None


def _read_hdf5(data: bytes, layers: Layers | None) -> tuple[KerasNetworkBuilder, str]:
    try:
        tree = _tree(data)
    except WeightsError as error:  # the file may not be from Keras
        raise WeightsError(
            [replace(p, hint=p.hint or CONFIG_FIRST_HINT) for p in error.problems]
        ) from None
    root = "model_weights/" if "model_weights" in tree else ""
    description = tree.text("", "model_config")
    if description is None:
        return _read_weights_only(tree, layers, root)
    if len(description) > MAX_DESCRIPTION_BYTES:
        raise WeightsError("model_config is too large", found=f"{len(description):,} characters")
    version = tree.text("", "keras_version") or tree.text(root.rstrip("/"), "keras_version")
    return _read_model(
        _parse_json(description, "model_config"), tree, version, NamedVariables(tree, root)
    )


def _read_model(
    model: Any, tree: Hdf5Tree, version: str | None, source: VariableSource
) -> tuple[KerasNetworkBuilder, str]:
    """Read a model whose description is in the file."""
    is_keras_3 = isinstance(model, Mapping) and "module" in model
    layers, keras_release = list_layers(model), find_release(version, today=is_keras_3)
    if not keras_release.is_known and any(_is_of_keras_1(layer) for layer in layers):
        raise keras_1_error("of Keras 1")
    check_kinds(layers)
    builder = KerasNetworkBuilder(source, keras_release, describes_layers=True)
    if layers and not any(key in layers[0].options.values for key in INPUT_SHAPE_KEYS):
        builder.set_input_shape(_built_shape(model))
    for layer in layers:
        builder.add(layer)
    if any(path.startswith(("optimizer", "_optimizer")) for path in tree.datasets()):
        builder.notes.append("the optimizer's state is left out")
    return builder, f"Keras {shortened(version)} model" if version else "Keras model"


def _built_shape(model: Mapping[str, Any]) -> Any:
    config = model.get("config")
    return config.get("build_input_shape") if isinstance(config, Mapping) else None


def _is_of_keras_1(layer: KerasLayer) -> bool:
    # Keras 1 had output_dim for units.
    values = layer.options.values
    has_units = layer.kind in KINDS or layer.kind == "Dense"
    return has_units and "output_dim" in values and "units" not in values


def _read_weights_only(
    tree: Hdf5Tree, config_layers: Layers | None, root: str = ""
) -> tuple[KerasNetworkBuilder, str]:
    """Read a file that has weights and no description."""
    if has_variable_paths(tree):
        layers, notes, source = layers_by_path(tree, config_layers)
        keras_release = NEWEST_RELEASE
    elif tree.texts(root.rstrip("/"), "layer_names") is not None:
        version = tree.text("", "keras_version") or tree.text(root.rstrip("/"), "keras_version")
        keras_release = find_release(version, today=False)
        layers, notes, source = layers_by_name(tree, root, config_layers)
    else:
        raise WeightsError(
            "the HDF5 file holds no weights of Keras",
            expected="model_config, layer_names, or layers/.../vars",
            hint=CONFIG_FIRST_HINT,
        )
    if len(layers) > MAX_LAYERS:
        raise WeightsError(f"the file has more than {MAX_LAYERS:,} layers")
    builder = KerasNetworkBuilder(source, keras_release, describes_layers=False)
    for layer in layers:
        builder.add(layer)
    gates = keras_release.default("recurrent_activation")
    builder.notes += [*notes, *_assumption_notes(layers, builder.network.layers, gates)]
    builder.notes += _other_default_notes(config_layers or (), keras_release)
    return builder, "Keras weights, without the model"


def _other_default_notes(config_layers: Layers, keras_release: Release) -> list[str]:
    """Notes on layers of a config that differ from the defaults of Keras before 2.3."""
    old_default = DEFAULTS["recurrent_activation"][0]
    if old_default not in keras_release.possible_defaults("recurrent_activation"):
        return []
    certain = len(keras_release.possible_defaults("recurrent_activation")) == 1
    which = (
        f"{keras_release.title}, which wrote the file,"
        if certain
        else "Keras before 2.3 and TensorFlow 1"
    )
    return [
        f"layer {spec.index} of the config has recurrent_activation: {activation}; the default of "
        f"{which} was {old_default.value}: recurrent_activation: {old_default.value} in the "
        f"config, unless the model {'set another' if certain else 'is newer'}"
        for spec in config_layers
        if isinstance(spec, RecurrentSpec)
        and spec.kind != "rnn"
        and (activation := str(spec.cells[0].recurrent_activation)) != old_default.value
    ]


def _assumption_notes(
    layers: Sequence[KerasLayer], config: Sequence[Mapping[str, Any]], gates: str
) -> list[str]:
    """Notes on facts that a file without a description lacks, and on how to set them."""
    dense = [k for k, layer in enumerate(config) if layer["type"] == "dense"]
    notes = _recurrent_notes(config, gates)
    notes += [
        f"layer {k} (dense) is assumed to have no activation; "
        f"--set model.layers.{k}.activation=softmax sets one"
        for k in dense
        if "activation" not in config[k]
    ]
    notes += [
        f"{layer.title} is left out: the file does not state its function"
        for layer in layers
        if layer.kind == "Activation"
    ]
    notes += [
        f"{layer.title} is read as a Flatten"
        for layer in layers
        if layer.kind == "Flatten" and layer.name.startswith("reshape")
    ]
    sloped = ("LeakyReLU", "ReLU", "ELU", "ThresholdedReLU")
    defaults = sorted({layer.kind for layer in layers if layer.kind in sloped})
    if defaults:
        notes.append(f"Keras's default slopes assumed for {', '.join(defaults)}")
    return notes


def _recurrent_notes(config: Sequence[Mapping[str, Any]], gates: str) -> list[str]:
    recurrent = [k for k, layer in enumerate(config) if "hidden_size" in layer]
    if not recurrent:
        return []
    notes = [
        f"the file holds no activations: {gates} and tanh assumed in recurrent layers; "
        f"--set model.layers.{recurrent[0]}.activation=relu sets another"
    ]
    if "bidirectional" in config[-1]:
        notes.append(
            f"the file does not state how layer {len(config) - 1} joins its directions: "
            "merge_mode concat is assumed"
        )
    if not any(layer["type"] == "flatten" for layer in config):
        effect = "the last step alone"
        if config[recurrent[-1]].get("bidirectional"):
            effect = (
                "the final states of both directions (Keras's return_sequences=False); the "
                "last step, y[:, -1], is outputs[:, -1] of the results with every step"
            )
        notes.append(
            "the file does not state which outputs are used: those of every step are assumed; "
            f"--set model.layers.{recurrent[-1]}.return_sequences=false takes {effect}"
        )
    return notes


def _tree(data: bytes) -> Hdf5Tree:
    return Hdf5Tree(data, "Keras", _current_path)


def _current_path(name: str) -> str:
    """Path that the current Keras writes.

    Older Keras writes ``_layer_checkpoint_dependencies`` for ``layers``, and on Windows one name
    with backslashes for a whole path.
    """
    return name.replace("\\", "/").replace("_layer_checkpoint_dependencies", "layers")
