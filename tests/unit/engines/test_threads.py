"""Threads by cgroup quota and physical cores, and measured peak rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstm_cli.engines import threads
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import MachinePeaks, ReadBandwidth


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, two to a core, and no cgroup."""
    cgroup, topology = tmp_path / "cgroup", tmp_path / "cpu"
    cgroup.mkdir()
    for cpu in range(8):
        folder = topology / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(threads, "_CGROUP", cgroup)
    monkeypatch.setattr(threads, "_TOPOLOGY", topology)
    monkeypatch.setattr(threads, "_allowed", lambda: set(range(8)))
    return tmp_path


def test_physical_cores_without_a_cgroup(system: Path) -> None:
    assert threads.default_threads() == 4


def test_only_the_cores_this_process_may_use(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_allowed", lambda: {1, 5, 6})
    assert threads.default_threads() == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300000 100000\n", 3),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 8),
        ("max 100000\n", 4),
        ("0 100000\n", 4),
        ("100000 0\n", 4),
        ("garbage here\n", 4),
        ("", 4),
    ],
)
def test_cgroup_v2(system: Path, text: str, expected: int) -> None:
    (system / "cgroup" / "cpu.max").write_text(text)
    assert threads.default_threads() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("500000", "100000", 5), ("-1", "100000", 4), ("x", "1", 4)]
)
def test_cgroup_v1(system: Path, quota: str, period: str, expected: int) -> None:
    folder = system / "cgroup" / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert threads.default_threads() == expected


def test_an_unknown_topology(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_TOPOLOGY", system / "nothing")
    assert threads.default_threads() == 8


def test_here() -> None:
    assert 1 <= threads.default_threads() <= len(threads._allowed())


def test_the_best_of_several_measurements_has_the_highest_value_of_each_rate() -> None:
    best = MachinePeaks.best(
        [
            MachinePeaks(200.0, (ReadBandwidth(64, 30.0), ReadBandwidth(128, 50.0))),
            MachinePeaks(230.0, (ReadBandwidth(128, 20.0),)),
            MachinePeaks(100.0, (ReadBandwidth(64, 40.0), ReadBandwidth(32, 7.0))),
        ]
    )
    assert best == MachinePeaks(
        230.0, (ReadBandwidth(64, 40.0), ReadBandwidth(128, 50.0), ReadBandwidth(32, 7.0))
    )


def test_the_reference_engine_measures_no_peaks() -> None:
    assert ReferenceEngine().measure_peaks() is None
