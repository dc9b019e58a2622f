"""Files that commands write: replaceable files, and no incomplete leftovers."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
from repository import ROOT

import lstm_cli
from lstm_cli import output_files
from lstm_cli.output_files import AtomicFile, has_producer_mark, write_atomically

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks, signals and links of POSIX")

CONFIG = """\
model:
  input_size: 5
  steps: 9
  layers:
    - {type: lstm, hidden_size: 4, return_sequences: false}
    - {type: dense, units: 3, activation: softmax}
"""
BENCH = ("bench", "--hidden", 4, "--batch", 1, "--steps", 2, "--rounds", 1, "--engine", "reference")


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def native(net, tmp_path):
    lstm_cli.build(str(net), engine="reference").save(tmp_path / "native.safetensors")
    return tmp_path / "native.safetensors"


@pytest.fixture
def commands(net, native, data):
    """The command that writes a file of a name, by name."""
    run = ("run", net, data, "--engine", "reference")
    convert = ("convert", native)
    return {
        "o.h5": lambda path: (*run, "--output", path),
        "g.h5": lambda path: (*run, "--gates", path),
        "a.safetensors": lambda path: (*convert, path),
        "t.safetensors": lambda path: (*convert, path, "--to", "pytorch"),
        "a.keras": lambda path: (*convert, path),
        "a.weights.h5": lambda path: (*convert, path),
        "a.onnx": lambda path: (*convert, path),
        "a.xml": lambda path: (*convert, path),
        "a.pt": lambda path: (*convert, path),
        "b.json": lambda path: (*BENCH, "--save", path),
        "s.json": lambda path: ("schema", "--output", path),
    }


WRITTEN = (
    "o.h5", "g.h5", "a.safetensors", "t.safetensors", "a.keras", "a.weights.h5", "a.onnx",
    "a.xml", "a.pt", "b.json", "s.json",
)  # fmt: skip
MARKLESS = ("a.pt",)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_another_program_wrote_is_replaced_by_force_only(lstm, commands, tmp_path, name):
    path = tmp_path / name
    command = commands[name](path)
    path.write_text("mine")
    refused = lstm(*command)
    assert refused.code == 2, refused.err
    assert "hint: --force replaces it" in refused.err
    assert path.read_text() == "mine"
    assert lstm(*command, "--force").code == 0
    whole = path.read_bytes()
    assert whole != b"mine"
    # What it wrote itself carries its mark, unless the format has no place for one.
    again = lstm(*command)
    assert again.code == (2 if name in MARKLESS else 0), again.err
    assert has_producer_mark(path) == (name not in MARKLESS)
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_a_hint_names_no_temporary_file(lstm, native, tmp_path):
    refused = lstm("convert", native, tmp_path / "o.h5")
    assert refused.code == 4
    assert "hint: name the file o.keras" in refused.err
    assert lstm("convert", native, tmp_path / "o.keras").code == 0


def test_a_refusal_comes_before_the_work(lstm, commands, tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError("computed before it was refused")

    monkeypatch.setattr("lstm_cli.workflows.run.run_dataset", work)
    monkeypatch.setattr("lstm_cli.workflows.convert.conversion.read_weights", work)
    monkeypatch.setattr("lstm_cli.workflows.bench.measure", work)
    for name in ("o.h5", "g.h5", "a.onnx", "b.json"):
        (tmp_path / name).write_text("mine")
        assert lstm(*commands[name](tmp_path / name)).code == 2


def test_a_file_that_appears_meanwhile_is_not_replaced(lstm, commands, tmp_path, monkeypatch):
    keep = AtomicFile.keep

    def late(self):
        self.final.write_text("mine")
        keep(self)

    monkeypatch.setattr(AtomicFile, "keep", late)
    for name in ("o.h5", "a.onnx", "b.json"):
        outcome = lstm(*commands[name](tmp_path / name))
        assert outcome.code == 2, outcome.err
        assert (tmp_path / name).read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


class TestMarks:
    """Only files of lstm-cli have its mark, with any content."""

    def test_files_of_earlier_versions(self, tmp_path):
        with h5py.File(tmp_path / "o.h5", "w") as file:
            file.attrs["lstm_cli_version"] = "0.0.1"
            file.attrs["config"] = "x" * 30_000
        (tmp_path / "b.json").write_text(
            '{\n  "schema": 1,\n  "mode": "train",\n  "machine": {\n    "processor": "x"}}'
        )
        assert has_producer_mark(tmp_path / "o.h5")
        assert has_producer_mark(tmp_path / "b.json")

    def test_many_attributes_before_the_mark(self, tmp_path):
        with h5py.File(tmp_path / "o.h5", "w") as file:
            for k in range(60):
                file.attrs[f"attribute {k}"] = np.arange(40)
                file.create_group(f"group {k}")
            file.attrs["lstm_cli_version"] = "1"
        assert has_producer_mark(tmp_path / "o.h5")

    def test_results_inside_another_file_are_no_mark(self, tmp_path):
        with h5py.File(tmp_path / "o.h5", "w") as file:
            group = file.create_group("copied results")
            group.attrs["lstm_cli_version"] = "1"
            file["lstm_cli_version"] = "a dataset"
            file.attrs["lstm_cli_version of mine"] = "1"
        assert not has_producer_mark(tmp_path / "o.h5")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b'{"producer": "another program"}',
            b'{"machine": {"producer": "lstm-cli 1"}}',
            b"[" * 100_000,
            b"<?xml version='1.0'?><MethodSetup/>",
            b"\x08\x08\x12\x07pytorch",
            b"\x08\x08\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xff" * 5000,
            b"\x12\x00" * 3000,
            (2**63).to_bytes(8, "little") + b"{",
            (40).to_bytes(8, "little") + b'{"__metadata__": {"format": "pt"}}      ',
            (20).to_bytes(8, "little") + b'{"__metadata__": []}',
            (4).to_bytes(8, "little") + b"{[[[",
            b"PK\3\4" + b"\0" * 26 + b"metadata.json" + b'{"keras_version": "3"}',
            b"\x89HDF\r\n\x1a\n" + b"\xff" * 200,
            b"\x89HDF\r\n\x1a\n\0" + b"\0" * 4 + b"\x08\x08" + b"\0" * 49 + b"\0" * 40,
        ],
    )
    def test_files_of_others(self, tmp_path, content):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert not has_producer_mark(path)

    def test_an_object_header_that_goes_on_in_itself(self, tmp_path):
        head = bytearray(400)
        head[:9] = b"\x89HDF\r\n\x1a\n\0"
        head[13:15] = b"\x08\x08"
        head[64:72] = (96).to_bytes(8, "little")
        head[96:112] = (
            b"\1\0\1\0" + (1).to_bytes(4, "little") + (40).to_bytes(4, "little") + bytes(4)
        )
        head[112:120] = b"\x10\0\x10\0" + bytes(4)
        head[120:136] = (112).to_bytes(8, "little") + (24).to_bytes(8, "little")
        (tmp_path / "o.h5").write_bytes(head)
        assert not has_producer_mark(tmp_path / "o.h5")

    @pytest.mark.parametrize("name", ["o.h5", "a.safetensors", "a.keras", "a.onnx", "b.json"])
    def test_damaged_files_are_no_fault(self, lstm, commands, tmp_path, name):
        path, rng = tmp_path / name, random.Random(5)
        assert lstm(*commands[name](path)).code == 0
        whole = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(whole[: rng.randrange(len(whole))])
            for at in [rng.randrange(len(damaged)) for _ in range(4) if damaged]:
                damaged[at] = rng.randrange(256)
            path.write_bytes(damaged)
            has_producer_mark(path)


class TestSameFile:
    """A command never replaces its inputs, under any name and even with --force."""

    @pytest.fixture(params=["same", "dots", "symlink", "hard link"])
    def alias(self, request, tmp_path):
        def make(path):
            other = tmp_path / f"alias{path.suffix}"
            if request.param == "same":
                return path
            if request.param == "dots":
                return f"{path.parent}/./nowhere/../{path.name}".replace("nowhere", "sub")
            if request.param == "symlink":
                other.symlink_to(path)
            else:
                os.link(path, other)
            return other

        (tmp_path / "sub").mkdir()
        return make

    @posix
    @pytest.mark.parametrize("side", ["CONFIG", "DATA", "--weights", "--state"])
    def test_run(self, lstm, net, native, data, tmp_path, alias, side):
        state = tmp_path / "state.h5"
        assert lstm("run", net, data, "--output", state, "--engine", "reference").code == 0
        target = {"CONFIG": net, "DATA": data, "--weights": native, "--state": state}[side]
        before = target.read_bytes()
        given = ("run", net, f"{data}:/", "--weights", native, "--state", f"{state}:/")
        for option, path in (("--output", alias(target)), ("--gates", target)):
            outcome = lstm(*given, option, path, "--force")
            assert outcome.code == 2, outcome.err
            assert side in outcome.err
            assert f"{option} names another file" in outcome.err
        assert target.read_bytes() == before

    @posix
    @pytest.mark.parametrize("side", ["SRC", "--config", "--check"])
    def test_convert(self, lstm, net, native, tmp_path, alias, side):
        check = tmp_path / "check.npz"
        x = np.zeros((2, 9, 5), np.float32)
        outputs = lstm_cli.load(str(native), engine="reference").run(x).outputs
        np.savez(check, inputs=x, outputs=outputs)
        target = {"SRC": native, "--config": net, "--check": check}[side]
        before = target.read_bytes()
        arguments = ("--config", net, "--check", check, "--to", "onnx", "--force")
        outcome = lstm("convert", native, alias(target), *arguments)
        assert outcome.code == 2, outcome.err
        assert "same file" in outcome.err
        assert target.read_bytes() == before
        assert lstm("convert", native, tmp_path / "other.onnx", *arguments).code == 0

    @posix
    def test_two_outputs_of_one_name(self, lstm, net, data, tmp_path):
        out, link = tmp_path / "o.h5", tmp_path / "g.h5"
        arguments = ("run", net, data, "--engine", "reference", "--output", out, "--gates")
        link.symlink_to(out)  # a link to what is not there yet
        assert lstm(*arguments, link).code == 2
        link.unlink()
        assert lstm(*arguments, link).code == 0
        out.unlink()
        os.link(link, out)
        assert lstm(*arguments, link).code == 2

    def test_bench_and_its_config(self, lstm, net):
        assert lstm("bench", net, "--save", net, "--force").code == 2

    def test_bench_and_its_weights(self, lstm, net, native):
        before = native.read_bytes()
        refused = lstm(*BENCH[:1], net, "--set", f"weights={native}", "--save", native, "--force")
        assert (refused.code, "the config's weights and --save" in refused.err) == (2, True)
        assert native.read_bytes() == before

    @posix
    def test_links_are_followed(self, lstm, native, tmp_path):
        (tmp_path / "sub").mkdir()
        link, target = tmp_path / "link.onnx", tmp_path / "sub" / "target.onnx"
        link.symlink_to(target)  # to nothing yet
        for _ in range(2):
            assert lstm("convert", native, link).code == 0
            assert link.is_symlink()
            assert has_producer_mark(target)
        target.write_text("mine")
        assert lstm("convert", native, link).code == 2
        link.unlink()
        link.symlink_to(tmp_path / "none" / "target.onnx")
        outcome = lstm("convert", native, link)
        assert outcome.code == 1
        assert "mkdir -p" in outcome.err


def test_a_training_run_is_never_replaced(lstm, net, native, data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.safetensors", "checkpoint.safetensors", "config.yaml"):
        shutil.copy(native, run / name)
    inside = ("run", net, data, "--engine", "reference", "--force", "--output")
    for command in (
        ("convert", native, run / "model.safetensors", "--force"),
        ("convert", native, run / "checkpoint.safetensors", "--force"),
        (*inside, run / "config.yaml"),
    ):
        outcome = lstm(*command)
        assert outcome.code == 2, outcome.err
        assert "belongs to the training run" in outcome.err
    assert lstm(*inside, run).code == 1
    assert lstm(*inside, run / "results.h5").code == 0
    assert (run / "model.safetensors").read_bytes() == native.read_bytes()


@posix
class TestTemporaries:
    """Leftovers of killed processes are removed, but no file that a live process writes."""

    def test_leftovers_of_the_same_target(self, lstm, commands, tmp_path):
        for name in ("o.h5", "a.onnx", "a.keras", "b.json", "s.json"):
            leftover, other = (tmp_path / f".0123abcd.part.{n}" for n in (name, f"x{name}"))
            leftover.write_text("half")
            other.write_text("of another file")
            assert lstm(*commands[name](tmp_path / name)).code == 0
            assert not leftover.exists()
            assert other.exists()

    def test_long_names(self, lstm, native, tmp_path):
        name = "ü" * 124 + ".onnx"
        left = tmp_path / f".0123abcd.part.{name[-122:]}"
        left.write_text("half")
        assert lstm("convert", native, tmp_path / name).code == 0
        assert not left.exists()
        assert has_producer_mark(tmp_path / name)

    def test_a_live_one_stays(self, tmp_path):
        import fcntl

        leftover = tmp_path / ".0123abcd.part.o.h5"
        with leftover.open("wb") as writing:
            fcntl.flock(writing, fcntl.LOCK_EX)
            with AtomicFile(tmp_path / "o.h5") as first, AtomicFile(tmp_path / "o.h5") as second:
                assert leftover.exists()
                assert first.path.exists()
                second.keep()
        output_files.remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["o.h5"]

    def test_links_pipes_and_other_names_stay(self, tmp_path):
        (tmp_path / "mine").write_text("mine")
        (tmp_path / ".0123abcd.part.link").symlink_to("mine")
        os.mkfifo(tmp_path / ".0123abcd.part.pipe")
        (tmp_path / ".0123abcd.part.folder").mkdir()
        (tmp_path / ".part.o.h5").write_text("")
        output_files.remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 5

    def test_one_that_was_taken_for_a_leftover_is_made_again(self, tmp_path, monkeypatch):
        locked, locks = output_files._locked, []

        def late(handle):
            if not locks:
                locks.extend(tmp_path.iterdir())
                locks[0].unlink()
            return locked(handle)

        monkeypatch.setattr(output_files, "_locked", late)
        write_atomically(tmp_path / "a", b"whole", "it")
        assert (tmp_path / "a").read_bytes() == b"whole"

    def test_without_locks_nothing_is_removed(self, tmp_path, monkeypatch):
        import fcntl

        def refused(*_):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", refused)
        (tmp_path / ".0123abcd.part.a").write_text("half")
        write_atomically(tmp_path / "a", b"whole", "it")
        assert len(list(tmp_path.iterdir())) == 2


class Faults:
    """Raises at the n-th call that opens, fills, flushes or renames a file that is written."""

    def __init__(self, monkeypatch, error, number):
        self.count, self._error, self._number = 0, error, number
        for name in ("fsync", "replace", "fdopen"):
            monkeypatch.setattr(os, name, self._faulty(getattr(os, name)))
        faulty = self._faulty(output_files.write_all)
        monkeypatch.setattr(output_files, "write_all", faulty)
        monkeypatch.setattr("lstm_cli.hdf5.writer.write_all", faulty)

    def _faulty(self, function):
        def call(*args, **target):
            self.count += 1
            if self.count == self._number:
                raise self._error
            return function(*args, **target)

        return call


@pytest.mark.parametrize("name", ["o.h5", "g.h5", "a.onnx", "a.weights.h5", "s.json"])
@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)],
    ids=["full", "interrupted"],
)
def test_a_fault_at_any_call_leaves_the_old_file(lstm, commands, tmp_path, name, error, code):
    path = tmp_path / name
    command = commands[name](path)
    assert lstm(*command).code == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    number, outcome = 0, None
    while outcome is None or outcome.code != 0:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, error, number)
            outcome = lstm(*command)
        if outcome.code:
            assert outcome.code == code, outcome.err
            assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before, number
            assert code == 130 or "no space left on device" in outcome.err
    # The last call makes the new name durable; the file is there without it.
    assert faults.count in (number, number - 1)
    assert number > 4
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in before}


@posix
def test_a_limit_on_the_size_of_files(net, tmp_path):
    """HDF5 would write again at the end of the process, and crash: exit 139."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = np.zeros((30_000, 2, 5), np.float32)
    net.write_text(CONFIG.replace("  steps: 9\n", "").replace(", activation: softmax", ""))
    command = f"{sys.executable} -m lstm_cli run small.yaml x.h5 --output o.h5 --quiet"
    script = f"ulimit -S -f 100; {command}; echo exit $?; ls -A; ulimit -f unlimited; {command}"
    process = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.partition("exit ")[2].split()[:3] == ["1", "small.yaml", "x.h5"]
    assert "found file too large: the limit on the size of files (ulimit -f)" in process.stderr
    assert "hint: ulimit -f unlimited" in process.stderr
    assert "Traceback" not in process.stderr
    assert (tmp_path / "o.h5").exists()


