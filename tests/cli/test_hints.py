"""Hints work: each is read from what a command prints, done, and the problem is gone.

A case is a hint as it stands in the source, its holes ``{}``, and a command line that ends in it.
The line is run; what the hint says is added to it, or run in its place; then the problem must be
gone. `test_every_hint_is_followed` names texts of the package without a case: add one, or say in
`ELSEWHERE` which test does what the text says, or in `UNDRIVEN` why none can.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import h5py
import keras_files
import numpy as np
import pytest
import tmva_files
import yaml
from networks import random_weights
from repository import ROOT

import lstm_cli
from lstm_cli.cli.main import COMMANDS, cli, main
from lstm_cli.config import json_schema
from lstm_cli.engines.jit.runtime import machine
from lstm_cli.errors import LstmCliError
from lstm_cli.workflows.train.training_folder import TrainingFolder

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(rf"lstm-cli ({'|'.join(COMMANDS)})\b")
SETTING = re.compile(r"--set ('[^']*'|\S+?)[;,]?(?=\s|$)")
KEY = re.compile(r"(?<!\.)\b(?:model|data|train)\.[a-z_]++(?![\d(])(?:\.[a-z_]++(?![\d(]))*")

N, T, D, H = 6, 5, 4, 3


# Files that the cases share, in a folder of their own.


def net(*layers: dict[str, Any], path: str = "c.yaml", size: int = D, **sections: Any) -> None:
    """A config, of an lstm that returns sequences if no layers are given."""
    layers = layers or ({"type": "lstm", "hidden_size": H},)
    steps = {"steps": sections.pop("steps")} if "steps" in sections else {}
    model = {"input_size": size, **steps, "layers": list(layers)}
    Path(path).write_text(yaml.safe_dump({"model": model, **sections}))


LSTM = {"type": "lstm", "hidden_size": H}
LAST = {**LSTM, "return_sequences": False}
FLAT = {"type": "flatten"}


def dense(units: int, activation: str | None = None) -> dict[str, Any]:
    return {"type": "dense", "units": units} | ({"activation": activation} if activation else {})


def classifier(**train: Any) -> None:
    """A config that learns classes."""
    loss = {"loss": "cross_entropy", "epochs": 1, "batch_size": 2}
    net(LAST, dense(3, "softmax"), train=loss | train)


def hdf5(path: str = "x.h5", **datasets: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name.replace("__", "/")] = value


def inputs(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape or (N, T, D)).astype("f4")


CLASSES = np.arange(N) % 3


def saved(path: str = "n.safetensors", source: str = "c.yaml") -> None:
    """The weights of a config, each another one, in any format."""
    specs = lstm_cli.build(source, engine="reference").config.specs
    weights = {name: v.astype("f4") for name, v in random_weights(specs, 3).items()}
    lstm_cli.build(source, engine="reference", weights=weights).save(path)


# What a case is, and how its hint is followed.


@dataclass(frozen=True)
class Case:
    """A hint, and what leads to it.

    Attributes
    ----------
    hint
        The text in the source, its holes ``{}``.
    make
        Writes the files.
    line
        The command line, or a call of Python that raises.
    do
        What the hint leads to, where it is not options with values alone: more of the command
        line, another one (``lstm-cli ...``), or a change to the files.
    shows
        What the second run shows; None: it only is free of the problem.
    code
        Exit code of the second run.
    """

    hint: str
    make: Callable[[], None]
    line: str | Callable[[], Any]
    do: str | Callable[[], Any] | None = None
    shows: str | None = None
    code: int = 0


CASES: list[Case] = []


def case(hint: str, line: Any, do: Any = None, *, shows: str | None = None, code: int = 0) -> Any:
    """Add a case to the table; the decorated function writes its files."""

    def add(make: Callable[[], None]) -> Callable[[], None]:
        CASES.append(Case(hint, make, line, do, shows, code))
        return make

    return add


def pattern(template: str) -> re.Pattern[str]:
    """Pattern of a text in the source as it is printed."""
    holes = template.split("{}")
    text = ".+?".join(map(re.escape, holes))
    if not holes[-1]:
        return re.compile(text.removesuffix(".+?") + r"(?:'[^']*'|\S+)")
    return re.compile(text + (r"(?!\w)" if template[-1].isalnum() else ""))


def options_in(hint: str) -> list[str]:
    """The options that a hint names, with the values it gives."""
    words: list[str] = []
    parts = shlex.split(re.sub(r"[;,](?=\s)|[;,]$", "", hint).replace("`", ""))
    for name, value in zip(parts, [*parts[1:], ""], strict=True):
        if OPTION.fullmatch(name):
            words += [name] if name in FLAGS else [name, value]
    return words


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        yield name, found


OPTIONS = {
    name: option
    for _, command in commands()
    for option in command.params
    if isinstance(option, click.Option)
    for name in option.opts
}
FLAGS = {name for name, option in OPTIONS.items() if option.is_flag}


def run(lstm: Any, line: str) -> tuple[int, str]:
    words = shlex.split(line)
    if words[0] in ("run", "train", "bench") and "--engine" not in words:
        words += ["--engine", "reference"]
    outcome = lstm(*words)
    assert "fault in lstm-cli" not in outcome.err
    return outcome.code, outcome.out + outcome.err


def called(function: Callable[[], Any]) -> str:
    """The error that a call raises; nothing if it raises none."""
    try:
        function()
    except LstmCliError as error:
        return f"error: {error}"
    return ""


def _id(one: Case) -> str:
    return re.sub(r"\W+", "-", one.hint)[:60].strip("-")


def check(lstm: Any, one: Case) -> None:
    one.make()
    code, text = run(lstm, one.line) if isinstance(one.line, str) else (1, called(one.line))
    matches = pattern(one.hint).search(text)
    assert matches, text
    shown = next(line for line in text.splitlines() if matches[0] in line)
    problem = text.partition("error: ")[2].partition("\n")[0] or shown
    if callable(one.do) and callable(one.line):
        again: Any = one.do
    elif callable(one.do):
        one.do()
        again = one.line
    elif one.do is None:
        added = options_in(matches[0])
        assert added, f"no options in {matches[0]!r}: say what is to be done"
        again = f"{one.line} {shlex.join(added)}"
    else:
        _said(one.do, shown, f"{one.line} {text}")
        again = one.do.removeprefix("lstm-cli ")
        if again == one.do:
            again = f"{one.line} {again}"
    code, text = run(lstm, again) if isinstance(again, str) else (0, called(again))
    assert problem not in text, text
    assert code == one.code, text
    assert one.shows is None or one.shows in text, text


def _said(do: str, hint: str, line: str) -> None:
    """All options, commands and keys of `do` are in the hint or in the line."""
    for word in (*OPTION.findall(do), *KEY.findall(do)):
        key = word.rpartition(".")[2]
        assert key in hint + line or word == "--set", f"{word} is not in {hint!r}"
    if found := COMMAND.match(do):
        known = found[1] in hint or line.startswith(found[1]) or "in a config" in hint
        assert known, f"{found[0]} is not in {hint!r}"


# The cases: a line each, as in a table.
# fmt: off


# Config and data do not fit.


@case("--set model.input_size={}, if the data is right", "run c.yaml x.h5")
@case("--set model.input_size={}, if the data is right", "inspect-shapes c.yaml x.h5")
def _() -> None:
    net()
    hdf5(inputs=inputs(N, T, D + 1))


@case("--set model.steps={}", "run c.yaml x.h5")
def _() -> None:
    net(LSTM, FLAT, dense(2), steps=T - 1)
    hdf5(inputs=inputs())


@case("--set data.transpose=true, if MATLAB, Julia, Fortran or R wrote the file", "run c.yaml x.h5")
def _() -> None:
    net(data={"layout": "dense"})
    hdf5(inputs=inputs(D, T, N))


@case("--set data.transpose=false, if the axes are not reversed in this file", "run c.yaml x.h5")
def _() -> None:
    net(data={"transpose": True})
    hdf5(inputs=inputs())


@case("--set data.window.predict=1", "train c.yaml x.h5 --output r")
def _() -> None:
    window = {"length": 2, "horizon": 1, "predict": 2}
    net(LAST, dense(3, "softmax"), data={"window": window}, train={"loss": "cross_entropy"})
    hdf5(inputs=inputs(), targets=np.tile(np.arange(T) % 3, (N, 1)))


@case("without layer {} (flatten) the outputs are one per step", "run c.yaml x.h5", do=lambda: (
    net(LSTM, dense(1), train={"loss": "mse"})))
def _() -> None:
    net(LSTM, FLAT, dense(1), steps=T, train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=inputs(N, T, 1))


@case("--set model.layers.{}.return_sequences={}", "run c.yaml x.h5")
def _() -> None:
    net(LSTM, dense(1), train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=inputs(N, 1))


@case("--set train.loss=cross_entropy takes the targets as classes", "run c.yaml x.h5")
def _() -> None:
    net(LAST, dense(3, "softmax"), train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=CLASSES)


@case("--set model.layers.{}.units={}", "run c.yaml x.h5")
def _() -> None:
    net(LAST, dense(3), train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=inputs(N, 2))


@case("a last layer {type: dense, units: {}}", "run c.yaml x.h5",
      do=lambda: net(LAST, dense(2), train={"loss": "mse"}))
def _() -> None:
    net(LAST, train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=inputs(N, 2))


@case("{}, if they are one per {}; else {}", "run c.yaml x.h5", do="--set model.layers.0.return_sequences=true")
@case("{}, if they are one per {}; else {}", "run c.yaml x.h5", do="--set model.layers.1.units=5")
def _() -> None:
    net(LAST, dense(1), train={"loss": "mse"})
    hdf5(inputs=inputs(), targets=inputs(N, T))


@case("in a config, data.targets names another dataset", "run n.safetensors x.h5 --set train.loss=mse",
      do="--set data.targets=others")
def _() -> None:
    net(LAST, dense(3))
    saved()
    hdf5(inputs=inputs(), targets=inputs(N, 2), others=inputs(N, 3))


@case("fewer units in layer {}", "run c.yaml x.h5", do=lambda: net())
def _() -> None:
    net({"type": "lstm", "hidden_size": 200_000})
    hdf5(inputs=inputs())


@case("layer {} is stateful, but {} continues {}, which does not end where it begins; --set model.layers.{}.stateful=false begins every window anew", "run c.yaml x.h5 --batch-size 1")
def _() -> None:
    net({**LAST, "stateful": True}, data={"window": {"length": 3, "stride": 1}})
    hdf5(inputs=inputs(1, 9, D))


# Shares of a run.


@case("leave out {}", "run c.yaml x.h5 --output o.h5 --shard 1/2 --workers 2", do="lstm-cli run c.yaml x.h5 --output o.h5 --shard 1/2")
@case("leave out {}", "run c.yaml x.h5 --output o.h5 --shard 1/2 --gates g.h5", do="lstm-cli run c.yaml x.h5 --output o.h5 --shard 1/2")
@case("leave out {}", "run c.yaml x.h5 --workers 2 --set model.layers.0.stateful=true", do="lstm-cli run c.yaml x.h5 --set model.layers.0.stateful=true")
@case("--output results.h5", "run c.yaml x.h5 --shard 1/2")
@case("lstm-cli run CONFIG DATA --output {} --shard 1/2 writes one", "join o.h5", do="lstm-cli run c.yaml x.h5 --output o.h5 --shard 1/2")
def _() -> None:
    net()
    hdf5(inputs=inputs())


def _shards(*numbers: str, seed: int = 1) -> None:
    for number in numbers:
        words = f"run c.yaml x.h5 --output o.h5 --quiet --seed {seed} --shard {number}"
        assert main([*words.split(), "--engine", "reference"]) == 0


def _remove(pattern: str) -> None:
    for path in Path().glob(pattern):
        path.unlink()


@case("lstm-cli run CONFIG DATA --output {} --shard {}/{} writes it", "join o.h5", do=lambda: _shards("1/3"))
@case("rm {}.shard-*-of-{} removes those of one division", "join p.h5", do=lambda: _remove("p.h5.shard-*-of-4"))
@case("run the shares of the older one again, for example --shard {}/{}", "join q.h5", do=lambda: (_shards("3/3"), Path("o.h5.shard-3-of-3").rename("q.h5.shard-3-of-3")))
def _() -> None:
    net()
    hdf5(inputs=inputs())
    _shards("1/3", "2/3", "3/3", "1/4")
    for path in sorted(Path().glob("o.h5.shard-*")):
        shutil.copy(path, path.name.replace("o.", "p."))
        shutil.copy(path, path.name.replace("o.", "q."))
    _remove("[oq].h5.shard-1-of-4")
    _shards("3/3", seed=2)
    Path("o.h5.shard-3-of-3").rename("q.h5.shard-3-of-3")
    _shards("2/3", "3/3")
    _remove("o.h5.shard-1-of-3")


# CONFIG, DATA and weights.


@case("the config comes before the data: lstm-cli run CONFIG DATA", "convert x.h5 o.onnx", do="lstm-cli run c.yaml x.h5")
@case("give weights as --weights FILE, and a YAML file as CONFIG", "run w.yaml x.h5", do="lstm-cli run c.yaml x.h5 --weights w.yaml")
@case("name a YAML config, and the weights with --weights", "run bare.safetensors x.h5", do="lstm-cli run c.yaml x.h5 --weights bare.safetensors")
@case("--config names a YAML config that describes the layers", "convert bare.safetensors o.onnx", do="--config c.yaml")
@case("lstm-cli inspect-shapes {} shows what the file holds", "run c.yaml x.h5 --weights bare.safetensors --set model.layers.0.hidden_size=2", do="lstm-cli inspect-shapes bare.safetensors", shows="layers.0.weight_ih")
@case("name a config of its layers: lstm_cli.load(path, config=...)", lambda: lstm_cli.load("bare.safetensors"), do=lambda: lstm_cli.load("bare.safetensors", config="c.yaml"))
@case("--config names a YAML config for the file that has none", "compare bare.safetensors bare.safetensors --data x.h5", do="--config c.yaml")
def _() -> None:
    from safetensors.numpy import load_file, save_file

    net()
    saved()
    save_file(load_file("n.safetensors"), "bare.safetensors")
    shutil.copy("n.safetensors", "w.yaml")
    hdf5(inputs=inputs())


@case("lstm-cli data {} shows what it holds", "run x.h5 x2.h5", do="lstm-cli data x.h5", shows="/inputs")
@case("give the file as CONFIG: lstm-cli inspect-shapes {}", "run c.yaml w.weights.h5", do="lstm-cli inspect-shapes w.weights.h5", shows="layers/lstm")
@case("name its files: {}{}", "data f", do="lstm-cli data f/a.h5")
@case("the config comes first, then the data, which are HDF5: lstm-cli run CONFIG DATA.h5", "run t.csv x.h5", do="lstm-cli run c.yaml x.h5")
@case("leave --{} out: {} files are read whole", "inspect-shapes n.safetensors --only 'lstm.*'", do="lstm-cli inspect-shapes n.safetensors")
@case("numpy.savez('reference.npz', inputs=..., outputs=...) writes them into one file", "convert n.safetensors o.onnx --check r.npy", do="--check reference.npz")
@case("--to onnx, or leave out --lengths and --states", "convert n.safetensors o.keras --lengths", do="--to onnx")
@case("--to onnx, or leave out --lengths and --states", "convert n.safetensors o.keras --lengths", do="lstm-cli convert n.safetensors o.keras")
@case("name another file to write", "convert n.safetensors n.safetensors", do="lstm-cli convert n.safetensors m.safetensors")
@case("--to ", "convert n.safetensors o.unknown", do="--to onnx")
@case("{} names another file", "run c.yaml x.h5 --output o.h5 --gates o.h5", do="--gates g.h5")
@case("convert and compare take a config as --config {}", "run c.yaml x.h5 --weights c.yaml", do="lstm-cli convert n.safetensors d.pt --config c.yaml")
@case("{} names another file", "convert n.safetensors c.yaml --config c.yaml", do="lstm-cli convert n.safetensors d.safetensors --config c.yaml")
@case("--force replaces it", "run c.yaml x.h5 --output x2.h5")
@case("mkdir -p {}", "run c.yaml x.h5 --output a/o.h5", do=lambda: Path("a").mkdir())
@case("{} {}", "run c.yaml x.h5 --output .", do="--output ./out.h5")
@case("{} OTHER{}", "run c.yaml x.h5 --output r/model.safetensors", do="--output r/OTHER.h5")
def _() -> None:
    net()
    saved()
    hdf5(inputs=inputs())
    hdf5("x2.h5", inputs=inputs())
    Path("f").mkdir()
    hdf5("f/a.h5", inputs=inputs())
    Path("t.csv").write_text("a,b\n1,2\n")
    assert main(["convert", "n.safetensors", "w.weights.h5", "--quiet"]) == 0
    outputs = lstm_cli.load("n.safetensors", engine="reference").run(inputs()).outputs
    np.savez("reference.npz", inputs=inputs(), outputs=outputs)
    np.save("r.npy", inputs())
    Path("r").mkdir()
    saved("r/model.safetensors")
    saved("r/checkpoint.safetensors")


@case("if the file has one of these formats, --from FORMAT names the format", "run c.yaml x.h5 --weights k.h5", do="--from keras")
def _() -> None:
    """HDF5 behind a large block of the user's."""
    net()
    hdf5(inputs=inputs())
    built = keras_files.cell_names("lstm", keras_files.drawn("LSTM", D, H, np.random.default_rng(1)))
    keras_files.legacy(Path("k.h5"), {"lstm": built}, userblock_size=8192)

