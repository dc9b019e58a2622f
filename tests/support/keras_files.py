"""Keras files put together by hand with h5py, and Keras's equations in plain NumPy."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: Any, version: int = 2) -> Any:
    return np.clip(0.2 * x + 0.5 if version == 2 else x / 6 + 0.5, 0, 1)


def drawn(kind: str, D: int, H: int, rng: Any, *, two: bool = False) -> list[Any]:
    """Kernel, recurrent kernel and bias of one direction."""
    width = GATES[kind] * H
    bias = (2, width) if two else (width,)
    return [0.6 * rng.standard_normal(s).astype("f4") for s in ((D, width), (H, width), bias)]


def step(kind: str, x: Any, states: list[Any], weights: list[Any], gate: Any) -> list[Any]:
    """One step of Keras's cell, gates in Keras's order."""
    W, U, b = (np.asarray(w, np.float64) for w in weights)
    h, H = states[0], U.shape[0]
    if kind == "SimpleRNN":
        return [np.tanh(x @ W + h @ U + b)]
    if kind == "LSTM":
        i, f, c, o = np.split(x @ W + h @ U + b, 4, axis=1)
        cell = gate(f) * states[1] + gate(i) * np.tanh(c)
        return [gate(o) * np.tanh(cell), cell]
    two = b.ndim == 2
    xz, xr, xh = np.split(x @ W + (b[0] if two else b), 3, axis=1)
    hz, hr, hh = np.split(h @ U + (b[1] if two else 0), 3, axis=1)
    z, r = gate(xz + hz), gate(xr + hr)
    n = np.tanh(xh + r * hh if two else xh + (r * h) @ U[:, 2 * H :])
    return [z * h + (1 - z) * n]


def recurrence(kind: str, x: Any, weights: list[Any], gate: Any, *, back: bool = False) -> Any:
    """(N, T, H), each output at its own step."""
    states = [np.zeros((len(x), weights[1].shape[0]))] * 2
    steps = np.empty((*x.shape[:2], weights[1].shape[0]))
    for t in reversed(range(x.shape[1])) if back else range(x.shape[1]):
        states = step(kind, x[:, t], states, weights, gate)
        steps[:, t] = states[0]
    return steps


def entry(kind: str, name: str, **config: Any) -> dict[str, Any]:
    """A layer as Keras 2 describes it."""
    return {"class_name": kind, "config": {"name": name, **config}}


def legacy(
    path: Path,
    layers: dict[str, dict[str, Any]],
    model: Any = None,
    version: str | None = "2.4.0",
    **how: Any,
) -> Path:
    """A ``.h5`` of Keras 2: variables by their names, by layer; whole with a description."""
    with h5py.File(path, "w", **how) as file:
        root = file if model is None else file.create_group("model_weights")
        if model is not None:
            file.attrs["model_config"] = json.dumps(model)
        if version is not None:
            (file if model is not None else root).attrs["keras_version"] = np.bytes_(version)
        root.attrs["layer_names"] = np.array([name.encode() for name in layers])
        for layer, variables in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([n.encode() for n in variables], dtype="S")
            for name, value in variables.items():
                group.create_dataset(name, data=value)
    return path


def cell_names(layer: str, weights: list[Any]) -> dict[str, Any]:
    """Variables of one direction under the names that Keras 2 gives them."""
    roles = ("kernel:0", "recurrent_kernel:0", "bias:0")
    return {f"{layer}/{role}": w for role, w in zip(roles, weights, strict=True)}


def bare(path: Path, source: Path, version: str | None = "2.4.0") -> Path:
    """The weights alone of a whole legacy ``.h5``, as Keras 2 saves them."""
    with h5py.File(source) as whole, h5py.File(path, "w") as file:
        root = whole["model_weights"]
        for name in root:
            root.copy(name, file)
        file.attrs["layer_names"] = root.attrs["layer_names"]
        if version is not None:
            file.attrs["keras_version"] = np.bytes_(version)
    return path


def members(path: Path) -> dict[str, bytes]:
    """The members of a ``.keras`` file."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, parts: dict[str, bytes]) -> Path:
    """A ``.keras`` file of these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def copied(data: bytes, change: Any = None, attributes: bool = False, **how: Any) -> bytes:
    """An HDF5 file written anew by the alphabet, its datasets as `how` says."""
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(data), "r") as old, h5py.File(buffer, "w") as new:

        def copy(name: str, thing: Any) -> None:
            if isinstance(thing, h5py.Group):
                new.require_group(name).attrs.update(thing.attrs if attributes else {})
                return
            value = thing[...] if change is None else change(thing[...])
            new.create_dataset(name, data=value, **how)

        old.visititems(copy)
    return buffer.getvalue()
