"""What launchers say in the environment, and what follows where mpi4py is absent or disagrees."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lstm_cli.errors import DeviceError, UsageError
from lstm_cli.training.micro_batches import ONE_RANK
from lstm_cli.workflows import cluster


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cluster.LAUNCHERS, *cluster.LAUNCHERS.values(), "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 0, "")),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, (4, 2, "PMI_SIZE")),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, (1, 0, "PMI_SIZE")),
        ({"PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, (1, 0, "PMI_SIZE")),
        (
            {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"},
            (3, 1, "OMPI_COMM_WORLD_SIZE"),
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7"}, (8, 7, "SLURM_STEP_NUM_TASKS")),
        # A batch script without srun, and an interactive shell: one process.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (1, 0, "")),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, (1, 0, "SLURM_STEP_NUM_TASKS")),
        ({"PMI_SIZE": "many"}, (1, 0, "")),
        ({"PMI_SIZE": "2", "PMI_RANK": "?"}, (2, 0, "PMI_SIZE")),
    ],
)
def test_what_launchers_say(environment: dict[str, str], expected: tuple[int, int, str]) -> None:
    assert cluster.launched(environment) == expected


def test_one_process_loads_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert cluster.open_exchange() is ONE_RANK


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(DeviceError, match="2 processes were started") as caught:
        cluster.open_exchange()
    assert caught.value.exit_code == 5
    assert "pip install 'lstm-cli[mpi]'" in str(caught.value)


def test_a_launcher_of_another_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mpi4py")
    world = SimpleNamespace(rank=0, size=1)
    module.MPI = SimpleNamespace(  # type: ignore[attr-defined]
        COMM_WORLD=world, Get_library_version=lambda: "Open MPI v5.0.6, package: Open MPI\n"
    )
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    monkeypatch.setitem(sys.modules, "mpi4py", module)
    with pytest.raises(DeviceError, match="started 16 processes, but MPI knows 1") as caught:
        cluster.open_exchange()
    assert "SLURM_STEP_NUM_TASKS=16, and Open MPI v5.0.6" in str(caught.value)


def test_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.check_single("run")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="run was started as 2 processes"):
        cluster.check_single("run")