# Data in HDF5.


@case("--set {}", "run c.yaml x.h5 --set data.inputs=frames_")
@case("--set {}", "run c.yaml x.h5 --set 'data.inputs=two word'")
@case("lstm-cli data {}", "run c.yaml x.h5 --set data.inputs=zzz", do="lstm-cli data x.h5", shows="/frames")
@case("in a config, {} names the inputs", "run one.yaml line.h5", do="--set data.inputs=second")
@case("in a config, {} names the inputs", "run c.yaml only.h5", do="--set data.inputs=frames")
@case("in a config, data.lengths names the lengths", "run c.yaml x.h5 --set data.inputs=rows --set data.layout=concatenated", do="--set data.lengths=number")
@case("--set data.{}=null", "run c.yaml x.h5 --set data.inputs=rows --set data.lengths=number --set data.mask=number")
@case("--set data.layout=concatenated", "run c.yaml x.h5 --set data.inputs=rows --set data.lengths=number --set data.layout=series")
@case("data.layout: {}", lambda: _opened("dens"), do=lambda: _opened("dense"))
@case("in a config, data.{} names another dataset", "run c.yaml x.h5 --set data.inputs=text", do="--set data.inputs=frames")
@case("{} names the group; in a config, data.inputs: {} names the dataset", "run c.yaml x.h5:/frames", do="lstm-cli run c.yaml x.h5 --set data.inputs=frames")
@case("{} names a group of {}", "run c.yaml x.h5:a", do="lstm-cli run c.yaml x.h5:/a")
@case("--set data.layout=... names another layout", "run c.yaml x.h5 --set data.inputs=rows --set data.layout=dense", do="--set data.layout=series")
def _() -> None:
    net()
    hdf5("only.h5", frames=inputs(), rows=inputs(8, D))
    hdf5("line.h5", first=inputs(8), second=inputs(9))
    net(path="one.yaml", size=1)
    hdf5(a__inputs=inputs(), frames=inputs(), rows=inputs(8, D), **{"two words": inputs()}, number=np.array([3, 5]), text=["a", "b"])


def _opened(layout: str) -> None:
    from lstm_cli.data import DataOptions, open_data

    with open_data(["x.h5"], DataOptions(inputs="frames", layout=layout)):
        pass


@case("--set data.layout=concatenated", "run c.yaml x.h5 --set data.layout=series --set data.window.length=2")
def _() -> None:
    net()
    hdf5(inputs=inputs(8, D), lengths=np.array([3, 5]))


@case("choose one: {}", "run c.yaml x.h5", do="lstm-cli run c.yaml x.h5:/a")
@case("in a config, data.targets names one: targets/data/{}", "run c.yaml r.h5", do="--set data.targets=targets/data/a")
def _() -> None:
    net(LAST, dense(3))
    hdf5(a__inputs=inputs(), b__inputs=inputs())
    with h5py.File("r.h5", "w") as file:
        file["inputs"] = inputs(8, D)
        file["seqLengths"] = np.array([[3, 1, 1], [5, 1, 1]])
        file["targets/data/a"] = np.array([0, 1])
        file["targets/data/b"] = np.array([0, 1])
        file["targets/size"] = np.array([3])


