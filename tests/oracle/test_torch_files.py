"""Models that PyTorch saves, read and run; files written here, loaded by PyTorch: equal outputs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import random_weights

from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import Export, Imported, ReadOptions
from lstm_cli.network.network import Network

torch = pytest.importorskip("torch")
nn = torch.nn

N, T = 5, 6
LENGTHS = np.array([6, 1, 4, 6, 3])
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class Tagger(nn.Module):
    """[Linear] + recurrent modules + Linears, over ragged sequences."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        sizes = rng.permutation(np.arange(2, 12)).tolist()  # no two alike
        self.input_size = size = sizes.pop()
        if rng.integers(3) == 0:
            self.front = nn.Linear(size, size := sizes.pop(), bias=bool(rng.integers(2)))
        for k in range(rng.integers(1, 3)):
            kind = str(rng.choice(list(MODULES)))
            H, both, projection = sizes.pop(), bool(rng.integers(2)), 0
            if kind == "lstm" and rng.integers(2) and H > 2:
                projection = int(rng.integers(1, H))
            module = MODULES[kind](
                size, H, int(rng.integers(1, 4)), bidirectional=both, batch_first=True,
                bias=bool(rng.integers(4)), **({"proj_size": projection} if projection else {}),
            )  # fmt: skip
            self.add_module(f"body{k}", module)
            size = (projection or H) * (1 + both)
        for k in range(rng.integers(0, 3)):
            self.add_module(f"head{k}", nn.Linear(size, size := sizes.pop()))

    def forward(self, x: Any, lengths: Any) -> Any:
        for module in self.children():
            if isinstance(module, nn.Linear):
                x = module(x)
                continue
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
            x, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0], True, total_length=T)
        return x


def run(imported: Imported, x: Any, lengths: Any, dtype: str, **model: Any) -> Any:
    assert imported.config is not None
    config = from_mapping({"model": {**imported.config["model"], **model}})
    network = Network(config.specs, imported.tensors, ReferenceEngine(dtype))
    return network.run(x.astype(dtype), lengths).outputs


def close(found: Any, wanted: Any, dtype: str) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCES[dtype])