LIMITED = """
import json, os, resource, sys
from lstm_cli.cli.main import main
before, infinity = set(os.listdir()), resource.RLIM_INFINITY
for name, command in json.loads(sys.argv[1]).items():
    assert main(command) == 0, name
    size = os.path.getsize(name) if os.path.isfile(name) else 3000
    for path in set(os.listdir()) - before:
        os.system(f"rm -r {path}")
    for limit in (0, 100, size // 2, size - 60):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, infinity))
        code = main(command)
        resource.setrlimit(resource.RLIMIT_FSIZE, (infinity, infinity))
        assert code == 1, (name, limit, code)
        assert set(os.listdir()) == before, (name, limit)
"""


@posix
def test_every_writer_at_a_limit_on_the_size_of_files(commands, net, data, tmp_path):
    """The last bytes too, which HDF5 writes as it closes the file; and the process ends well."""
    every = {name: command(name) for name, command in commands.items()}
    net.write_text(CONFIG + "train: {loss: cross_entropy, epochs: 1}\n")
    with h5py.File(data, "a") as file:
        file["targets"] = np.arange(len(file["inputs"])) % 3
    every["run"] = ("train", net, data, "--engine", "reference", "--output", "run")
    quiet = {
        name: [*map(str, command), *([] if command[0] == "schema" else ["--quiet"])]
        for name, command in every.items()
    }
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(quiet)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stderr.count("the limit on the size of files (ulimit -f)") == 4 * len(every)
    assert "Traceback" not in process.stderr


@posix
def test_a_pipe_is_written_to(lstm, tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    texts = []
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()))
    reader.start()
    assert lstm("schema", "--output", pipe).code == 0
    reader.join()
    assert json.loads(texts[0])["title"] == "lstm-cli config"
    assert pipe.is_fifo()


def test_save_in_python_replaces_any_file(native, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("mine")
    lstm_cli.load(str(native), engine="reference").save(path)
    assert has_producer_mark(path)