@case("in a config, model.input_size sets D: {}, or one of its divisors", lambda: _features("v.h5", None), do=lambda: _features("v.h5", D))
@case("in a config, data.targets names another dataset", "run c.yaml t.h5", do="--set data.targets=others")
def _() -> None:
    net(LAST, dense(1))
    with h5py.File("v.h5", "w") as file:
        rows = file.create_dataset("inputs", (2,), h5py.vlen_dtype("f4"))
        rows[0], rows[1] = np.zeros(8), np.zeros(12)
    hdf5("t.h5", inputs=inputs(), targets=inputs(N + 1, 1), others=inputs(N, 1))


def _features(path: str, features: int | None) -> None:
    from lstm_cli.data import DataOptions, open_data

    with open_data([path], DataOptions(features=features)):
        pass


@case("--allow-external reads them, if you trust the file", "inspect-shapes c.yaml unwritten.h5")
@case("--allow-external {}, if you trust the file", "run c.yaml link.h5")
@case("--allow-external {}, if you trust the file", "run c.yaml raw.h5")
def _() -> None:
    net()
    with h5py.File("link.h5", "w") as file:
        file["inputs"] = h5py.ExternalLink("away.h5", "/inputs")
    hdf5("away.h5", inputs=inputs())
    with h5py.File("unwritten.h5", "w") as file:
        for n in range(70):
            file.create_dataset(f"s{n}/inputs", (100_000, D), "f4")
    Path("raw.bin").write_bytes(bytes(4 * N * T * D))
    with h5py.File("raw.h5", "w") as file:
        file.create_dataset("inputs", (N, T, D), "f4", external=[("raw.bin", 0, 4 * N * T * D)])


