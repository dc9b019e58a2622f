"""PyTorch state dicts of known shapes, read: sources, order of modules, notes and refusals."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstm_cli.config import from_mapping
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.formats.torch.writer import write_archive

Shapes = dict[str, tuple[int, ...]]


def lstm(prefix: str, D: int, H: int, gates: int = 4) -> Shapes:
    rows = gates * H
    return {
        f"{prefix}weight_ih_l0": (rows, D),
        f"{prefix}weight_hh_l0": (rows, H),
        f"{prefix}bias_ih_l0": (rows,),
        f"{prefix}bias_hh_l0": (rows,),
    }


def linear(prefix: str, D: int, F: int) -> Shapes:
    return {f"{prefix}weight": (F, D), f"{prefix}bias": (F,)}


def tensors(shapes: Shapes) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def read(folder: Path, shapes: Shapes, prefix: str | None = None) -> Imported:
    """Through safetensors, which writes tensors of any rank."""
    save_file(tensors(shapes), folder / "w.safetensors", {"format": "pt"})
    return registry.read(folder / "w.safetensors", ReadOptions("pytorch", prefix))


def refused(folder: Path, shapes: Shapes, prefix: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        read(folder, shapes, prefix)
    return str(caught.value)


def test_sources_of_all_tensors(tmp_path: Path) -> None:
    imported = read(tmp_path, lstm("net.rnn.", 3, 2) | linear("net.fc.", 2, 5))
    assert (imported.format, imported.title) == ("pytorch", "PyTorch state dict in safetensors")
    assert imported.gate_orders == {"lstm": "i f g o"}
    assert TensorSource(
        "net.rnn.weight_ih_l0", (8, 3), "float32", "[4:6]", "layers.0.weight_ih", "g"
    ) in imported.sources  # fmt: skip
    biases = [s for s in imported.sources if s.native == "layers.0.bias" and s.block == "o"]
    assert [(s.name, s.part, s.change) for s in biases] == [
        ("net.rnn.bias_ih_l0", "[6:8]", "added to net.rnn.bias_hh_l0"),
        ("net.rnn.bias_hh_l0", "[6:8]", "added to net.rnn.bias_ih_l0"),
    ]
    assert imported.sources[-1] == TensorSource(
        "net.fc.bias", (5,), "float32", "", "layers.1.bias", ""
    )


def test_assumptions_have_notes(tmp_path: Path) -> None:
    shapes = lstm("a1.", 3, 4, gates=1) | lstm("a2.", 4, 4, gates=3) | {"fc.weight": (2, 4)}
    notes = "\n".join(read(tmp_path, shapes).notes)
    for text in (
        "--set model.layers.1.return_sequences=false",
        "tanh is assumed in the rnn; if not: --set model.layers.0.activation=relu",
        "--set model.layers.2.activation=softmax",
        "the file keeps no order: the modules run as a1 -> a2 -> fc",
        "--set model.layers.1.dropout",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("shapes", "order"),
    [
        (linear("head.", 5, 3) | lstm("lstm.", 3, 5), "lstm head"),  # as many out as in
        (linear("a.", 2, 3) | lstm("b.", 3, 5), "a b"),
        (lstm("10.", 4, 4) | lstm("9.", 4, 4) | linear("11.", 4, 4), "9 10 11"),
        (linear("fc2.", 6, 3) | linear("fc1.", 5, 6) | lstm("lstm.", 3, 5), "lstm fc1 fc2"),
        (linear("fc2.", 5, 3) | linear("fc1.", 2, 3) | lstm("lstm.", 3, 5), "fc1 lstm fc2"),
        (linear("z.", 40, 2) | lstm("q.", 3, 5), "q z"),  # eight steps side by side
    ],
)
def test_sizes_and_numbers_tell_the_order(shapes: Shapes, order: str, tmp_path: Path) -> None:
    found = read(tmp_path, shapes)
    assert list(dict.fromkeys(s.name.split(".")[0] for s in found.sources)) == order.split()


@pytest.mark.parametrize(
    "shapes",
    [
        linear("z.", 40, 3) | lstm("q.", 3, 5),  # z first, or last on eight steps side by side
        linear("i.", 3, 8) | lstm("q.", 8, 5) | linear("o.", 5, 3),
        lstm("a.", 4, 4) | lstm("b.", 4, 4),
        {k: v for j in range(12) for k, v in linear(f"{'abcdefghijkl'[j]}.", 4, 4).items()},
    ],
)
def test_orders_that_nothing_tells_apart(shapes: Shapes, tmp_path: Path) -> None:
    assert "more than one order" in refused(tmp_path, shapes)
    (tmp_path / "w.pt").write_bytes(write_archive(tensors(shapes)))
    found = registry.read(tmp_path / "w.pt")
    names = list(dict.fromkeys(name.split(".")[0] for name in shapes))
    assert list(dict.fromkeys(s.name.split(".")[0] for s in found.sources)) == names


def order_of(found: Imported) -> list[str]:
    return list(dict.fromkeys(stored.name.split(".")[0] for stored in found.sources))


def specs(input_size: int, *layers: tuple[str, int]) -> Any:
    key = {"dense": "units"}
    given = [{"type": kind, key.get(kind, "hidden_size"): size} for kind, size in layers]
    return from_mapping({"model": {"input_size": input_size, "layers": given}}).specs


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_config_decides(suffix: str, tmp_path: Path) -> None:
    """If sizes fit in two orders, a note names both, and a config selects one."""
    shapes = lstm("lstm.", 3, 5) | linear("fc.", 5, 3)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        path.write_bytes(write_archive(tensors(shapes)))
    else:
        save_file(tensors(shapes), path, {"format": "pt"})
    imported = registry.read(path)
    assert order_of(imported) == ["lstm", "fc"]
    assert "lstm -> fc" in imported.notes[0]
    assert "also" in imported.notes[0]
    assert "fc -> lstm" in imported.notes[0]
    assert "lstm-cli run CONFIG DATA --weights FILE" in imported.notes[0]
    for layers, order in (
        (specs(3, ("lstm", 5), ("dense", 3)), ["lstm", "fc"]),
        (specs(5, ("dense", 3), ("lstm", 5)), ["fc", "lstm"]),
    ):
        assert order_of(registry.read(path, ReadOptions(layers=layers))) == order


def test_layers_alike_beside_a_config(tmp_path: Path) -> None:
    shapes = lstm("b.", 4, 4) | lstm("a.", 4, 4)
    save_file(tensors(shapes), tmp_path / "w.safetensors", {"format": "pt"})
    layers = specs(4, ("lstm", 4), ("lstm", 4))
    with pytest.raises(WeightsError, match="a and b are alike") as caught:
        registry.read(tmp_path / "w.safetensors", ReadOptions(layers=layers))
    assert "torch.save" in caught.value.hints[0]  # which keeps an order, and this is said:
    (tmp_path / "w.pt").write_bytes(write_archive(tensors(shapes)))
    found = registry.read(tmp_path / "w.pt", ReadOptions(layers=layers))
    assert order_of(found) == ["b", "a"]
    assert "file's order is used, though others fit" in found.notes[0]


@pytest.mark.parametrize(
    ("shapes", "order"),
    [
        (lstm("10.", 4, 4) | lstm("9.", 4, 4), ["9", "10"]),
        (lstm("net.1.", 4, 4) | lstm("net.0.", 4, 4), ["net"]),
        (dict(sorted((linear("fc.", 4, 4) | lstm("lstm.", 4, 4)).items())), ["lstm", "fc"]),
    ],
)
def test_a_stored_order_that_is_none(shapes: Shapes, order: list[str], tmp_path: Path) -> None:
    """Numbers in names contradict the order, or the names are sorted: biases before weights."""
    (tmp_path / "w.pt").write_bytes(write_archive(tensors(shapes)))
    imported = registry.read(tmp_path / "w.pt")
    assert order_of(imported) == order
    why = "the file keeps no order" if "fc" in order else "numbers in the names contradict"
    assert why in imported.notes[0]
    first = next(s.name for s in imported.sources if s.native.startswith("layers.0."))
    assert not first.startswith(("10.", "net.1.", "fc."))


HOPELESS: dict[str, tuple[Shapes, str]] = {
    "embedding": ({"embed.weight": (9, 3)} | lstm("l.", 3, 5), "embed.*nn.Embedding"),
    "unnamed embedding": ({"e.weight": (9, 3)} | lstm("l.", 3, 5), "e has no bias.*nn.Embedding"),
    "norm": (lstm("l.", 3, 5) | {"n.weight": (5,), "n.bias": (5,)}, "module n .*LayerNorm"),
    "convolution": (lstm("l.", 3, 5) | {"c.weight": (5, 3, 2)}, "module c .*Conv1d"),
    "attention": (lstm("l.", 3, 4) | {"a.in_proj_weight": (12, 4)}, "MultiheadAttention"),
    "weight_norm": (
        {"l.weight_hh_l0_g": (8, 1), "l.weight_hh_l0_v": (8, 2)} | lstm("l.", 3, 2),
        "l.weight_hh_l0_g.*weight_norm",
    ),
    "initial state": (lstm("l.", 3, 2) | {"h0": (2,)}, "tensor h0"),
    "two gates": (lstm("l.", 3, 4, gates=2), "module l is neither"),
    "one bias": ({k: v for k, v in lstm("", 3, 4).items() if "bias_hh" not in k}, "bias_hh_l0"),
    "no matrix": ({k: v for k, v in lstm("", 3, 4).items() if "_hh" not in k}, "weight_hh_l0"),
    "a layer missing": (
        lstm("", 3, 4) | {k.replace("l0", "l2"): v for k, v in lstm("", 4, 4).items()},
        "lacks weight_ih_l1",
    ),
    "a direction missing": (
        lstm("", 3, 4)
        | {k.replace("l0", "l1"): v for k, v in lstm("", 4, 4).items()}
        | {f"{k}_reverse": v for k, v in lstm("", 3, 4).items()},
        "lacks weight_ih_l1_reverse",
    ),
    "a short bias": (lstm("", 3, 4) | {"bias_ih_l0": (15,)}, "bias_ih_l0"),
    "layers that do not chain": (
        lstm("", 3, 4) | {k.replace("l0", "l1"): v for k, v in lstm("", 5, 4).items()},
        "reads 4 features in layer 1",
    ),
    "a wrong projection": (lstm("", 3, 4) | {"weight_hr_l0": (2, 4)}, "neither"),
    "modules that do not chain": (lstm("a.", 3, 4) | linear("b.", 7, 2), "b .linear. reads 7"),
    "nothing": ({"x": (3,)}, "tensor x"),
    "no values": (lstm("", 0, 4), "without values"),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_cannot_be_represented_is_named(kind: str, tmp_path: Path) -> None:
    shapes, message = HOPELESS[kind]
    assert re.search(message, refused(tmp_path, shapes), re.DOTALL)


def test_prefixes(tmp_path: Path) -> None:
    shapes = lstm("a.b.", 3, 4) | lstm("a.bc.", 4, 5) | {"a.n.weight": (3,)}
    assert {s.name.rpartition(".")[0] for s in read(tmp_path, shapes, "a.b").sources} == {"a.b"}
    assert "no tensor below a.b.c" in refused(tmp_path, shapes, "a.b.c")


def test_order_and_dtype_survive(tmp_path: Path) -> None:
    """float64 stays, float32 stays, one file of both."""
    state_dict = tensors(lstm("z.", 3, 4) | linear("a.", 4, 2))
    state_dict["a.weight"] = state_dict["a.weight"].astype(np.float64)
    (tmp_path / "w.pt").write_bytes(write_archive(state_dict))
    imported = registry.read(tmp_path / "w.pt")
    assert [str(v.dtype) for v in imported.tensors.values()] == ["float32"] * 3 + [
        "float64", "float32",
    ]  # fmt: skip
    assert np.array_equal(imported.tensors["layers.1.weight"], state_dict["a.weight"])


def test_members_are_aligned() -> None:
    """PyTorch aligns members in the same way, so that it can map a file into memory."""
    data = write_archive(tensors(lstm("lstm.", 3, 4)))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for member in file.infolist():
            name, extra = struct.unpack_from("<HH", data, member.header_offset + 26)
            assert (member.header_offset + 30 + name + extra) % 64 == 0


def test_a_second_head_is_no_flatten(tmp_path: Path) -> None:
    heads = {**linear("h1.", 4, 2), **linear("h2.", 4, 2)}
    what = refused(tmp_path, {**lstm("a.", 3, 4), **heads})
    assert "h2" in what


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"fc.weight":{entry},"fc.weight":{entry}}}'.encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="names something twice"):
        registry.read(tmp_path / "w.safetensors", ReadOptions("pytorch"))