def saved(model: Any, rng: np.random.Generator, path: Path) -> tuple[Path, ReadOptions]:
    """The state dict as people save it: bare, below a prefix, in a checkpoint, in safetensors."""
    state, options = model.state_dict(), ReadOptions()
    start = str(rng.choice(["", "module.", "model.net_1."]))
    state = type(state)((start + name, value) for name, value in state.items())
    if rng.integers(3) == 0:
        state[f"{start}norm.num_batches_tracked"] = torch.tensor(3)
        state = {name: value.T.contiguous().T if value.dim() == 2 else value
                 for name, value in state.items()}  # fmt: skip
    if rng.integers(3) == 0:
        from safetensors.torch import save_file

        path = path.with_suffix(".safetensors")
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        return path, options
    if rng.integers(2):
        optimizer = torch.optim.Adam(model.parameters())
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        model.load_state_dict(
            {k.removeprefix(start): v for k, v in state.items() if "norm." not in k}
        )
        key = str(rng.choice(["state_dict", "model_state_dict", "model"]))
        state = {"epoch": 3, "sizes": torch.Size([1, 2]), "seen": {1, 2}, "loss": [0.5, None],
                 key: dict(state), "optimizer": optimizer.state_dict()}  # fmt: skip
        if rng.integers(2):
            state["ema"] = {"w.weight": torch.ones(2, 3)}
            options = ReadOptions(prefix=key)
    torch.save(state, path)
    return path, options


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", range(14))
def test_random_models(seed: int, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Tagger(rng).to(getattr(torch, dtype))
    x = rng.standard_normal((N, T, model.input_size)).astype(dtype)
    path, options = saved(model, rng, tmp_path / "w.pt")
    with torch.no_grad():
        expected = model(torch.from_numpy(x), torch.from_numpy(LENGTHS)).numpy()
    imported = registry.read(path, options)
    found = run(imported, x, LENGTHS, dtype)
    expected = np.where(np.arange(T)[None, :, None] < LENGTHS[:, None, None], expected, 0)
    close(found, expected, dtype)
    names = set(model.state_dict())
    assert len({s.name for s in imported.sources}) == len(names)
    assert all(value.dtype == dtype for value in imported.tensors.values())


@pytest.mark.parametrize("kind", CELLS)
def test_cells_and_halves(kind: str, tmp_path: Path) -> None:
    """A cell steps through a sequence; halves are widened."""
    torch.manual_seed(3)
    cell, head = CELLS[kind](3, 4), nn.Linear(4, 2)
    model = nn.ModuleDict({"cell": cell, "head": head})
    x = np.random.default_rng(1).standard_normal((N, T, 3)).astype(np.float32)
    for half in (torch.bfloat16, torch.float16, torch.float32):
        model = model.to(half)
        torch.save(model.state_dict(), tmp_path / "w.pth")
        imported = registry.read(tmp_path / "w.pth")
        assert {s.dtype for s in imported.sources} == {str(half).removeprefix("torch.")}
        model = model.to(torch.float32)
        state, outputs = None, []
        with torch.no_grad():
            for step in torch.from_numpy(x).unbind(1):
                state = cell(step, state)
                outputs.append(head(state[0] if kind == "lstm" else state))
        close(run(imported, x, None, "float32"), torch.stack(outputs, 1).numpy(), "float32")


def test_steps_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = nn.ModuleDict({"gru": nn.GRU(3, 4, batch_first=True), "fc": nn.Linear(T * 4, 2)})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    imported = registry.read(tmp_path / "w.pt")
    x = np.random.default_rng(1).standard_normal((N, T, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model["fc"](model["gru"](torch.from_numpy(x))[0].flatten(1)).numpy()
    close(run(imported, x, None, "float32"), wanted, "float32")
    assert imported.config is not None
    assert imported.config["model"]["steps"] == T
    assert any("side by side" in note for note in imported.notes)


def test_the_other_byte_order(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = nn.LSTM(3, 4, batch_first=True, dtype=torch.float64)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    little = registry.read(tmp_path / "w.pt").tensors
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w") as swapped,
    ):
        for name in source.namelist():
            data = source.read(name)
            if "/data/" in name:
                data = np.frombuffer(data, "<f8").astype(">f8").tobytes()
            swapped.writestr(name, b"big" if name.endswith("byteorder") else data)
    big = registry.read(tmp_path / "b.pt").tensors
    for name, value in torch.load(tmp_path / "b.pt", weights_only=True).items():
        assert torch.equal(value, model.state_dict()[name])
    assert all(np.array_equal(big[name], little[name]) for name in little)


def _random_layers(rng: np.random.Generator) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = []
    if rng.integers(4) == 0:
        layers.append({"type": "dense", "units": 4})
    for _ in range(rng.integers(1, 3)):
        kind = str(rng.choice(list(MODULES)))
        layer: dict[str, Any] = {"type": kind, "hidden_size": int(rng.integers(2, 7))}
        layer |= {"bidirectional": bool(rng.integers(2)), "bias": bool(rng.integers(3))}
        if kind == "lstm":
            if rng.integers(2):
                layer["projection_size"] = int(rng.integers(1, layer["hidden_size"]))
            layer["forget_gate"] = bool(rng.integers(4))
        for k in range(rng.integers(1, 3)):
            layers += [{"type": "dropout", "rate": 0.5}] * int(k and rng.integers(2)) + [layer]
    layers += [{"type": "dense", "units": int(u), "bias": bool(rng.integers(3))}
               for u in rng.integers(2, 9, rng.integers(0, 3))]  # fmt: skip
    return layers


def _modules(state: dict[str, Any]) -> Any:
    """The modules that a written state dict is for, made from its names and shapes alone."""
    modules = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in state):
        parameters = {k.rpartition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")}
        if "weight" in parameters:
            sizes = parameters["weight"].shape[::-1]
            modules[name] = nn.Linear(*sizes, bias="bias" in parameters, dtype=torch.float64)
            continue
        rows, columns = parameters["weight_hh_l0"].shape
        H = parameters["weight_hr_l0"].shape[1] if "weight_hr_l0" in parameters else columns
        kind = next(kind for kind, gates in NATIVE_GATES.items() if len(gates) == rows // H)
        modules[name] = MODULES[kind](
            parameters["weight_ih_l0"].shape[1], H,
            sum("weight_hh" in k and "rev" not in k for k in parameters),
            bidirectional="weight_hh_l0_reverse" in parameters, batch_first=True,
            dtype=torch.float64,
            bias="bias_ih_l0" in parameters,
            **({"proj_size": columns} if columns != H else {}),
        )  # fmt: skip
    return nn.ModuleDict(modules)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("seed", range(14))
def test_written_files(seed: int, suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(100 + seed)
    config = from_mapping({"model": {"input_size": 3, "layers": _random_layers(rng)}})
    weights = random_weights(config.specs, seed)
    path = tmp_path / f"w{suffix}"
    export = Export("w", 3, None, config.specs, weights, "")
    registry.write(path, "pytorch", export)
    first = path.read_bytes()
    registry.write(path, "pytorch", export)
    assert path.read_bytes() == first
    if suffix == ".pt":
        state = torch.load(path, weights_only=True)
        assert all(torch.equal(v, torch.load(path, weights_only=True, mmap=True)[k])
                   for k, v in state.items())  # fmt: skip
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    model = _modules(dict(state))
    model.load_state_dict(state)
    x = rng.standard_normal((N, T, 3))
    y = torch.from_numpy(x)
    with torch.no_grad():
        for name in _run_order(model):
            y = model[name](y) if isinstance(model[name], nn.Linear) else model[name](y)[0]
    wanted = Network(config.specs, weights, ReferenceEngine("float64")).run(x).outputs
    close(y.numpy(), wanted, "float64")
    again = registry.read(path)
    close(run(again, x, None, "float64"), wanted, "float64")


def _run_order(model: Any) -> list[str]:
    """``lstm`` then ``head`` for the plainest networks, else numbers."""
    names = list(model)
    return sorted(names, key=int) if "0" in names else sorted(names, key=lambda n: n == "head")


def test_two_orders_that_fit_are_refused(tmp_path: Path) -> None:
    """Stored in order by torch.save; in safetensors nothing tells encoder from decoder."""
    from safetensors.torch import save_file

    model = nn.ModuleDict({"encoder": nn.LSTM(4, 4), "decoder": nn.LSTM(4, 4)})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert registry.read(tmp_path / "w.pt").sources[0].name == "encoder.weight_ih_l0"
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="more than one order"):
        registry.read(tmp_path / "w.safetensors")
    one = registry.read(tmp_path / "w.safetensors", ReadOptions(prefix="encoder."))
    assert {s.name.partition(".")[0] for s in one.sources} == {"encoder"}


def test_a_state_dict_that_stands_at_the_prefix_wins(tmp_path: Path) -> None:
    one, other = nn.LSTM(3, 4).state_dict(), nn.LSTM(3, 4).state_dict()
    checkpoint = {
        "model": {f"lstm.{name}": value for name, value in one.items()},
        "ema": {f"model.lstm.{name}": value for name, value in other.items()},
        "commit": b"\x00\xffabc",  # which old protocols write as a call
    }
    torch.save(checkpoint, tmp_path / "w.pt")
    for prefix, state in (("model", one), ("ema", other), ("ema.model", other)):
        found = registry.read(tmp_path / "w.pt", ReadOptions(prefix=prefix))
        given = state["weight_ih_l0"].numpy()
        np.testing.assert_array_equal(found.tensors["layers.0.weight_ih"], given)


def test_a_head_behind_a_flatten_keeps_its_place_in_safetensors(tmp_path: Path) -> None:
    config = from_mapping(
        {
            "model": {
                "input_size": 3,
                "steps": 2,
                "layers": [
                    {"type": "gru", "hidden_size": 4},
                    {"type": "flatten"},
                    {"type": "dense", "units": 3},  # as many as the gru reads
                ],
            }
        }
    )
    weights = random_weights(config.specs)
    export = Export("x", 3, 2, config.specs, weights, config.to_yaml())
    registry.write(tmp_path / "x.safetensors", "pytorch", export)
    found = registry.read(tmp_path / "x.safetensors")
    assert found.config is not None
    kinds = [layer["type"] for layer in found.config["model"]["layers"]]
    assert kinds == ["gru", "flatten", "dense"]