@case("--set data.transpose=true", "run c.yaml m.h5")
@case("in a config, data.transpose: true", "data m.h5", do="lstm-cli run c.yaml m.h5 --set data.transpose=true")
def _() -> None:
    net()
    with h5py.File("m.h5", "w", userblock_size=512) as file:
        file["inputs"] = inputs(D, T, N)
        file["inputs"].attrs["MATLAB_class"] = np.bytes_("single")
    with open("m.h5", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")


@case("a struct with one matrix for each sequence, as FILE:/struct, can be read", "run c.yaml m.h5 --set data.inputs=cells", do="lstm-cli run c.yaml m.h5:/struct")
def _() -> None:
    net(data={"transpose": True})
    with h5py.File("m.h5", "w") as file:
        for k in range(2):
            file[f"struct/s{k}"] = inputs(D, T + k)
        file["cells"] = np.array([file["struct/s0"].ref] * 2, h5py.ref_dtype)
        file["cells"].attrs["MATLAB_class"] = np.bytes_("cell")


@case("--set data.window.length={}", "run c.yaml x.h5 --set data.window.length=9")
@case("--set data.window.length={}", "train c.yaml x.h5 --output r --set data.window.length=5 --set data.window.horizon=1 --set train.loss=mse")
@case("--set data.window.length=1 --set data.window.horizon={}", "train c.yaml x.h5 --output r --set data.window.length=5 --set data.window.horizon=5 --set train.loss=mse")
@case("--set data.window.predict=1", "train c.yaml y.h5 --output r --set data.window.length=2 --set data.window.predict=2 --set train.loss=mse")
def _() -> None:
    net(LAST, dense(D), train={"epochs": 1, "loss": "mse"})
    hdf5(inputs=inputs())
    hdf5("y.h5", inputs=inputs(), targets=inputs(N, D))


@case("run the files one at a time", "run c.yaml x.h5 y.h5", do="lstm-cli run c.yaml x.h5")
@case("run the files one at a time", "run c.yaml x.h5 z.h5 --output o.h5", do="lstm-cli run c.yaml z.h5 --output o.h5")
@case("lstm-cli run ... --output writes a file with states", "run c.yaml x.h5 --state s.h5", do=lambda: _states())
@case("lstm-cli data {} lists what is wrong with it", "train c.yaml nan.h5 --output r --set train.loss=mse --set train.normalize=true", do="lstm-cli data nan.h5", shows="nan.h5")
def _() -> None:
    net(LAST, dense(2))
    hdf5(inputs=inputs(), targets=inputs(N, 2))
    hdf5("y.h5", inputs=inputs(N, T, D + 1))
    hdf5("z.h5", inputs=inputs(8, D), lengths=np.array([3, 5]))
    hdf5("s.h5", inputs=inputs())
    bad = inputs()
    bad[0, 0, 0] = np.nan
    hdf5("nan.h5", inputs=bad, targets=inputs(N, 2))


def _states() -> None:
    assert main(shlex.split("run c.yaml x.h5 --output new.h5 --engine reference --quiet")) == 0
    Path("new.h5").replace("s.h5")


# The config.


@case("--set model.layers.0.hidden_size=128", "run c.yaml x.h5 --set model..x=3", do="lstm-cli run c.yaml x.h5 --set model.layers.0.hidden_size=128")
def _() -> None:
    net()
    hdf5(inputs=inputs())


@case("did you mean {}?", "run . x.h5", do="lstm-cli run ./c.yaml x.h5")
@case("set {} itself: --set {}=…", "run c.yaml x.h5 --set model.layers.0.hidden_size.x=3", do="lstm-cli run c.yaml x.h5 --set model.layers.0.hidden_size=3")
@case("set {} whole: --set '{}=[…]'", "run e.yaml x.h5 --set model.layers.0.hidden_size=3", do="lstm-cli run e.yaml x.h5 --set 'model.layers=[{type: lstm, hidden_size: 3}]'")
@case("the config has this key: --set {}.{}=…", "inspect-shapes t.yaml --lr 0.1", do="lstm-cli inspect-shapes t.yaml --set train.optimizer.learning_rate=0.1")
@case("--set {}=…", "run c.yaml x.h5 --set model.layers.hidden_size=3", do="lstm-cli run c.yaml x.h5 --set model.layers.0.hidden_size=3")
def _() -> None:
    Path("e.yaml").write_text("model: {input_size: 4, layers: []}")
    net(LAST, path="t.yaml", train={"loss": "mse"})
    net()
    hdf5(inputs=inputs())


def _config(text: str) -> Callable[[], Any]:
    return lambda: Path("c.yaml").write_text(text)


YAML = "model: {input_size: 4, layers: [{type: lstm, hidden_size: 3}]}"


@case("save it as UTF-8", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML, encoding="utf-16")


@case("keep one of the two", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML + "\nmodel: {}")


@case("remove the tag, the word that begins with !", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("3}", "!x 3}"))


@case("write it as an escape in double quotes, or remove it", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML + "\x07")


@case("look for an alias that contains itself, and for aliases of aliases", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML + "\ndata: &a {x: *a}")


@case('look for \\U in strings with double quotes: "..."', "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML + '\ndata: {inputs: "\\Uffffffff"}')


@case("sequences belong in an HDF5 file, given as DATA", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text("# " + "x" * 12_000_000)


@case("a network has at most {} layers; sequences belong in an HDF5 file, as DATA", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text("model: [" + "1," * 30_000 + "1]")


@case("here it is called `{}`", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("hidden_size", "units"))


@case("add `type: {}`", "inspect-shapes c.yaml", do="--set model.layers.0.type=lstm")
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("type: lstm, ", ""))


@case("add `{}: {}`", "inspect-shapes c.yaml", do="--set model.input_size=12")
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("input_size: 4, ", ""))


@case("write {}", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("{type: lstm, hidden_size: 3}", "lstm"))


@case("keys: {}", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML + "\nqqqqqq: 3")


@case("keys: name, alpha, beta", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("3}", "3, activation: {name: elu, qqqq: 3}}"))


@case("give one activation, or set `bidirectional: true`", "inspect-shapes c.yaml", do="--set model.layers.0.bidirectional=true")
def _() -> None:
    Path("c.yaml").write_text(YAML.replace("3}", "3, activation: [relu, tanh]}"))


@case("add `steps: 10` to model", "inspect-shapes c.yaml", do="--set model.steps=10")
def _() -> None:
    net(LSTM, FLAT, dense(2))


@case("remove one of the two", "inspect-shapes c.yaml", do="--set model.layers.0.coupled_input_forget=false")
def _() -> None:
    net({**LSTM, "coupled_input_forget": True, "forget_gate": False})


@case("end with {type: dense, units: …, activation: {}}, or train with loss: mse", "inspect-shapes c.yaml", do="--set train.loss=mse")
@case("end with {type: dense, units: …, activation: {}}, or train with loss: mse", "inspect-shapes c.yaml", do=lambda: classifier())
def _() -> None:
    net(LAST, dense(3), train={"loss": "binary_cross_entropy"})


@case("set units, or use a sigmoid and loss: binary_cross_entropy", "inspect-shapes c.yaml", do="--set model.layers.1.units=2")
def _() -> None:
    net(LAST, dense(1, "softmax"), train={"loss": "cross_entropy"})


@case("add a last layer {type: dense, units: …, activation: softmax}", "inspect-shapes c.yaml", do=lambda: classifier())
def _() -> None:
    net({**LAST, "activation": "softmax"})


@case("add `momentum: 0.9`", "inspect-shapes c.yaml", do="--set train.optimizer.momentum=0.9")
def _() -> None:
    net(LAST, train={"loss": "mse", "optimizer": {"type": "sgd", "nesterov": True}})


@case("remove train.{}, or change train.loss", "inspect-shapes c.yaml", do="--set train.label_smoothing=0")
def _() -> None:
    net(LAST, train={"loss": "mse", "label_smoothing": 0.1})


@case("add `validation: 0.1`", "inspect-shapes c.yaml", do="--set train.validation=0.1")
def _() -> None:
    net(LAST, train={"loss": "mse", "monitor": "val_loss"})


@case("check hidden_size, units, input_size and steps for a typing error", "inspect-shapes c.yaml", do=_config(YAML))
def _() -> None:
    net({"type": "lstm", "hidden_size": 2**24}, dense(2**24))


@case("put the flatten layer after all recurrent ones", "inspect-shapes c.yaml", do=lambda: net(LSTM, LSTM, FLAT, dense(2), steps=T))
def _() -> None:
    net(LSTM, FLAT, LSTM, dense(2), steps=T)


@case("set `return_sequences: true` in layer {}", "inspect-shapes c.yaml", do="--set model.layers.0.return_sequences=true")
def _() -> None:
    net(LAST, LSTM)


@case("the smallest config: model: {input_size: 12, layers: [{type: lstm, hidden_size: 100}]}", "inspect-shapes c.yaml", do=_config("model: {input_size: 12, layers: [{type: lstm, hidden_size: 100}]}"))
def _() -> None:
    Path("c.yaml").write_text("")

# Training.


@case("--set train.loss=cross_entropy, or binary_cross_entropy, mse, mae, huber", "train n.yaml x.h5 --output r", do="--set train.loss=cross_entropy")
@case("--output {}", "train c.yaml x.h5 --output x.h5")
@case("--output names another folder for a new run", "train c.yaml x.h5 --output half", do="--output r")
@case("--resume continues the run; --output names another folder for a new run", "train c.yaml x.h5 --output run", do="--resume")
@case("--resume continues the run; --output names another folder for a new run", "train c.yaml x.h5 --output run", do="--output r")
@case("--output names another folder for a run with other settings", "train c.yaml x.h5 --output run --resume --set train.batch_size=3", do="--output r")
@case("--output names another folder for a run on other data", "train c.yaml y.h5 --output run --resume", do="--output r")
@case("--dtype {}", "train c.yaml x.h5 --output run --resume --dtype float64")
@case("more epochs are allowed, fewer are not", "train c.yaml x.h5 --output run --resume --set train.epochs=1", do="--set train.epochs=3")
@case("lstm-cli train writes {}; name a folder with one, or a new one", "train c.yaml x.h5 --output bad --resume", do="--output r")
@case("lstm-cli data {} lists the datasets; `data.targets` names one", "train c.yaml z.h5 --output r", do="lstm-cli data z.h5", shows="/others")
@case("lstm-cli data {} lists the datasets; `data.targets` names one", "train c.yaml z.h5 --output r", do="--set data.targets=others")
@case("--set train.validation=FILE.h5:/group names other data, --set train.validation=0.2 holds out a share", "train c.yaml x.h5 --output r --set train.validation=wide.h5", do="--set train.validation=x.h5")
@case("--set train.validation=FILE.h5:/group names other data, --set train.validation=0.2 holds out a share", "train c.yaml x.h5 --output r --set train.validation=wide.h5", do="--set train.validation=0.2")
@case("--set train.validation={}", "train c.yaml x.h5 --output r --set train.validation=0.01")
@case("--set train.validation={}", "train c.yaml x.h5 --output r --set train.validation=0.99")
@case("--set train.validation={}", "train c.yaml many.h5 --output r --set train.validation=0.9999")
@case("--set train.validation=FILE.h5:/group holds out other data", "train c.yaml one.h5 --output r --set train.validation=0.5", do="--set train.validation=x.h5:/")
@case("--set train.validation=FILE.h5:/group", "train c.yaml x.h5 --output r --set train.validation=0.5 --set model.layers.0.stateful=true --batch-size 3", do="--set train.validation=x.h5:/")
@case("remove train.class_weights", "train b.yaml b.h5 --output r", do=lambda: net(LAST, dense(2, "sigmoid"), path="b.yaml", train={"loss": "binary_cross_entropy", "epochs": 1}))
@case("train.class_weights also takes a weight for each class", "train w.yaml w.h5 --output r", do="--set train.class_weights=[1,1,2]")
@case("leave `train.truncate` out", "train c.yaml x.h5 --output r --set train.truncate=2 --set model.layers.0.bidirectional=true", do="--set train.truncate=null")
@case("lstm-cli run {} {}", "train c.yaml x.h5 --output r", do="lstm-cli run r/model.safetensors x.h5", shows="accuracy")
@case("the values have exploded: limit the gradient, --set train.clip_norm=1.0, or train slower, {}, in a new --output", "train e.yaml e.h5 --output r", do="--set train.clip_norm=1.0 --output r2")
@case("{}: {}, in a new --output", "train s.yaml large.h5 --output r", do="--set train.normalize=true --output r2")
@case("--set train.normalize=true scales the inputs of weights drawn anew", "train s.yaml large.h5 --output r", do="--set train.normalize=true --output r2")
@case("--set model.layers.{}.clip={}", "train s.yaml e.h5 --output r --weights first.safetensors", do="--set model.layers.0.clip=5 --output r2")
@case("--dtype float64 holds larger values", "train s.yaml e.h5 --output r --weights last.safetensors", do="--dtype float64 --output r2")
@case("--set train.optimizer.learning_rate={}", "train e.yaml e.h5 --output r", do="--set train.optimizer.learning_rate=0.01 --output r2")
@case("the values have exploded: train slower, {}, in a new --output", "train e.yaml e.h5 --output r --set train.clip_norm=1e39", do="--set train.optimizer.learning_rate=0.01 --output r2")
@case("lstm-cli data {} says what else is wrong with the file", "train c.yaml nan.h5 --output r", do="lstm-cli data nan.h5", shows="problem")
@case("training begins from new weights; --weights {} begins from the config's weights", "train own.yaml x.h5 --output r", do="--weights n.safetensors --output r2")
def _() -> None:
    net(LAST, dense(3, "softmax"), path="n.yaml")
    saved(source="n.yaml")
    classifier(epochs=2)
    hdf5(inputs=inputs(), targets=CLASSES)
    hdf5("y.h5", inputs=inputs() + 1, targets=CLASSES)
    hdf5("z.h5", inputs=inputs(), others=CLASSES)
    hdf5("wide.h5", inputs=inputs(), targets=np.tile(np.eye(3)[0], (N, 1)))
    hdf5("one.h5", inputs=inputs(1, T, D), targets=CLASSES[:1])
    hdf5("many.h5", inputs=np.zeros((1000, 1, D), "f4"), targets=np.arange(1000) % 3)
    loss = {"loss": "binary_cross_entropy", "class_weights": "balanced", "epochs": 1}
    net(LAST, dense(2, "sigmoid"), path="b.yaml", train=loss)
    hdf5("b.h5", inputs=inputs(), targets=np.eye(2)[CLASSES % 2])
    loss = {"loss": "cross_entropy", "class_weights": "balanced", "epochs": 1}
    net(LAST, dense(3, "softmax"), path="w.yaml", train=loss)
    hdf5("w.h5", inputs=inputs(), targets=CLASSES % 2)
    sgd = {"loss": "mse", "epochs": 60, "optimizer": {"type": "sgd", "learning_rate": 100}}
    net(LAST, dense(2), path="e.yaml", train=sgd)
    hdf5("e.h5", inputs=inputs(), targets=inputs(N, 2))
    relu = {**LAST, "type": "rnn", "activation": "relu"}
    net(relu, dense(2), path="s.yaml", train={"loss": "mse", "epochs": 1, "normalize": False})
    hdf5("large.h5", inputs=inputs() * np.float32(1e30), targets=inputs(N, 2))
    weights = random_weights(lstm_cli.build("s.yaml", engine="reference").config.specs, 3)
    for name, key in (("first", "layers.0.weight_ih"), ("last", "layers.1.weight")):
        large = weights | {key: weights[key] * 1e22}
        lstm_cli.build("s.yaml", engine="reference", weights=large).save(f"{name}.safetensors")
    bad = inputs()
    bad[0, 0, 0] = np.nan
    hdf5("nan.h5", inputs=bad, targets=CLASSES)
    more = {"loss": "cross_entropy", "epochs": 1}
    net(LAST, dense(3, "softmax"), path="own.yaml", train=more, weights="n.safetensors")
    Path("half").mkdir()
    Path("half/metrics.jsonl").write_text("")
    Path("bad").mkdir()
    saved("bad/checkpoint.safetensors", "n.yaml")
    code = main(shlex.split("train c.yaml x.h5 --output run --engine reference --quiet"))
    assert code == 0


# Benchmarks, engines, and what is no command line.


BENCH = "bench --hidden 2 --batch 1 --steps 2 --rounds 1"


@case("lstm-cli bench --save FILE writes a baseline", f"{BENCH} --compare b.json", do=lambda: main(shlex.split(f"{BENCH} --engine reference --quiet --save b.json")))
@case("the baseline is of {}, this is of {}, so nothing is compared: bench --mode {} measures what the baseline did", f"{BENCH} --mode train --compare f.json", do="--mode forward")
@case("--set model.layers.0.hidden_size=64 changes the config", "bench c.yaml --hidden 64 --steps 2 --batch 1 --rounds 1", do="lstm-cli bench c.yaml --steps 2 --batch 1 --rounds 1 --set model.layers.0.hidden_size=64")
@case("bench --mode forward measures layers without weights", "bench d.yaml --steps 2 --batch 1 --rounds 1 --mode train", do="--mode forward")
@case("--{} 128", lambda: _grid(0), do=lambda: _grid(128))
@case("did you mean `{}`?", f"{BENCH} --dtype flot64", do="--dtype float64")
@case("{} --help lists its arguments and options", "run c.yaml --nonsense", do="lstm-cli run --help", shows="--batch-size")
@case("--dtype float32", "run c.yaml x.h5 --dtype float16")
def _() -> None:
    net({"type": "dropout", "rate": 0.5}, path="d.yaml")
    net()
    hdf5(inputs=inputs())
    assert main(shlex.split(f"{BENCH} --engine reference --quiet --save f.json")) == 0


def _grid(hidden: int) -> None:
    from lstm_cli.workflows import bench

    bench.grid((hidden,), (1,), (1,), None)


@case("x[None] makes a batch of one sequence", lambda: _built().run(inputs(T, D)), do=lambda: _built().run(inputs(T, D)[None]))
@case("--set model.steps={}", lambda: _built(FLAT, steps=T - 1).run(inputs()), do=lambda: _built(FLAT, steps=T).run(inputs()))
@case("look for a dict that is used many times", lambda: lstm_cli.build(_many()), do=lambda: _built())
@case("look for a dict that contains itself", lambda: lstm_cli.build(_circle()), do=lambda: _built())
def _() -> None:
    pass


def _built(*layers: Any, steps: int | None = None) -> Any:
    model = {"input_size": D, "layers": [LSTM, *layers]} | ({"steps": steps} if steps else {})
    return lstm_cli.build({"model": model}, engine="reference")


def _many() -> dict[str, Any]:
    made: Any = dict.fromkeys(range(50), 1)
    for _ in range(3):
        made = dict.fromkeys(range(20), made)
    return {"model": made}


def _circle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["model"] = made
    return made


@case("warning: the outputs of {} of {} hold NaN or infinity, first sequence {}; lstm-cli data shows whether the inputs do", "run c.yaml nan.h5", do="lstm-cli data nan.h5", shows="infinite")
def _() -> None:
    net()
    bad = inputs()
    bad[0, 0, 0] = np.nan
    hdf5("nan.h5", inputs=bad)


def _step(loss: str, targets: Any, *layers: Any) -> Any:
    return lambda: lstm_cli.Trainer(_built(*layers), loss=loss).step(inputs(), targets)


@case("one number for each output needs `units: 1` in the last layer", _step("mse", inputs(N, T), dense(3)), do=_step("mse", inputs(N, T), dense(1)))
@case("one target per sequence needs `return_sequences: false` in the last recurrent layer", _step("mse", inputs(N, 2), dense(2)), do=_step("mse", inputs(N, 2), LAST, dense(2)))
@case("one target per step needs `return_sequences: true` in the last recurrent layer", _step("mse", inputs(N, T, 2), LAST, dense(2)), do=_step("mse", inputs(N, T, 2), LSTM, dense(2)))
@case("class targets need a softmax at the end and `train.loss: cross_entropy`", _step("mse", CLASSES, LAST, dense(3)), do=_step("cross_entropy", CLASSES, LAST, dense(3, "softmax")))
@case("a class per step needs `return_sequences: true` in the last recurrent layer", _step("cross_entropy", np.tile([1, 2, 0], (N, 1)), LAST, dense(3, "softmax")), do=lambda: lstm_cli.Trainer(_built(dense(3, "softmax")), loss="cross_entropy").step(inputs(N, 3, D), np.tile([1, 2, 0], (N, 1))))
@case("did you mean `{}`?", lambda: lstm_cli.Trainer(_built(), loss="mse", clip_nrm=1.0), do=lambda: lstm_cli.Trainer(_built(), loss="mse", clip_norm=1.0))
@case("lstm-cli train takes it in its config", lambda: lstm_cli.Trainer(_built(), loss="mse", qqqq=1), do=lambda: None)
@case("reset_state() starts anew", lambda: _stateful(reset=False), do=lambda: _stateful(reset=True))
@case("--dtype float64", "run n.safetensors x.h5")
def _() -> None:
    net()
    saved()
    specs = lstm_cli.build("c.yaml", engine="reference").config.specs
    weights = random_weights(specs, 3)
    weights["layers.0.bias"] = weights["layers.0.bias"] * 1e60
    lstm_cli.build("c.yaml", engine="reference", dtype="float64", weights=weights).save("n.safetensors")
    hdf5(inputs=inputs())


def _stateful(*, reset: bool) -> None:
    model = {"input_size": D, "layers": [{**LSTM, "stateful": True}]}
    network = lstm_cli.build({"model": model}, engine="reference")
    network.run(inputs(2, T, D))
    if reset:
        network.reset_state()
    network.run(inputs(3, T, D))

# Weights of other formats.


def tmva(path: str, layer: Any, **options: Any) -> None:
    tmva_files.write(Path(path), [layer], shape=(T, D), **options)


@case("{} does not state ReturnSequence: every step is assumed, as its writer gave; otherwise --set model.layers.{}.return_sequences=false", "inspect-shapes r.xml")
@case("{} does not state ResetGateAfter: 0 is assumed, TMVA's default; otherwise --set model.layers.{}.reset_after=true", "inspect-shapes g.xml", do="--set model.layers.0.reset_after=true")
@case("Weights do not state OutputFunction: the identity is assumed; otherwise --set model.layers.{}.activation=sigmoid, or softmax", "inspect-shapes d.xml", do="--set model.layers.1.activation=sigmoid")
@case("--tmva-order slots, unless the file is old; to be sure, --check compares with outputs of TMVA", "inspect-shapes s.xml", do="--tmva-order slots")
@case("--tmva-order slots (today's ROOT, whose labels are misleading) or --tmva-order labels (an older ROOT)", "inspect-shapes s.xml", do="--tmva-order labels")
@case("--tmva-order {}, which its matrices fit", "inspect-shapes r.xml --tmva-order labels", do="--tmva-order slots")
@case("leave --tmva-order out", "inspect-shapes r.xml --tmva-order labels", do="lstm-cli inspect-shapes r.xml")
@case("--set model.steps=T, with T the steps of a sequence", "convert n.safetensors o.xml", do="--set model.steps=5")
@case("train the layer in TMVA's form: reset_after: false has no such bias", "convert g.safetensors o.xml --set model.steps=5", do=lambda: (net({"type": "gru", "hidden_size": H, "reset_after": False}), saved("g.safetensors")))
@case("transform the data as TMVA did and remove <Transformations> from the file, or train with VarTransform=None", "inspect-shapes v.xml", do=lambda: shutil.copy("r.xml", "v.xml"))
def _() -> None:
    rng = np.random.default_rng(1)
    one = tmva_files.recurrent("LSTMLayer", D, H, T, rng)
    tmva("r.xml", one)
    text = Path("r.xml").read_text()
    Path("r.xml").write_text(text.replace(' ReturnSequence="1"', ""))
    tmva("v.xml", one, around='<Transformations NTransformations="1"><Transform Name="Normalize"/></Transformations>')
    tmva("g.xml", tmva_files.recurrent("GRULayer", D, H, T, rng))
    text = Path("g.xml").read_text()
    Path("g.xml").write_text(text.replace(' ResetGateAfter="0"', ""))
    tmva("s.xml", tmva_files.recurrent("LSTMLayer", D, D, T, rng))
    last = tmva_files.recurrent("LSTMLayer", D, H, T, rng, ReturnSequence=0)
    tmva_files.write(Path("d.xml"), [last, tmva_files.dense(H, 1, 0, rng)], shape=(T, D))
    text = Path("d.xml").read_text()
    Path("d.xml").write_text(text.replace(' OutputFunction="I"', ""))
    net({"type": "gru", "hidden_size": H})
    saved("g.safetensors")
    net()
    saved()


@case("--set model.layers.{}.return_sequences=false", "run w.safetensors x.h5")
@case("dropout between layers is not stored, and changes no output; for training: --set model.layers.{}.dropout=0.2", "run w.safetensors x.h5")
@case("the names are {}", "inspect-shapes odd.safetensors --only 'rnn.*' --ignore '*'", do="lstm-cli inspect-shapes odd.safetensors --only 'rnn.*'")
@case("'{}.*' matches all of the module", "inspect-shapes fc.safetensors --ignore '*.bias_hh_l0'", do="lstm-cli inspect-shapes fc.safetensors --ignore 'rnn.*'")
@case("{} is read as a Linear, though by its name it is of a loss: --ignore '{}.*' leaves it out", "run loss.safetensors x.h5", do="--ignore 'criterion.*'")
@case("torch.save(model.state_dict(), path) writes the weights of all modules", "run step.safetensors x.h5", do=lambda: shutil.copy("w.safetensors", "step.safetensors"))
@case("--set model.layers.{}.bias={}", "run c.yaml x.h5 --weights bare.safetensors")
@case("--prefix NAME reads only the tensors whose names start with NAME", "run two.safetensors x.h5", do="--prefix rnn")
def _() -> None:
    from safetensors.numpy import save_file

    def lstm(name: str, size: int, layer: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(layer)
        shapes = {"weight_ih": (4 * H, size), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
        return {f"{name}.{k}_l{layer}": rng.standard_normal(s).astype("f4") for k, s in shapes.items()}

    hdf5(inputs=inputs())
    save_file(lstm("rnn", D) | lstm("rnn", H, 1), "w.safetensors")
    save_file(lstm("rnn", D) | lstm("other", D + 9), "two.safetensors")
    save_file(lstm("rnn", D) | {"norm.weight": np.ones(3, "f4")}, "odd.safetensors")
    save_file({"step": np.array(3)}, "step.safetensors")
    head = {"weight": np.ones((2, H), "f4"), "bias": np.zeros(2, "f4")}
    for name, module in (("fc", "fc"), ("loss", "criterion")):
        more = {f"{module}.{k}": v for k, v in head.items()}
        save_file(lstm("rnn", D) | more, f"{name}.safetensors")
    net({**LSTM, "bias": False}, path="no.yaml")
    saved("bare.safetensors", "no.yaml")
    net()


@case("ONNX holds it: --to onnx", "convert n.safetensors o.pt", do="--to onnx")
@case("shorter ones need the model with --lengths", "convert f.safetensors o.onnx", do="--lengths")
@case("--states makes them inputs", "convert s.safetensors o.onnx", do="--states")
@case("name the file {}.keras", "convert f.safetensors o.h5 --to keras", do="lstm-cli convert f.safetensors o.keras")
def _() -> None:
    net({**LSTM, "peepholes": True})
    saved()
    net(LSTM, FLAT, dense(2), steps=T)
    saved("f.safetensors")
    net({**LSTM, "stateful": True})
    saved("s.safetensors")


@case("the file holds no activations: {} and tanh assumed in recurrent layers; --set model.layers.{}.activation=relu sets another", "run k.h5 x.h5")
@case("the file does not state which outputs are used: those of every step are assumed; --set model.layers.{}.return_sequences=false takes {}", "run k.h5 x.h5", do="--set model.layers.0.return_sequences=false")
@case("layer {} (dense) is assumed to have no activation; --set model.layers.{}.activation=softmax sets one", "run k.h5 x.h5")
@case("--set model.layers.{}.{}={}", "run k.h5 x.h5", do=None)
@case("--set model.layers.{}.reset_after={}", "run c.yaml x.h5 --weights g.h5")
def _() -> None:
    rng = np.random.default_rng(1)
    hdf5(inputs=inputs())
    built = keras_files.cell_names("lstm", keras_files.drawn("LSTM", D, H, rng))
    head = {"dense/kernel:0": np.ones((H, 2), "f4"), "dense/bias:0": np.zeros(2, "f4")}
    keras_files.legacy(Path("k.h5"), {"lstm": built, "dense": head}, version=None)
    gru = keras_files.cell_names("gru", keras_files.drawn("GRU", D, H, rng, two=True))
    keras_files.legacy(Path("g.h5"), {"gru": gru})
    net({"type": "gru", "hidden_size": H, "reset_after": False})


# Two weights files that differ.


@case("one of the two was written with gates in {} order and read as if they were in its own; lstm-cli convert, from the original file, puts them in order", "compare n.safetensors order.safetensors", do=lambda: main(["convert", "k.keras", "order.safetensors", "--force", "--quiet"]))
def _() -> None:
    from safetensors.numpy import load_file, save_file

    net(size=H)
    saved()
    assert main(["convert", "n.safetensors", "k.keras", "--quiet"]) == 0
    made = load_file("n.safetensors")
    text = lstm_cli.build("c.yaml", engine="reference").config.to_yaml()

    def order(v: Any) -> Any:
        return np.concatenate([np.split(v, 4)[k] for k in (0, 3, 1, 2)])

    kept = {k: order(v) for k, v in made.items()}
    save_file(kept, "order.safetensors", {"config": text, "format": "lstm-cli"})

# More of weights, and of what the machine has.


@case("a config in the file, or with --config", "compare bare.safetensors bare.safetensors --data x.h5", do="--config c.yaml")
@case("note: --config names a YAML config with options that a file does not store", "compare relu.h5 relu.safetensors", do="--config relu.yaml")
@case("--lengths and --states need an ONNX model, but {} is to be {}", "convert n.safetensors o.keras --states", do="lstm-cli convert n.safetensors o.keras")
@case("--set needs a CONFIG to change", "bench --batch 1 --steps 2 --rounds 1 --set model.layers.0.hidden_size=2", do="lstm-cli bench c.yaml --batch 1 --steps 2 --rounds 1 --set model.layers.0.hidden_size=2")
@case("the JSON that --save writes", f"{BENCH} --compare x.json", do=lambda: main(shlex.split(f"{BENCH} --engine reference --quiet --force --save x.json")))
@case("--device {}", "run c.yaml x.h5 --engine reference --device cuda", do="--device cpu")
@case("copy or make the file again", "run c.yaml cut.h5", do=lambda: shutil.copy("x.h5", "cut.h5"))
@case("the file may be truncated: copy or save it again", "run cut.keras x.h5", do=lambda: shutil.copy("o.keras", "cut.keras"))
@case("--set model.{}", "convert s.safetensors q.keras")
@case("wait until it ends, or name another folder with --output", "train t.yaml y.h5 --output busy", do="--output r")
@case("{} PATH writes elsewhere", lambda: _unwritable(), do=lambda: None)
@case("{} OTHER.h5", lambda: _replacing("x.h5"), do=lambda: _replacing("other.h5"))
def _() -> None:
    from safetensors.numpy import load_file, save_file

    net({**LSTM, "stateful": True})
    saved("s.safetensors")
    net(LAST, dense(2), path="t.yaml", train={"loss": "mse", "epochs": 1})
    net()
    saved()
    save_file(load_file("n.safetensors"), "bare.safetensors")
    net({**LSTM, "activation": "relu"}, path="relu.yaml")
    saved("relu.safetensors", "relu.yaml")
    for source, made in (("n", "o.keras"), ("relu", "w.weights.h5")):
        assert main(["convert", f"{source}.safetensors", made, "--quiet"]) == 0
    shutil.copy("w.weights.h5", "relu.h5")
    hdf5(inputs=inputs())
    hdf5("y.h5", inputs=inputs(), targets=inputs(N, 2))
    for whole, cut in (("x.h5", "cut.h5"), ("o.keras", "cut.keras")):
        Path(cut).write_bytes(Path(whole).read_bytes()[:-99])
    Path("x.json").write_text("{}")
    Path("busy").mkdir()
    BUSY.append(TrainingFolder(Path("busy"), resume=False))
    BUSY[-1].__enter__()


BUSY: list[Any] = []
"""Folders in which another process seems to train; locks end with the test's garbage."""


def _replacing(path: str) -> None:
    from lstm_cli.hdf5.writer import OutputFile

    OutputFile(path, ["x.h5"])


def _unwritable() -> None:
    import errno

    from lstm_cli.hdf5.writer import writing_errors

    with writing_errors("o.h5"):
        raise OSError(errno.EIO, "Input/output error")


@case("a smaller data.window.length, or other data: --set train.validation=FILE.h5:/group", "train c.yaml x.h5 --output r --set train.validation=0.5", do="--set data.window.length=1")
@case("a smaller data.window.length, or other data: --set train.validation=FILE.h5:/group", "train c.yaml x.h5 --output r --set train.validation=0.5", do="--set train.validation=x.h5:/")
@case("--set train.validation={}", "train c.yaml x.h5 --output r --set train.validation=0.8 --set data.window.length=2")
@case("--set train.validation={}", "train c.yaml two.h5 --output r --set train.validation=0.8")
def _() -> None:
    net(LAST, dense(D), train={"loss": "mse", "epochs": 1}, data={"window": {"length": 4, "horizon": 1}})
    hdf5(inputs=inputs(9, D))
    hdf5("two.h5", inputs=inputs(2, 9, D))


@case("read the XML file anew with --tmva-order slots, or labels where that was given", "compare a.safetensors b.safetensors", do=lambda: main(shlex.split("convert s.xml b.safetensors --force --quiet --tmva-order slots")))
@case("one of the two must have its gates put in order: i, f, g, o or r, z, n natively", "compare a.safetensors o.safetensors", do=lambda: shutil.copy("a.safetensors", "o.safetensors"))
def _() -> None:
    from safetensors.numpy import load_file, save_file

    tmva("s.xml", tmva_files.recurrent("LSTMLayer", D, D, T, np.random.default_rng(1)))
    for name, order in (("a", "slots"), ("b", "labels")):
        line = f"convert s.xml {name}.safetensors --quiet --tmva-order {order}"
        assert main(shlex.split(line)) == 0
    text = lstm_cli.load("a.safetensors", engine="reference").config.to_yaml()
    made = {k: np.concatenate([np.split(v, 4)[j] for j in (3, 1, 0, 2)]) for k, v in load_file("a.safetensors").items()}
    save_file(made, "o.safetensors", {"config": text, "format": "lstm-cli"})


@case("a .pt file of torch.save keeps the modules' order; or list the layers in a config: lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG", "run w.safetensors x.h5", do="lstm-cli run c.yaml x.h5 --weights w.safetensors")
@case("a .pt file of torch.save keeps the modules' order; or list the layers in a config: lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG", "convert w.safetensors o.onnx", do="--config c.yaml")
def _() -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(3)
    sizes = {"a": (4, 3), "b": (3, 4), "c": (4, 5), "d": (5, 4)}
    made = {f"{k}.weight": rng.standard_normal(s[::-1]).astype("f4") for k, s in sizes.items()}
    save_file(made | {f"{k}.bias": np.zeros(s[1], "f4") for k, s in sizes.items()}, "w.safetensors")
    net(*[dense(s) for s in (3, 4, 5, 4)])
    hdf5(inputs=inputs())


@case("--prefix {} reads that one", "run two.pt x.h5")
@case("a .pt file of torch.save keeps the modules' order", "run c.yaml x.h5 --weights w.safetensors", do="--weights w.pt")
@case("zip the folder again: torch.save writes a zip archive", "run unpacked x.h5", do=lambda: _zipped("unpacked"))
@case("torch.save(model.state_dict(), path) writes one", "run none.pt x.h5", do=lambda: shutil.copy("w.pt", "none.pt"))
@case("a .pt file of torch.save keeps the modules' order", "run w.safetensors x.h5", do="lstm-cli run w.pt x.h5")
@case("save tensor.contiguous()", "run turned.pt x.h5", do=lambda: shutil.copy("w.pt", "turned.pt"))
def _() -> None:
    torch = pytest.importorskip("torch")
    from safetensors.numpy import save_file

    hdf5(inputs=inputs())
    one, other = (torch.nn.Linear(D, D) for _ in range(2))
    states = {f"{n}.{k}": v for n, m in (("b", one), ("a", other)) for k, v in m.state_dict().items()}
    torch.save(states, "w.pt")
    shutil.unpack_archive("w.pt", "unpacking", "zip")
    (folder,) = Path("unpacking").iterdir()
    folder.rename("unpacked")
    save_file({k: v.numpy() for k, v in sorted(states.items())}, "w.safetensors")
    torch.save({"net": one.state_dict(), "ema": one.state_dict()}, "two.pt")
    torch.save({"epoch": 3}, "none.pt")
    torch.save({"weight": torch.ones(1).expand(3, D), "bias": torch.zeros(3)}, "turned.pt")
    net(dense(D), dense(D))


def _zipped(folder: str) -> None:
    made = shutil.make_archive("made", "zip", ".", folder)
    shutil.rmtree(folder)
    Path(made).rename(folder)


@case("{}, which a config selects: lstm-cli run CONFIG DATA --weights FILE", "run rnn.safetensors x.h5", do="lstm-cli run fc.yaml x.h5 --weights rnn.safetensors")
@case("{}, which a config selects: lstm-cli run CONFIG DATA --weights FILE", "run w.pt x.h5", do="lstm-cli run other.yaml x.h5 --weights w.pt")
@case("list the layers in the config with these kinds and sizes, in the model's order", "run wrong.yaml x.h5 --weights k.weights.h5", do=lambda: shutil.copy("two.yaml", "wrong.yaml"))
@case("{}; or list the layers in a config: lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG", "run k.weights.h5 x.h5", do="lstm-cli run two.yaml x.h5 --weights k.weights.h5")
@case("{}; or list the layers in a config: lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG", "convert k.weights.h5 o.onnx", do="--config two.yaml")
@case("write it without states", "convert p.safetensors o.onnx --states", do="lstm-cli convert p.safetensors o.onnx")
@case("{}: the {} of its {} is read as {}; {} {}: --set model.layers.{}.{}{}.{}={}", "run a.onnx x.h5")
def _() -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    rng = np.random.default_rng(3)
    hdf5(inputs=inputs())
    sizes = {"a": (4, 3), "b": (3, 4), "c": (4, 5), "d": (5, 4)}
    made = {k: (rng.standard_normal(s).astype("f4"), np.zeros(s[1], "f4")) for k, s in sizes.items()}
    net({"type": "lstm", "hidden_size": 4}, {"type": "gru", "hidden_size": 4}, path="two.yaml")
    saved("two.safetensors", "two.yaml")
    assert main(["convert", "two.safetensors", "k.weights.h5", "--quiet"]) == 0
    whole = Path("k.weights.h5").read_bytes()
    Path("k.weights.h5").write_bytes(keras_files.copied(whole))
    net(*[dense(s) for s in (5, 4, 3, 4)], path="other.yaml")
    net(dense(3), path="wrong.yaml")
    net(dense(4), {"type": "lstm", "hidden_size": 4, "bias": False}, path="fc.yaml")
    states = {f"rnn.weight_{n}_l0": rng.standard_normal((16, 4)).astype("f4") for n in ("ih", "hh")}
    states |= {"fc.weight": np.ones((4, 4), "f4"), "fc.bias": np.zeros(4, "f4")}
    save_file(states, "rnn.safetensors")
    net({**LSTM, "projection_size": 2}, path="p.yaml")
    saved("p.safetensors", "p.yaml")
    weights = [numpy_helper.from_array(np.ones((1, H, n), "f4"), m) for m, n in (("W", D), ("R", H))]
    node = helper.make_node("RNN", ["x", "W", "R"], ["y"], hidden_size=H, activations=["ThresholdedRelu"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [T, None, D]), ("y", None))]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], weights), ir_version=8)
    model.opset_import[0].version = 14
    onnx.save(model, "a.onnx")
    try:
        import torch
    except ImportError:
        return
    torch.save({f"{k}.{n}": torch.tensor(v.T) for k, p in made.items() for n, v in zip(("weight", "bias"), p, strict=True)}, "w.pt")


