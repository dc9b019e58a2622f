"""Reading Keras's files: ``.keras``, ``.weights.h5``, legacy ``.h5``."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lstm_cli.engines.types import Layers, RecurrentSpec
from lstm_cli.errors import WeightsError, memory_error
from lstm_cli.formats.keras.architecture import MOST_LAYERS, Layer, layers_of
from lstm_cli.formats.keras.assembly import INPUT_SHAPES, Assembly, check_kinds
from lstm_cli.formats.keras.bare import by_names, by_paths, is_bare
from lstm_cli.formats.keras.defaults import TABLE, TODAY, Release, keras_1, release
from lstm_cli.formats.keras.hdf5 import Tree
from lstm_cli.formats.keras.recurrent import KINDS, ORDER
from lstm_cli.formats.keras.variables import Names, Paths, Source
from lstm_cli.formats.keras.words import shown
from lstm_cli.formats.model import Imported, ReadOptions
from lstm_cli.formats.safety import member_bytes, open_archive, read_whole

WEIGHTS = "model.weights.h5"
DATA_HINT = "the config comes before the data: lstm-cli run CONFIG DATA"
LARGEST_DESCRIPTION = 16 << 20
"""Bytes of JSON; what it becomes in memory is many times as large."""


def read(path: Path, options: ReadOptions) -> Imported:
    """Read a model or its weights, as Keras 2 or 3 wrote them.

    Raises
    ------
    WeightsError
        Missing, damaged, hostile, or a model that lstm-cli cannot represent: names the layer and
        the option.
    """
    data = read_whole(path)
    try:
        layers = options.layers
        of_archive = data.startswith(b"PK")
        assembly, title = _of_archive(path, layers) if of_archive else _of_hdf5(data, layers)
        config = assembly.finish()
    except WeightsError as error:
        problems = [replace(p, where=(*p.where, str(path))) for p in error.problems]
        raise WeightsError(problems, headline=error.headline) from None
    except MemoryError as error:
        raise memory_error(str(path)) from error
    except RecursionError as error:
        raise WeightsError(f"{path} is too large or too deep", found=type(error).__name__) from None
    return Imported(
        path=path,
        format="keras",
        title=title,
        sha256=hashlib.sha256(data).hexdigest(),
        config=config,
        tensors=assembly.tensors,
        stored=tuple(assembly.stored),
        order=dict(ORDER),
        notes=tuple(assembly.notes),
        described=assembly.whole,
    )


def _of_archive(path: Path, layers: Layers | None) -> tuple[Assembly, str]:
    with open_archive(path) as archive:
        names = archive.namelist()
        tree = Tree(member_bytes(archive, _weights_name(names)))
        if "config.json" not in names:
            return _bare(tree, layers)
        model = _json(_text(archive, "config.json"), "config.json")
        metadata = _metadata(archive, names)
    version = metadata.get("keras_version")
    return _whole(model, tree, version if isinstance(version, str) else None, Paths(tree))


def _weights_name(names: Sequence[str]) -> str:
    found = [name for name in names if name.endswith(".weights.h5")]
    if WEIGHTS in found or len(found) != 1:
        return WEIGHTS
    return found[0]


def _metadata(archive: zipfile.ZipFile, names: Sequence[str]) -> Mapping[str, Any]:
    if "metadata.json" not in names:
        return {}
    found = _json(_text(archive, "metadata.json"), "metadata.json")
    return found if isinstance(found, Mapping) else {}


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    return member_bytes(archive, name, LARGEST_DESCRIPTION)


def _json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise WeightsError(f"{name} is no JSON", found=shown(found)) from None


def _of_hdf5(data: bytes, layers: Layers | None) -> tuple[Assembly, str]:
    try:
        tree = Tree(data)
    except WeightsError as error:  # before it is known whose file it is
        raise WeightsError([replace(p, hint=p.hint or DATA_HINT) for p in error.problems]) from None
    root = "model_weights/" if "model_weights" in tree else ""
    description = tree.text("", "model_config")
    if description is None:
        return _bare(tree, layers, root)
    if len(description) > LARGEST_DESCRIPTION:
        raise WeightsError("model_config is too large", found=f"{len(description):,} characters")
    version = tree.text("", "keras_version") or tree.text(root.rstrip("/"), "keras_version")
    return _whole(_json(description, "model_config"), tree, version, Names(tree, root))


def _whole(model: Any, tree: Tree, version: str | None, source: Source) -> tuple[Assembly, str]:
    """A model whose description is in the file."""
    today = isinstance(model, Mapping) and "module" in model
    layers, wrote = layers_of(model), release(version, today=today)
    if not wrote.told and any(_is_of_keras_1(layer) for layer in layers):
        raise keras_1("of Keras 1")
    check_kinds(layers)
    assembly = Assembly(source, wrote, whole=True)
    if layers and not any(key in layers[0].options.values for key in INPUT_SHAPES):
        assembly.start(_built_shape(model))
    for layer in layers:
        assembly.add(layer)
    if any(path.startswith(("optimizer", "_optimizer")) for path in tree.datasets()):
        assembly.notes.append("the optimiser's state is left out")
    return assembly, f"Keras {shown(version)} model" if version else "Keras model"


def _built_shape(model: Mapping[str, Any]) -> Any:
    config = model.get("config")
    return config.get("build_input_shape") if isinstance(config, Mapping) else None


def _is_of_keras_1(layer: Layer) -> bool:
    """Whether a layer has the options of Keras 1: ``output_dim``, ``inner_activation``."""
    values = layer.options.values
    known = layer.kind in KINDS or layer.kind == "Dense"
    return known and "output_dim" in values and "units" not in values


def _bare(tree: Tree, wanted: Layers | None, root: str = "") -> tuple[Assembly, str]:
    """Weights without a description."""
    if is_bare(tree):
        layers, notes, source = by_paths(tree, wanted)
        wrote = TODAY
    elif tree.texts(root.rstrip("/"), "layer_names") is not None:
        version = tree.text("", "keras_version") or tree.text(root.rstrip("/"), "keras_version")
        wrote = release(version, today=False)
        layers, notes, source = by_names(tree, root, wanted)
    else:
        raise WeightsError(
            "the HDF5 file holds no weights of Keras",
            expected="model_config, layer_names, or layers/.../vars",
            hint=DATA_HINT,
        )
    if len(layers) > MOST_LAYERS:
        raise WeightsError(f"the file has more than {MOST_LAYERS:,} layers")
    assembly = Assembly(source, wrote, whole=False)
    for layer in layers:
        assembly.add(layer)
    gates = wrote.default("recurrent_activation")
    assembly.notes += [*notes, *_assumed(layers, assembly.layers, gates)]
    assembly.notes += _unlike(wanted or (), wrote)
    return assembly, "Keras weights, without the model"


def _unlike(wanted: Layers, wrote: Release) -> list[str]:
    """Layers of a config that do not have what versions of Keras before 2.3 took by default."""
    old = TABLE["recurrent_activation"][0]
    if old not in wrote.readings("recurrent_activation"):
        return []
    sure = len(wrote.readings("recurrent_activation")) == 1
    which = f"{wrote.title}, which wrote the file," if sure else "Keras before 2.3 and TensorFlow 1"
    return [
        f"layer {spec.index} of the config has recurrent_activation: {activation}; the default of "
        f"{which} was {old.value}: recurrent_activation: {old.value} in the config, unless the "
        f"model {'set another' if sure else 'is newer'}"
        for spec in wanted
        if isinstance(spec, RecurrentSpec)
        and spec.kind != "rnn"
        and (activation := str(spec.cells[0].recurrent_activation)) != old.value
    ]


def _assumed(layers: Sequence[Layer], config: Sequence[Mapping[str, Any]], gates: str) -> list[str]:
    """What a file without a description does not say, and what sets it."""
    notes = []
    recurrent = [k for k, layer in enumerate(config) if "hidden_size" in layer]
    dense = [k for k, layer in enumerate(config) if layer["type"] == "dense"]
    if recurrent:
        notes.append(
            f"the file holds no activations: {gates} and tanh assumed in recurrent layers; "
            f"--set model.layers.{recurrent[0]}.activation=relu says otherwise"
        )
        if "bidirectional" in config[-1]:
            notes.append(
                f"the file does not say how layer {len(config) - 1} joins its directions: side by "
                "side is assumed (merge_mode concat)"
            )
        if not any(layer["type"] == "flatten" for layer in config):
            taken = "the last one's"
            if config[recurrent[-1]].get("bidirectional"):
                taken = "the final states of both directions (Keras's return_sequences=False); the "
                taken += "last step, y[:, -1], is outputs[:, -1] of the results with every step"
            notes.append(
                "the file does not say which outputs are used: every step's assumed, from the "
                "first step to the last; "
                f"--set model.layers.{recurrent[-1]}.return_sequences=false takes {taken}"
            )
    notes += [
        f"layer {k} (dense) is taken to have no activation; "
        f"--set model.layers.{k}.activation=softmax says otherwise"
        for k in dense
        if "activation" not in config[k]
    ]
    notes += [
        f"{layer.title} is left out: which function it is, the file does not say"
        for layer in layers
        if layer.kind == "Activation"
    ]
    notes += [
        f"{layer.title} is taken for a Flatten"
        for layer in layers
        if layer.kind == "Flatten" and layer.name.startswith("reshape")
    ]
    sloped = ("LeakyReLU", "ReLU", "ELU", "ThresholdedReLU")
    defaults = sorted({layer.kind for layer in layers if layer.kind in sloped})
    if defaults:
        notes.append(f"Keras's default slopes assumed for {', '.join(defaults)}")
    return notes
