"""How many threads are taken: the cgroup's grant, else physical cores, never more than allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstm_cli.engines import threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def test_physical_cores_without_a_cgroup(machine: Path) -> None:
    assert threads.default_threads() == 4


def test_only_the_cores_this_process_may_use(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_cgroup_v2(machine: Path, text: str, expected: int) -> None:
    (machine / "cgroup" / "cpu.max").write_text(text)
    assert threads.default_threads() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("500000", "100000", 5), ("-1", "100000", 4), ("x", "1", 4)]
)
def test_cgroup_v1(machine: Path, quota: str, period: str, expected: int) -> None:
    folder = machine / "cgroup" / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert threads.default_threads() == expected


def test_an_unknown_topology(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_TOPOLOGY", machine / "nothing")
    assert threads.default_threads() == 8


def test_here() -> None:
    assert 1 <= threads.default_threads() <= len(threads._allowed())