# fmt: on


@pytest.mark.parametrize("one", CASES, ids=_id)
def test_a_hint(lstm, in_tmp_path, one):
    check(lstm, one)


def test_an_engine_that_cannot_be_used(lstm, in_tmp_path, monkeypatch):
    def host() -> None:
        raise machine.UnusableMachine("no kernels here")

    monkeypatch.setattr(machine, "this_machine", host)
    hint, asked = "--{} auto takes what can be used; {}", "run c.yaml x.h5 --engine jit"
    check(lstm, Case(hint, _plain, asked, "lstm-cli run c.yaml x.h5 --engine auto"))
    check(lstm, Case(hint, _plain, asked, "lstm-cli devices", "no kernels here"))


def _plain() -> None:
    net()
    hdf5(inputs=inputs())


ELSEWHERE = {
    "--{} auto takes what can be used; {}": "cli/test_hints.py::test_an_engine_that_cannot_be_used",
    "--set model.layers.{}.return_sequences": "cli/test_readings.py::test_which_step",
    "--set model.layers.{}.return_sequences=true": "cli/test_readings.py::test_which_step",
    "--set model.layers.{}.activation={}": "cli/test_readings.py::test_an_activation_that_the_file_lacks",
    "run the other framework with the lengths (PyTorch: pack_padded_sequence), or leave them out of "
    "the reference": "cli/test_readings.py::test_ragged",
    "store {} with the sequences first: swapaxes(0, 1)": "cli/test_readings.py::test_time_first",
    "--set {}": "cli/test_config_beside.py::test_every_option",
    "in Python, np.unique(texts, return_inverse=True) gives the classes, and the index of each text": (
        "cli/test_windows_and_targets.py::test_targets_that_are_text_are_encoded_as_the_hint_says"
    ),
    "leave out --config": "cli/test_config_beside.py::test_every_command_and_the_interface",
    "lstm-cli run {} DATA": "cli/test_config_beside.py::test_the_readers_options_stand_in_the_command",
    "--from {}": "cli/test_config_beside.py::test_the_readers_options_stand_in_the_command",
    "--tmva-order {}": "cli/test_config_beside.py::test_the_readers_options_stand_in_the_command",
    "--set {}.alpha={}": "cli/test_config_beside.py::test_no_second_opinion",
    "to run {}: lstm-cli run CONFIG DATA --weights {}": (
        "cli/test_convert.py::test_weights_whose_layer_order_needs_a_config"
    ),
    "--set train.normalize=false": "cli/test_normalization.py::test_flatten_first",
    "a native file keeps it: name a DST that ends in .safetensors": (
        "cli/test_normalization.py::test_flatten_first"
    ),
    "only a native file keeps them": (
        "cli/test_normalization_formats.py::test_digits_that_a_fold_loses_are_named"
    ),
    "--dtype float64 keeps them": (
        "cli/test_normalization_formats.py::test_digits_that_a_fold_loses_are_named"
    ),
    "--dtype float64, or bring the data into a narrower range": (
        "cli/test_normalization_formats.py::test_numbers_that_a_fold_cannot_hold"
    ),
    "nothing was written; a native file keeps the normalization: name a DST that ends in "
    ".safetensors": "cli/test_normalization_formats.py::test_a_fold_that_is_wrong_is_not_written",
    "{}; --dtype float64 keeps them": (
        "cli/test_normalization.py::test_inputs_that_a_dtype_cannot_hold_are_named"
    ),
    "{}; --set train.normalize=true keeps them": (
        "cli/test_normalization.py::test_inputs_that_a_dtype_cannot_hold_are_named"
    ),
    "outputs in {} cannot tell the targets apart: {}; --dtype float64, in `train` and in `run`, "
    "keeps the digits": "cli/test_normalization.py::test_metrics_are_those_of_targets_as_stored",
    "warning: the fold loses digits: {}; equal weights then give different outputs, which --data shows": (
        "cli/test_normalization_formats.py::test_compare"
    ),
    "--batch-size {}, or --batch-size auto": "cli/test_cuda.py::test_memory_that_runs_out",
    "store the outputs with an axis of features: outputs[:, None]": "cli/test_check_references.py::test_outputs_without_an_axis_of_features",
    "{}; nothing was written": "cli/test_check_references.py::test_rounding_explains_what_a_chaotic_network_gives",
    ", or accept the rounding: --tolerance {}": "cli/test_check_references.py::test_a_little_rounding_may_be_accepted",
    "{}, if they are a class per step{}": "cli/test_data.py::test_hints_on_targets_that_do_not_fit_lead_to_a_network_that_trains",
    "{}; {}": "cli/test_errors.py::test_sizes_that_the_configs_weights_do_not_have",
    "--set weights=null draws new weights, untrained ones": "cli/test_errors.py::test_sizes_that_the_configs_weights_do_not_have",
    "--set weights=null draws new ones": "cli/test_errors.py::test_weights_of_a_config_that_are_missing_can_be_left_out",
    "store outputs = numpy.concatenate(list(outputs[-{}:]), axis=1)": "cli/test_readings.py::test_final_states_stacked",
    "; --set model.layers.{}.bias=true scales them": "cli/test_normalization.py::test_normalization_with_layers_without_biases",
    "the config comes before the data: {}": "cli/test_data.py::test_the_right_order_is_printed_and_works",
    "remove forget_bias, or --set model.layers.{}.bias=true": "unit/config/test_checks.py::test_a_forget_bias_without_biases",
    "for padding in front, {}; for a mask that is 1 at padding, {}": "unit/data/test_lengths.py::test_where_nothing_tells_both_are_named",
    "fill in the missing steps and set the mask to 1 there; or, if the steps around them may become neighbors, {}": "unit/data/test_lengths.py::test_holes",
    ", if all columns are numbers": "unit/data/test_not_sequences.py::test_columns",
    "lstm-cli train CONFIG DATA --output {} --resume continues that run": "cli/test_data.py::test_a_training_folder",
    "lstm-cli run {} DATA runs the network of that run": "cli/test_data.py::test_a_training_folder",
    "{}: lstm-cli run {} DATA": "cli/test_data.py::test_a_training_folder",
    "in Python, h5py.File({})[{}][:] reads the outputs": "cli/test_data.py::test_results",
    "; lstm-cli run CONFIG DATA --state {} begins with these states": "cli/test_data.py::test_results",
    "in Python, h5py.File({})[{}][:] reads one of them": "cli/test_data.py::test_gates",
    "in a config, data.inputs: {} reads one of them; data.layout: groups reads each as a sequence; {}": "unit/data/test_not_sequences.py::test_variables_are_no_sequences",
    "in a config, data.inputs: {} reads it as one series (T, D)": "unit/data/test_not_sequences.py::test_series",
    "{}; in a config, units: {} and train.class_weights: {{}: 0} keep that class from being learned": "cli/test_data.py::test_what_to_do_works",
    "in h5py, create_dataset(..., chunks=True, compression='gzip') makes small chunks": "unit/hdf5/test_dataset.py::test_chunks_that_cannot_be_kept",
    "with a file of its weights: import keras, pathlib; model = keras.models.model_from_json({}.read_text()); model.load_weights(FILE); model.save('model.keras')": "oracle/test_keras_files.py::test_a_description_without_weights",
    "k = model.layers.index(model.get_layer({})); ": "oracle/test_keras_files.py::test_layers_in_front_that_are_not_here",
    "if they are the first layers of the model, up to model.layers[k]: ": "oracle/test_keras_files.py::test_layers_in_front_that_are_not_here",
    "export the model with this size fixed (torch.onnx.export without dynamic_axes or dynamic_shapes): lstm-cli runs any number of sequences all the same": "oracle/test_onnx_operators.py::test_states_whose_size_is_calculated",
    "export the model with an open batch size, so that nothing is folded: torch.onnx.export(..., dynamo=True, dynamic_shapes=({0: torch.export.Dim('N')},))": "oracle/test_onnx_operators.py::test_a_first_step_that_was_folded_is_named_and_an_open_batch_is_read",
    "torch.save({}, {}) writes the current format": "oracle/test_torch_hints.py::test_old_files_of_any_device",
    "torch.save(torch.jit.load({}, map_location='cpu').state_dict(), {})": "oracle/test_torch_hints.py::test_torchscript",
    "--{} '{}'": "cli/test_selecting.py::test_a_pattern_that_matches_nothing",
    "{}torch.save({}, {}) saves the state dict alone; loading runs code that the file names: only for a file you trust, where its classes can be imported": "oracle/test_torch_hints.py::test_a_whole_module",
    "is, by its name, a copy of {}: --prefix {} reads it alone": "oracle/test_torch_hints.py::test_a_copy_beside_the_network",
    "--ignore '{}' leaves out what no output depends on": "oracle/test_torch_hints.py::test_losses_and_metrics",
    "--only '{}' reads these layers alone; DATA must then hold the outputs of the layers before them": "oracle/test_torch_hints.py::test_an_embedding_in_front",
    "array.filled(0) puts numbers in their place; `lengths` leaves steps out": "property/test_arguments.py::test_masked_values_are_not_taken_for_numbers",
    "{} holds the network of that run": "cli/test_data.py::test_a_training_folder",
    "hint: this is a fault in lstm-cli; --debug shows where": (
        "cli/test_errors.py::test_an_internal_error_shows_no_traceback_without_debug"
    ),
}
"""Texts that another test follows: the file below tests, and the test."""

