"""State dicts that are refused: each hint is followed in PyTorch, and the file is read after it."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry

torch = pytest.importorskip("torch")
nn = torch.nn
prune = pytest.importorskip("torch.nn.utils.prune")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """PyTorch calls its older functions deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.manual_seed(4)
        yield


class Net(nn.Module):
    """An LSTM of two layers and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, 2, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(self.lstm(x)[0])


def refused(path: Path, **options: Any) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        lstm_cli.load(path, engine="reference", **options)
    assert caught.value.exit_code == 4
    return caught.value


def check(path: Path, model: Any, **options: Any) -> None:
    """The file computes what the model does."""
    x = torch.randn(4, 6, 3)
    with torch.no_grad():
        y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    net = lstm_cli.load(path, engine="reference", dtype="float64", **options)
    np.testing.assert_allclose(net.run(x.numpy()).outputs, y.numpy(), atol=2e-5)


def follow(error: WeightsError, **names: Any) -> None:
    """Run the Python of a hint."""
    (hint,) = error.hints
    code = re.search(r"(import [^:]*; )?torch\.save\(.*?'\)(?= |$)", hint)
    assert code is not None, hint
    exec(code[0], {"torch": torch, **names})


VALUES = {
    "best_loss": (np.float64(0.31), "a NumPy number"),
    "history": (np.arange(3.0), "a NumPy array"),
    "args": (argparse.Namespace(lr=1e-3), "the options of a program"),
    "path": (pathlib.PurePosixPath("x"), "a path"),
    "when": (datetime.datetime(2020, 1, 1), "a date or time"),
    "scores": (collections.defaultdict(list, a=[1]), "a special container"),
    "count": (collections.Counter("a"), "a special container"),
    "order": (collections.deque([1]), "a special container"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", VALUES)
def test_values_that_are_no_tensors(key: str, legacy: bool, tmp_path: Path) -> None:
    model, (value, words) = Net(), VALUES[key]
    for k, (checkpoint, place) in enumerate(
        (
            ({"epoch": 3, "state_dict": model.state_dict(), key: value}, key),
            ({"a": {"model": model.state_dict(), "b": [1, {key: value}]}}, f"a.b[1].{key}"),
            ({**model.state_dict(), key: value}, key),
        )
    ):
        path = tmp_path / f"c{k}.ckpt"
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
        error = refused(path)
        assert f"{words} (" in str(error)
        assert f"under {place}" in str(error)
        follow(error)
        check(tmp_path / f"c{k}-weights.pt", model)


def test_several_values_are_named_at_once(tmp_path: Path) -> None:
    checkpoint = {key: value for key, (value, _) in VALUES.items()}
    torch.save({"state_dict": Net().state_dict(), "hyper": checkpoint}, tmp_path / "c.pt")
    for key, (_, words) in VALUES.items():
        assert f"hyper.{key}: {words}" in str(refused(tmp_path / "c.pt"))


def test_a_state_dict_in_a_class_of_its_own(tmp_path: Path) -> None:
    model = Net()
    states = collections.defaultdict(list, model.state_dict())
    torch.save({"state_dict": states}, tmp_path / "c.pt")
    error = refused(tmp_path / "c.pt")
    assert "under state_dict" in str(error)
    follow(error)
    check(tmp_path / "c-weights.pt", model)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_whole_module(inside: bool, legacy: bool, tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(3, 2)), tmp_path / "m.pt"
    torch.save({"net": model} if inside else model, path, _use_new_zipfile_serialization=not legacy)
    error = refused(path)
    assert "a whole module, an object of the class torch.nn" in str(error)
    follow(error)
    check(tmp_path / "m-weights.pt", model)


def test_a_function_that_could_do_anything_has_no_line_that_loads_it(tmp_path: Path) -> None:
    torch.save({"state_dict": Net().state_dict(), "x": eval}, tmp_path / "c.pt")
    error = refused(tmp_path / "c.pt")
    assert "eval under x" in str(error)
    assert "torch.load" not in str(error)


def test_old_files_of_any_device(tmp_path: Path) -> None:
    """A file from a GPU: its storages state ``cuda:0``, a text of the same length."""
    model, path = Net(), tmp_path / "old.pth.tar"
    torch.save({"state_dict": model.state_dict()}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"X\3\0\0\0cpu" in data
    path.write_bytes(data.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"))
    error = refused(path)
    assert "old, non-zip format" in str(error)
    follow(error)
    check(tmp_path / "old.pth-weights.pt", model)


def test_torchscript(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.jit.script(model).save(tmp_path / "m.pt")
    error = refused(tmp_path / "m.pt")
    follow(error)
    check(tmp_path / "m-weights.pt", model)


class Trained(Net):
    """A model that keeps its losses and metrics among its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
        self.val_bce = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
        self.train_acc = nn.Module()
        self.train_acc.register_buffer("confmat", torch.rand(2, 2))
        self.train_acc.register_buffer("mean_value", torch.tensor(0.5))
        self.register_buffer("class_weights", torch.rand(2))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_losses_and_metrics(suffix: str, tmp_path: Path) -> None:
    model, path = Trained(), tmp_path / f"lit{suffix}"
    if suffix == ".ckpt":
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    error = refused(path)
    for expected in (
        "criterion is not a layer: by its name it is the class weights of a loss",
        "val_bce.pos_weight belongs to no layer: by its name it is the weight of positives",
        "train_acc.confmat belongs to no layer: by its name it is part of a metric",
        "train_acc.mean_value belongs to no layer: by its name it is part of a metric",
        "class_weights belongs to no layer: by its name it is the class weights of a loss",
    ):
        assert expected in str(error)
    assert "Norm" not in str(error)
    (hint,) = error.hints
    ignore = re.search("--ignore '(.*)'", hint)
    assert ignore is not None
    check(path, model, ignore=ignore[1])
    check(path, model, only=["lstm.*", "fc.*"])


