"""1,000 damaged files of every format: each is read or raises LstmCliError in bounded time.

The files are read in a process of their own (`corruption`), whose memory is limited: libraries
that are given damaged files may loop, or end the process.
"""

from __future__ import annotations

import argparse
import collections
import json
import pickle
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import corruption
import h5py
import numpy as np
import pytest
from networks import random_weights

from lstm_cli.config import from_mapping
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export
from lstm_cli.formats.onnx import proto as m

CASES = 1000
LAYERS = [
    {"type": "lstm", "hidden_size": 3},
    {"type": "gru", "hidden_size": 2},
    {"type": "rnn", "hidden_size": 3},
    {"type": "flatten"},
    {"type": "dense", "units": 2, "activation": "softmax"},
]
STATE_DICT = {
    "body.weight_ih_l0": (12, 2),
    "body.weight_hh_l0": (12, 3),
    "body.bias_ih_l0": (12,),
    "body.bias_hh_l0": (12,),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
SAMPLES = {
    "native": "w.safetensors",
    "pytorch": "w.pt",
    "pytorch in safetensors": "w.safetensors",
    "keras": "w.keras",
    "keras' weights": "w.weights.h5",
    "keras' legacy file": "w.h5",
    "onnx": "w.onnx",
    "functions in onnx": "w.onnx",
    "a reference": "w.npz",
    "tmva": "w.xml",
    "a checkpoint of objects": "w.pt",
    "an old checkpoint of objects": "w.pth.tar",
    "npz": "w.npz",
}
REFUSED = ("a checkpoint of objects", "an old checkpoint of objects", "npz")
"""Kinds that are called what they are, and not read."""


def objects(kind: str, path: Path) -> Path:
    """Values that a state dict has beside it in checkpoints, as pickles; or arrays."""
    if kind == "npz":
        np.savez(path, **{k: np.ones(v, np.float32) for k, v in STATE_DICT.items()})
        return path
    values: dict[str, Any] = {
        "loss": np.float64(0.5), "history": np.arange(3.0), "args": argparse.Namespace(lr=[1, {}]),
        "nested": [{"path": Path("x")}, collections.defaultdict(list, a=(1,))], "epoch": 3,
    }  # fmt: skip
    if kind == "a checkpoint of objects":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", pickle.dumps(values, 2))
            archive.writestr("w/data/0", bytes(96))
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, values, ["0"])
        path.write_bytes(b"".join(pickle.dumps(one, 2) for one in head) + bytes(96))
    return path


def legacy(path: Path) -> Path:
    """Keras' HDF5 file with the config in an attribute, which lstm-cli reads and does not write."""
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 3, 2], "name": "input"}},
        {"class_name": "LSTM", "config": {"name": "a", "units": 3, "activation": "tanh",
         "recurrent_activation": "sigmoid", "use_bias": True, "return_sequences": False,
         "go_backwards": False, "stateful": False}},
        {"class_name": "Dense", "config": {"name": "b", "units": 2, "activation": "softmax",
         "use_bias": True}},
    ]  # fmt: skip
    shapes = {
        "a": {"kernel": (2, 12), "recurrent_kernel": (3, 12), "bias": (12,)},
        "b": {"kernel": (3, 2), "bias": (2,)},
    }
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "3.15.1", "torch"
        file.attrs["model_config"] = json.dumps(config)
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = list(shapes)
        for layer, tensors in shapes.items():
            names = [f"s/{layer}/{name}" for name in tensors]
            weights.create_group(layer).attrs["weight_names"] = names
            for name, shape in zip(names, tensors.values(), strict=True):
                weights[layer][name] = np.random.default_rng(0).random(shape, np.float32)
    return path