UNDRIVEN: dict[str, tuple[str, ...]] = {
    "a program of others does it": (
        "nccopy -k nc4 {} {}",
        "pip install hdf5plugin",
        "pip install 'lstm-cli[dask]'",
        "dask worker {} starts one",
        "pip install 'lstm-cli[{}]'",
        "pip install --upgrade 'lstm-cli[{}]'",
        "bench --against {} needs the package {}, which is not installed",
        "bench --against {} needs the package {}, which cannot be loaded",
        "close the other program, or set HDF5_USE_FILE_LOCKING=FALSE",
        "chmod u+r {}",
        "check the file's permissions",
    ),
    "the framework that wrote the file does it": (
        "train the model with one of ",
        "the trainer's .ckpt holds the weights by name; this file holds one list without names",
        "export the part after this node as a separate model, and feed it the node's outputs",
        "lstm-cli has concat only",
        "Bidirectional(merge_mode='concat') has a reverse pass",
        "export it with a fixed number of steps, so that single steps can be read; the final "
        "states (Y_h, PyTorch's h_n) are other vectors",
        "export it with one output; only final states may be further outputs",
        "in Keras 2, replace CuDNN{} by {}(units, {}), load the weights (Keras converts them), and "
        "save the model: model.save('model.h5')",
        "load the file in Keras 2 and save the model again",
        "load the model and save it again: model.save('model.keras')",
        "onnx.version_converter converts a model to a newer opset",
        "lstm-cli reads no quantized weights: save the model before it is quantized",
        "build the same layers as such a model, load the weights into it, and save it",
        "save the state dict with every tensor cloned",
        "save the weights alone: torch.save(model.state_dict(), path)",
        "save the weights again with the program that wrote the file",
        "save the weights with torch.save(model.state_dict(), path)",
        "save the whole Sequential or Functional model, which states the order: "
        "model.save('model.keras')",
        "save the whole model, with an input of fixed steps: Input((steps, features))",
        "the file may be damaged: copy or save it again",
        "the file may be damaged: copy or make it again",
        "{} has no bias: if it is an nn.Embedding, lstm-cli has no layer for it",
        "{} may read one direction (h_n[-1], h_n[-2]) or the sum of both. A state dict does "
        "not state which; a model of torch.onnx.export does",
    ),
    "several ranks are wanted, see tests/cluster": (
        "ask the launcher for nodes of one kind",
        "pip install 'lstm-cli[mpi]'",
        "load the cluster's MPI module, or: pip install mpich",
        "mpiexec of this MPI, or srun --mpi=pmi2 or --mpi=pmix",
        "start lstm-cli {} without mpiexec or srun",
        "--resume continues from the last checkpoint",
        "--set train.micro_batches={}",
    ),
    "a GPU is wanted": (
        "a newer CUDA toolkit may support it",
        "https://www.nvidia.com/drivers has drivers; --device cpu needs none",
        "--device cpu",
        "fewer units, or --device cpu",
        "shorter sequences, a smaller network, or --device cpu",
        "--batch-size {}; batches of a stateful network are never divided",
        "--batch-size {} needs about half",
        "a smaller batch needs less memory: --batch-size",
        "lstm-cli devices lists all",
    ),
    "a limit of the system, or other programs, must change": (
        "; --threads 1 needs the fewest threads",
        "if memory is short, fewer workers or a smaller --batch-size need less; finished shards are "
        "kept",
        "fewer units, a smaller --batch-size or --engine reference need less; ",
        "fewer units or --engine reference need less; ",
        "ulimit -v unlimited lifts a limit on memory; other programs may use memory too",
        "ulimit -f unlimited lifts the limit on the size of files",
    ),
    "it explains, and asks for nothing": (
        "Weights file, relative to this file (in --set to the working directory).",
        "Share of the sequences held out, or FILE.h5:/group relative to this file (in --set to "
        "the working directory).",
        "{} holds gates and states of every step, as lstm-cli run --gates writes them",
        "{} holds results, as lstm-cli run --output writes them",
        "--only and --ignore select a part of one layer's tensors, without {}",
        "TF1's BasicLSTMCell adds 1 to b_f at run time; elsewhere what is stored is all there is, "
        "and `forget_bias` of a config is for fresh weights only",
        "Keras and TF1 store a kernel as (inputs, gates), natively it is (gates, inputs)",
        "Keras computes the model in {}; in lstm-cli, --dtype sets the dtype",
        "an assumption may be wrong (activations, the last step or all, initial states): --set or ",
        "--config change it; nothing was written",
        "make it an input of the graph, which --state sets",
        "{} has no input initial_{}: its {} (layer {}) begins with 0, as in ONNX Runtime, "
        "whatever --state holds",
        "nothing was written; this is a fault in how lstm-cli writes or reads {}",
        "--seed {}",
        ", !nontemporal !{i32 1}",
    ),
    "no small input leads there": (
        "resume with the config the run was started with",
        "the native format (.safetensors) has no such limit",
        "--seed 1 draws other weights, --dtype float64 holds larger numbers",
        "the weights have become too large: train slower, or limit train.clip_norm",
    ),
}
"""Texts that no test here follows, by the reason."""


