"""Signals while a command writes a file: no incomplete file is left, and the exit code is 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref

import pytest
from repository import ROOT

from lstm_cli import output_files
from lstm_cli.cli import interrupts
from lstm_cli.cli.main import main as run_main
from lstm_cli.output_files import AtomicFile

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks, signals and links of POSIX")


class Ended(BaseException):
    """The process would have ended immediately with this code."""


@pytest.fixture
def ending(monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)


@posix
class TestSignals:
    """Signals of any kind and number while a file is written."""

    @pytest.fixture
    def signalled(self, tmp_path, monkeypatch):
        """Write a schema; signals come before it is renamed."""

        def run(*numbers):
            keep = AtomicFile.keep

            def late(self):
                assert self.path.exists()
                for number in numbers:
                    try:
                        os.kill(os.getpid(), number)
                    except KeyboardInterrupt:
                        if number is numbers[-1]:
                            raise
                keep(self)

            monkeypatch.setattr(AtomicFile, "keep", late)
            return run_main(["schema", "--output", str(tmp_path / "s.json")])

        return run

    @pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
    def test_once(self, signalled, tmp_path, number, capfd):
        before = signal.getsignal(getattr(signal, number))
        assert signalled(getattr(signal, number)) == 130
        assert capfd.readouterr().err.strip() == "interrupted"
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(getattr(signal, number)) == before

    def test_twice(self, signalled, tmp_path, ending):
        with pytest.raises(Ended, match="130"):
            signalled(signal.SIGINT, signal.SIGTERM)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number", ["SIGQUIT", "SIGUSR1", "SIGXCPU"])
    def test_those_that_end_a_process(self, tmp_path, number):
        code = (
            "import os, signal, sys\n"
            "from lstm_cli import output_files; from lstm_cli.cli import main\n"
            f"output_files.AtomicFile.keep = lambda self: os.kill(os.getpid(), signal.{number})\n"
            "sys.exit(main())"
        )
        process = subprocess.run(
            [sys.executable, "-c", code, "schema", "--output", "s.json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert process.returncode == -getattr(signal, number)
        assert list(tmp_path.iterdir()) == []

    def test_one_that_a_finalizer_would_lose(self, tmp_path, monkeypatch):
        class Thing:
            pass

        def late(self):
            thing = Thing()
            dead = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
            del thing
            assert dead() is None

        ends = []
        monkeypatch.setattr(AtomicFile, "keep", late)
        monkeypatch.setattr(interrupts, "_end", ends.append)
        monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
        run_main(["schema", "--output", str(tmp_path / "s.json")])
        assert ends == [130]

    def test_another_error_that_an_import_makes_of_it(self, tmp_path, monkeypatch, capsys):
        def importing(*_):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise SystemError("initialization of _core raised unreported exception") from None

        monkeypatch.setattr("lstm_cli.config.json_schema", importing)
        assert run_main(["schema"]) == 130
        assert capsys.readouterr().err.strip() == "interrupted"

    def test_a_signal_that_the_caller_ignores(self, tmp_path, monkeypatch):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        try:
            with interrupts.interrupts(quiet=True) as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert not stop()
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_while_modules_load(self):
        code = (
            "import sys\n"
            "class Finder:\n"
            "    def find_spec(name, *_):\n"
            "        if name == 'click': raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Finder)\n"
            "from lstm_cli.cli import main"
        )
        command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (130, b"")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
    def test_a_child_removes_nothing_of_its_parents(self, tmp_path):
        with AtomicFile(tmp_path / "a") as file:
            pid = os.fork()
            if not pid:
                output_files.discard_unfinished()
                os._exit(0)
            os.waitpid(pid, 0)
            assert file.path.exists()