def functions() -> m.OnnxModel:
    """Functions, branches, calculated shapes and tensors in an ONNX model."""
    local, ours = (m.OnnxOperatorSet("", 17),), {"domain": "l"}
    ints = partial(m.OnnxAttribute, type=m.ATTRIBUTE_INTS)
    inner = m.OnnxFunction(
        "f", ("a",), ("b",), (), (m.OnnxNode(("a",), ("b",), "t", "Tanh"),), local, "l"
    )
    calls = (
        m.OnnxNode(("a", "M"), ("c",), "p", "MatMul"),
        m.OnnxNode(("c",), ("b",), "q", "f", **ours),
    )
    outer = m.OnnxFunction("g", ("a", "M"), ("b",), (), calls, local, "l")
    branch = m.OnnxGraph(
        (m.OnnxNode(("v",), ("w",), "r", "Relu"),), "g", outputs=(m.OnnxValueInfo("w"),)
    )
    perm = (ints("perm", ints=(1, 0, 2)),)
    axis = (m.OnnxAttribute("axis", i=0, type=m.ATTRIBUTE_INT),)
    nodes = (
        m.OnnxNode(("x",), ("xt",), "turn", "Transpose", perm),
        m.OnnxNode(("xt",), ("s",), "size", "Shape"),
        m.OnnxNode(("s", "one"), ("n",), "pick", "Gather"),
        m.OnnxNode(("one", "n", "two"), ("t",), "shape", "Concat", axis),
        m.OnnxNode(("t",), ("h",), "zeros", "ConstantOfShape"),
        m.OnnxNode(("xt", "W", "R", "", "", "h"), ("Y",), "cell", "GRU"),
        m.OnnxNode(("Y", "one"), ("y",), "side", "Squeeze"),
        m.OnnxNode(("y", "M"), ("v",), "call", "g", **ours),
        m.OnnxNode(("yes",), ("z",), "if", "If", tuple(
            m.OnnxAttribute(f"{name}_branch", g=branch, type=m.ATTRIBUTE_GRAPH)
            for name in ("then", "else")
        )),
        m.OnnxNode(("z",), ("back",), "back", "Transpose", perm),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    shapes = {"W": (1, 6, 3), "R": (1, 6, 2), "M": (2, 2)}
    floats = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    tensors = [
        m.OnnxTensor(a.shape, m.FLOAT, name=k, raw_data=a.tobytes()) for k, a in floats.items()
    ]
    wholes = {"one": [1], "two": [2]}
    tensors += [
        m.OnnxTensor((1,), m.INT64, name=k, int64_data=np.array(v)) for k, v in wholes.items()
    ]
    tensors.append(m.OnnxTensor((), m.BOOL, name="yes", raw_data=b"\x01"))
    dims = (m.OnnxDimension(name="N"), m.OnnxDimension(name="T"), m.OnnxDimension(value=3))
    x = m.OnnxValueInfo("x", m.OnnxType(m.OnnxTensorType(m.FLOAT, m.OnnxShape(dims))))
    graph = m.OnnxGraph(nodes, "g", tuple(tensors), (x,), (m.OnnxValueInfo("back"),))
    return m.OnnxModel(8, graph=graph, operator_sets=local, functions=(inner, outer))


def sample(kind: str, folder: Path) -> Path:
    path = folder / SAMPLES[kind]
    if kind == "keras' legacy file":
        return legacy(path)
    if kind in REFUSED:
        return objects(kind, path)
    if kind == "functions in onnx":
        path.write_bytes(functions().encode())
        return path
    if kind == "a reference":
        rng = np.random.default_rng(0)
        arrays = {"inputs": (2, 4, 3), "outputs": (2, 4, 1), "state.0.h": (2, 1, 2)}
        np.savez(path, lengths=[4, 2], **{k: rng.random(v) for k, v in arrays.items()})
        return path
    if kind == "pytorch in safetensors":
        from safetensors.numpy import save_file

        save_file({k: np.ones(v, np.float32) for k, v in STATE_DICT.items()}, path)
        return path
    mapping: dict[str, Any] = {"model": {"input_size": 2, "steps": 3, "layers": LAYERS}}
    config = from_mapping(mapping)
    tensors = {k: v.astype(np.float32) for k, v in random_weights(config.specs).items()}
    tensors["layers.1.bias_hh"][4:] = 0  # TMVA's candidate has one bias
    given = Export("w", 2, 3, config.specs, tensors, config.to_yaml())
    registry.write(path, kind.split("'")[0], given)
    return path


@pytest.mark.parametrize("kind", SAMPLES)
def test_only_our_errors_escape(kind: str, tmp_path: Path) -> None:
    path = sample(kind, tmp_path)
    command = [sys.executable, "-W", "error", corruption.__file__, str(path), str(CASES), "1"]
    command += ["refused"] if kind in REFUSED else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended at {lines[-1:]}: {done.stderr[-2000:]}"
    said = [json.loads(line) for line in lines]
    escaped = [f"case {line['case']}: {line['escaped']}" for line in said if "escaped" in line]
    assert not escaped, "\n".join(escaped[:5])
    assert said[-1]["done"] == CASES
    if kind in REFUSED:
        return
    assert 0 < said[-1]["read"] < 0.9 * CASES, "the damage must reach what is read"