@cache
def sources() -> tuple[tuple[str, tuple[ast.AST, ...], frozenset[ast.AST]], ...]:
    """Each file of the package: its name, its nodes, and those that are not printed."""
    files = []
    for path in sorted((ROOT / "lstm_cli").rglob("*.py")):
        nodes = tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        silent = frozenset(part for node in nodes for part in _silent(node))
        files.append((str(path.relative_to(ROOT)), nodes, silent))
    return tuple(files)


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, and parts of longer texts."""
    if isinstance(node, ast.JoinedStr):
        yield from (part for part in ast.walk(node) if part is not node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node.value


def _declared(node: ast.AST) -> Iterator[ast.AST]:
    """The options' own declarations, patterns, and examples in help."""
    if isinstance(node, ast.Call):
        declares = getattr(node.func, "attr", None) in ("option", "compile")
    else:
        declares = isinstance(node, ast.Assign) and _name(node.targets[0]) == "EPILOG"
    yield from ast.walk(node) if declares else ()


def _name(node: ast.AST) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", "")


def hint_texts() -> dict[str, str]:
    """Texts of the package that tell what to do, and where each stands.

    These are what is given as a hint, and all that names a command or an option.
    """
    texts: dict[str, str] = {}
    for path, nodes, silent in sources():
        passed = silent | {part for node in nodes for part in _declared(node)}
        hints = dict.fromkeys(part for node in nodes for part in _hints(node))
        for node in (*hints, *nodes):
            text = None if node in passed else _text(node)
            names = text and " " in text.strip() and (OPTION.search(text) or COMMAND.search(text))
            if text and text.strip() and (names or node in hints):
                texts.setdefault(text, f"{path}:{node.lineno}")
    return texts


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)


