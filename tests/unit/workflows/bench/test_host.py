"""The machine: what it is, who else uses it, and how much memory was used."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from lstm_cli.workflows.bench import (
    MemoryUse,
    host,
    machine,
    memory,
    peak_memory,
    watch_other_programs,
)


def test_this_machine_has_a_processor_and_versions(fake_peer):
    info = machine(threads=3, peers=[fake_peer("twin")])
    assert info.threads == 3
    assert info.cores >= 1
    assert info.processor.strip()
    assert info.versions["twin"] == "0.0"
    assert set(info.versions) == {"lstm-cli", "python", "numpy", "twin"}


def test_the_processor_is_read_from_where_linux_keeps_it(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: Fast 9000 @ 4: GHz\n")
    monkeypatch.setattr(host, "_CPUINFO", path)
    assert machine().processor == "Fast 9000 @ 4: GHz"
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert machine().processor == "riscv64"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Two seconds pass, in which this process and its children take 1.5 s of processor time."""
    path = tmp_path / "stat"
    monkeypatch.setattr(host, "_STAT", path)
    monkeypatch.setattr("os.sysconf", lambda name: 100, raising=False)
    clock, own = iter([10.0, 12.0]), iter([(7.0, 1.0, 0.5, 0.5), (7.5, 1.25, 1.0, 0.75)])
    monkeypatch.setattr(host, "perf_counter", lambda: next(clock))

    monkeypatch.setattr("os.times", lambda: (*next(own), 99.0))
    return path


def test_others_work_is_what_this_process_and_its_children_did_not_do(system):
    #                          user nice system idle iowait irq softirq steal
    system.write_text("cpu  1000 20 300 9000 50 1 2 70 600 0\ncpu0 1 2 3 4\n")
    with watch_other_programs() as others:
        assert others.cores is None
        system.write_text("cpu  1190 30 340 9999 99 6 7 99 700 0\ncpu0 1 2 3 4\n")
    # 2.5 s of work in all, 1.5 s of it ours: 1 s in 2 s.
    assert others.cores == pytest.approx(0.5)


@pytest.mark.parametrize("text", [None, "", "cpu  a b\n"])
def test_a_system_without_a_processor_model_is_no_error(system, text):
    if text is not None:
        system.write_text(text)
    with watch_other_programs() as others:
        pass
    assert others.cores in (None, 0.0)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, platform, unit):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory() == 5000 * unit


def test_peak_memory_grows_with_what_is_held():
    pytest.importorskip("resource")
    before = peak_memory()
    held = bytearray(before + (1 << 20))
    held[::4096] = b"1" * len(held[::4096])
    assert peak_memory() > len(held)


def test_a_system_without_memory_figures_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None


@pytest.mark.parametrize("told", [True, False])
def test_windows_reports_memory_by_its_own_function(monkeypatch, told):
    def fill(process, counters, size):
        found = counters._obj
        assert process.value == ctypes.c_void_p(-1).value
        assert size == found.size == ctypes.sizeof(found) == 8 + 8 * ctypes.sizeof(ctypes.c_size_t)
        found.peak = 123_456_789
        return told

    kernel = SimpleNamespace(K32GetProcessMemoryInfo=fill)
    monkeypatch.setattr(ctypes, "WinDLL", {"kernel32": kernel}.get, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == (123_456_789 if told else None)


def test_the_workspace_is_reported_where_the_engine_knows_it(engine, monkeypatch):
    monkeypatch.setattr(host, "peak_memory", lambda: 99)
    assert memory(engine) == MemoryUse(99, None)
    engine.workspace_bytes = 77
    assert memory(engine) == MemoryUse(99, 77)