@pytest.mark.parametrize("name", ["ema", "model_ema", "swa_model", "target_net"])
def test_a_copy_beside_the_network(name: str, tmp_path: Path) -> None:
    """With equal sizes, both modules in a row would also be a network."""
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 3, batch_first=True)})
    copy = nn.ModuleDict({"module": nn.ModuleDict({"lstm": nn.LSTM(3, 3, batch_first=True)})})
    copy.register_buffer("n_averaged", torch.tensor(7))
    both = nn.ModuleDict({"net": model, name: copy})
    torch.save(both.state_dict(), tmp_path / "m.pt")
    error = refused(tmp_path / "m.pt")
    assert f"a copy of net.lstm: --prefix {name} reads it alone" in str(error)
    check(tmp_path / "m.pt", model["lstm"], ignore=f"{name}.*")
    check(tmp_path / "m.pt", copy["module"]["lstm"], prefix=name)
    assert error.hints == (f"--ignore '{name}.*' leaves out what no output depends on",)


@pytest.mark.parametrize("name", ["module", "_orig_mod", "module._orig_mod", "ema_model.module"])
def test_wrappers(name: str, tmp_path: Path) -> None:
    model = Net()
    states = {f"{name}.{key}": value for key, value in model.state_dict().items()}
    torch.save(states, tmp_path / "m.pt")
    check(tmp_path / "m.pt", model)
    check(tmp_path / "m.pt", model, prefix=name)


def _undone(error: WeightsError, model: Any, path: Path) -> None:
    for hint in error.hints:
        code = re.fullmatch(r"((?:import [\w.]+; )?torch\.nn.*\)), then (torch\.save\(.*\))", hint)
        assert code is not None, hint
        exec(code[1], {"torch": torch, "model": model})
    exec(code[2], {"torch": torch, "model": model, "path": path})


FORMS = {
    "weight_norm": (nn.utils.weight_norm, "weight_norm"),
    "spectral_norm": (nn.utils.spectral_norm, "spectral_norm"),
    "new weight_norm": (nn.utils.parametrizations.weight_norm, "weight_norm"),
    "new spectral_norm": (nn.utils.parametrizations.spectral_norm, "spectral_norm"),
    "orthogonal": (nn.utils.parametrizations.orthogonal, "a parametrization"),
    "pruning": (lambda m, name: prune.l1_unstructured(m, name, 0.5), "pruning"),
}