@cache
def passed_names() -> frozenset[str]:
    """Names whose text is given as a hint somewhere."""
    names = (
        _name(node.value)
        for _, nodes, _ in sources()
        for node in nodes
        if isinstance(node, ast.keyword) and node.arg == "hint"
    )
    return frozenset(name for name in names if name)


def _hints(node: ast.AST) -> Iterator[ast.AST]:
    """Texts that become a hint: an argument, what a name holds, or what a function returns."""
    if isinstance(node, ast.keyword) and node.arg == "hint":
        yield from _alternatives(node.value)
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        names = node.targets if isinstance(node, ast.Assign) else [node.target]
        pairs = [(names[0], node.value)]
        if isinstance(names[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(names[0].elts, node.value.elts, strict=False))
        for name, value in pairs:
            if "hint" in _name(name).lower() or _name(name) in passed_names():
                yield from _alternatives(value)
    elif isinstance(node, ast.FunctionDef) and "hint" in node.name:
        for part in ast.walk(node):
            if isinstance(part, ast.Return | ast.Yield) and part.value is not None:
                yield from _alternatives(part.value)


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    else:
        yield node
        return
    for part in parts:
        yield from _alternatives(part)


def test_every_hint_is_followed():
    texts = hint_texts()
    known_hints = (
        {one.hint for one in CASES}
        | set(ELSEWHERE)
        | {t for texts in UNDRIVEN.values() for t in texts}
    )
    lacking = [f"{where}: {text!r}" for text, where in texts.items() if text not in known_hints]
    assert not lacking, "without a case:\n" + "\n".join(lacking)
    stale = known_hints - set(texts)
    assert not stale, "no longer in the source:\n" + "\n".join(sorted(map(repr, stale)))
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), place


SCHEMA = json_schema()
FOREIGN = {
    *("--help", "--version"),  # Click's
    *("--std", "--gpu-architecture", "--upgrade"),  # NVRTC's and pip's
    "--mpi",  # srun's
    "model.inputs",  # Keras's
}
SUFFIX = re.compile(r"\.(safetensors|keras|h5|onnx|pt|pkl|weights|save|state_dict|json|xml|npz)\b")


def test_what_texts_name_exists():
    """Options are some command's, commands are ours, and keys are the schema's."""
    wrong = []
    texts = (
        (text, f"{path}:{node.lineno}")
        for path, nodes, silent in sources()
        for node in nodes
        if node not in silent and (text := _text(node))
    )
    for text, where in texts:
        options = set(OPTION.findall(text)) - set(OPTIONS) - FOREIGN
        named = set(re.findall(r"lstm-cli ([a-z][a-z-]+) (?=[A-Z.{-])", text)) - set(COMMANDS)
        keys = {key for key in KEY.findall(text) if not SUFFIX.search(key) and not _known(key)}
        keys -= FOREIGN
        wrong += [f"{where}: {word}" for word in (*options, *named, *keys)]
    assert not wrong


def _known(key: str) -> bool:
    """Whether a dotted key can be in a config; below a list any layer's key can."""
    places = [SCHEMA]
    for word in key.split("."):
        places = [
            below[word]
            for place in _spread(places)
            if word in (below := place.get("properties", {}))
        ]
        if not places:
            return False
    return True


def _spread(places: list[Any]) -> list[Any]:
    """The schemas that these are, or refer to."""
    schemas, queue = [], list(places)
    while queue:
        place = queue.pop()
        if "$ref" in place:
            queue.append(SCHEMA["$defs"][place["$ref"].rpartition("/")[2]])
        queue += [*place.get("anyOf", ()), *place.get("oneOf", ()), *place.get("allOf", ())]
        schemas.append(place)
    return schemas
