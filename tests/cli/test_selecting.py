"""--prefix, --only and --ignore select tensors of a state dict, in every command that reads one."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import lstm_cli
from lstm_cli.errors import LstmCliError, UsageError
from lstm_cli.formats import registry
from lstm_cli.formats.torch.writer import write_archive

SHAPES = {
    "lstm.weight_ih_l0": (12, 5),
    "lstm.weight_hh_l0": (12, 3),
    "lstm.bias_ih_l0": (12,),
    "lstm.bias_hh_l0": (12,),
    "fc.weight": (2, 3),
    "fc.bias": (2,),
}


def random_tensors(seed, shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


NETWORK = random_tensors(3, SHAPES)
REST = random_tensors(5, {"criterion.weight": (2,), "bce.pos_weight": (1,), "norm.weight": (3,)})


@pytest.fixture(params=[".pt", ".safetensors"])
def files(request, tmp_path):
    """Two files: the network alone, and the network with a loss and a norm."""
    paths = tmp_path / f"alone{request.param}", tmp_path / f"all{request.param}"
    for path, tensors in zip(paths, (NETWORK, {**NETWORK, **REST}), strict=True):
        if request.param == ".pt":
            path.write_bytes(write_archive(tensors))
        else:
            save_file(tensors, path)
    return paths


CHOICES = (
    ("--only", "lstm.*,fc.*"),
    ("--only", "lstm.*", "--only", "fc.*"),
    ("--ignore", "criterion.*, *pos_weight,norm.*"),
    ("--only", "*_l0,fc.*,norm.*", "--ignore", "norm.*"),
)


@pytest.mark.parametrize("options", CHOICES)
def test_every_command_selects(lstm, files, data, tmp_path, options):
    alone, every = files
    refused = lstm("inspect-shapes", every)
    assert refused.code == 4
    assert "'lstm.*,fc.*'" in refused.err
    assert lstm("convert", every, tmp_path / "o.safetensors", *options).code == 0
    converted = registry.read(tmp_path / "o.safetensors")
    for name, value in registry.read(alone).tensors.items():
        np.testing.assert_array_equal(converted.tensors[name], value)
    same = lstm("compare", every, alone, *options[:2], *options[2:])
    if options == CHOICES[0]:
        assert same.code == 0
        assert lstm("compare", every, tmp_path / "o.safetensors", *options).code == 0
    shapes = lstm("inspect-shapes", every, *options)
    assert shapes.code == 0
    assert "left out, as --" in shapes.err
    assert "norm.weight" in shapes.err
    outputs = []
    for path, extra in ((alone, ()), (every, options)):
        out = tmp_path / f"{path.stem}.h5"
        command = ("run", path, data, "--engine", "reference", "--output", out, *extra)
        assert lstm(*command).code == 0
        with h5py.File(out) as file:
            outputs.append(file["outputs"][()])
    np.testing.assert_array_equal(*outputs)


def test_in_python(files):
    alone, every = files
    x = np.random.default_rng(0).standard_normal((2, 4, 5))
    expected = lstm_cli.load(alone, engine="reference").run(x).outputs
    for options in (
        {"only": "lstm.*,fc.*"},
        {"only": ["lstm.*", "fc.*"]},
        {"ignore": ("criterion.*", "bce.*", "norm.*")},
    ):
        net = lstm_cli.load(every, engine="reference", **options)
        np.testing.assert_array_equal(net.run(x).outputs, expected)
    for wrong in (3, "", [], "a,,b", [1], b"lstm"):
        with pytest.raises(UsageError, match="ignore is not a list of patterns"):
            lstm_cli.load(every, ignore=wrong)


@pytest.mark.parametrize(
    ("option", "pattern", "near"),
    [
        ("--only", "lstn.*", "lstm.*"),
        ("--only", "lstm", "lstm.*"),
        ("--ignore", "criterio.*", "criterion.*"),
        ("--ignore", "bce.pos_weigth", "bce.pos_weight"),
    ],
)
def test_a_pattern_that_matches_nothing(lstm, files, option, pattern, near):
    outcome = lstm("inspect-shapes", files[1], option, pattern)
    assert outcome.code == 4
    assert f"has a name that {option} {pattern} matches" in outcome.err
    assert f"hint: {option} '{near}'" in outcome.err
    again = lstm("inspect-shapes", files[1], option, near)
    assert f"that {option} {near} matches" not in again.err
    assert lstm("inspect-shapes", files[1], option, "zzz*").code == 4


def test_no_tensors_and_parts_of_a_layer(lstm, files):
    outcome = lstm("inspect-shapes", files[1], "--only", "lstm.*", "--ignore", "*")
    assert outcome.code == 4
    assert "the options select no tensor" in outcome.err
    outcome = lstm("inspect-shapes", files[0], "--ignore", "*.bias_hh_l0")
    assert outcome.code == 4
    assert "without lstm.bias_hh_l0" in outcome.err
    assert "hint: 'lstm.*' matches all of the module" in outcome.err
    assert lstm("inspect-shapes", files[0], "--ignore", "fc.*").code == 0


def test_prefix_and_patterns(lstm, tmp_path):
    """Patterns match whole names, with the prefix."""
    tensors = {f"net.{name}": value for name, value in {**NETWORK, **REST}.items()}
    other = {f"other.{name}": value for name, value in random_tensors(9, SHAPES).items()}
    save_file({**tensors, **other}, tmp_path / "w.safetensors")
    ignore = "net.criterion.*,*.bce.*,net.norm.*"
    command = ("inspect-shapes", tmp_path / "w.safetensors", "--prefix", "net", "--ignore")
    assert lstm(*command, ignore).code == 0
    assert lstm(*command, "criterion.*").code == 4
    one = registry.read(
        tmp_path / "w.safetensors", registry.ReadOptions(prefix="net", only=("net.lstm.*",))
    )
    value = one.tensors["layers.0.weight_ih"]
    np.testing.assert_array_equal(value, NETWORK["lstm.weight_ih_l0"])


def test_state_dicts_of_a_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    states = {k: {n: torch.tensor(v) for n, v in random_tensors(k, SHAPES).items()} for k in (1, 2)}
    torch.save({"model": states[1], "ema": states[2]}, tmp_path / "c.pt")
    with pytest.raises(LstmCliError, match="holds 2 state dicts"):
        registry.read(tmp_path / "c.pt")
    for options, k in (({"ignore": ("ema.*",)}, 1), ({"only": ("ema.*",)}, 2)):
        file = registry.read(tmp_path / "c.pt", registry.ReadOptions(**options))
        value = states[k]["lstm.weight_ih_l0"].numpy()
        np.testing.assert_array_equal(file.tensors["layers.0.weight_ih"], value)


def test_other_formats_are_read_whole(lstm, files, config, data, tmp_path):
    native = tmp_path / "net.safetensors"
    assert lstm("convert", files[0], native).code == 0
    for suffix in ("keras", "onnx", "weights.h5"):
        path = tmp_path / f"net.{suffix}"
        assert lstm("convert", native, path).code == 0
        for option in ("--only", "--ignore", "--prefix"):
            outcome = lstm("inspect-shapes", path, option, "lstm.*")
            assert outcome.code == 2, outcome.err
            assert f"hint: leave {option} out" in outcome.err
    assert lstm("compare", native, native, "--only", "lstm.*").code == 2
    assert lstm("inspect-shapes", files[0], "--only", "lstm.*,").code == 2


def test_help_names_them(lstm):
    for command in ("convert", "compare", "run", "inspect-shapes", "train", "bench"):
        text = lstm(command, "--help").out
        assert re.search(r"--only NAMES", text)
        assert re.search(r"--ignore NAMES", text)