@pytest.mark.parametrize("kind", FORMS)
def test_weights_in_other_forms(kind: str, tmp_path: Path) -> None:
    function, words = FORMS[kind]
    for name in ("weight_hh_l0", "weight_ih_l1"):
        model: Any = nn.LSTM(3, 4, 2, batch_first=True)
        function(model, name)
        torch.save(model.state_dict(), tmp_path / "m.pt")
        error = refused(tmp_path / "m.pt")
        assert f"keeps {name} as the parts of {words}" in str(error)
        _undone(error, model.eval(), tmp_path / "m.pt")
        check(tmp_path / "m.pt", model)
    model = nn.LSTM(3, 4, batch_first=True)
    function(model, "weight_ih_l0")
    function(model, "weight_hh_l0")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert len(refused(tmp_path / "m.pt").problems) == 2
    model = Net()
    function(model.lstm, "weight_hh_l0")
    function(model.lstm, "weight_hh_l1")
    function(model.fc, "weight")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    error = refused(tmp_path / "m.pt")
    assert len(error.problems) == 3
    _undone(error, model.eval(), tmp_path / "m.pt")
    check(tmp_path / "m.pt", model)


@pytest.mark.parametrize("inner", [False, True])
def test_weight_drop(inner: bool, tmp_path: Path) -> None:
    """The published form: the raw weight is in the wrapper, the others are in the module."""
    model, path = nn.LSTM(3, 5, batch_first=True), tmp_path / "m.pt"
    states = dict(model.state_dict())
    raw = states.pop("weight_hh_l0")
    states = {f"rnn.{'module.' * inner}{key}": value for key, value in states.items()}
    states["rnn.weight_hh_l0_raw"] = raw
    torch.save(states, path)
    error = refused(path)
    assert "keeps weight_hh_l0 as weight_hh_l0_raw, as WeightDrop does" in str(error)
    (hint,) = error.hints
    exec(hint.partition("back: ")[2], {"torch": torch, "s": states, "path": path})
    check(path, model)


def test_quantized(tmp_path: Path) -> None:
    path = tmp_path / "q.pt"
    model = nn.Sequential(nn.LSTM(3, 5, batch_first=True))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    torch.save(quantized.state_dict(), path)
    error = refused(path)
    assert "packed weights of a quantized module" in str(error)
    assert "0._all_weight_values.0.param" in str(error)
    (hint,) = error.hints
    code = re.search(r"torch\.save\(.*\)", hint)
    assert code is not None
    exec(code[0], {"torch": torch, "m": quantized[0], "path": path})
    net, found = registry.read(path).tensors, quantized[0].get_weight()["weight_ih_l0"]
    np.testing.assert_array_equal(net["layers.0.weight_ih"], found.dequantize().numpy())
    linear = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})
    torch.save(linear.state_dict(), path)
    assert "a quantized tensor" in str(refused(path))
    assert "fc._packed_params._packed_params[0]" in str(refused(path))


@pytest.mark.parametrize("base", [True, False])
def test_adapters(base: bool, tmp_path: Path) -> None:
    """Square ones would run one after the other."""
    prefix = "base_model.model."
    states = {f"{prefix}lstm.{k}": v for k, v in nn.LSTM(4, 4).state_dict().items()}
    states |= {f"{prefix}fc.base_layer.weight": torch.rand(4, 4)} if base else {}
    states |= {f"{prefix}fc.lora_{x}.default.weight": torch.rand(4, 4) for x in "AB"}
    torch.save(states, tmp_path / "m.pt")
    error = refused(tmp_path / "m.pt")
    assert "base_model.model.fc is adapted by LoRA" in str(error)
    assert "merge_and_unload" in str(error)


def test_an_embedding_in_front(tmp_path: Path) -> None:
    """The hint reads the layers behind the embedding; DATA holds its outputs."""
    model = Net()
    front = nn.ModuleDict({"embedding": nn.Embedding(9, 3), **dict(model.named_children())})
    torch.save(front.state_dict(), tmp_path / "m.pt")
    only = re.search("--only '(.*?)'", refused(tmp_path / "m.pt").hints[0])
    assert only is not None
    check(tmp_path / "m.pt", model, only=only[1])
