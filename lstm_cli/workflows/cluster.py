"""Ranks, processes that a launcher of MPI started together; and workers of a Dask cluster.

Rank and size come from MPI's COMM_WORLD alone. The environment only decides whether mpi4py is
loaded: a launcher must say that there are several processes.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DeviceError, UsageError, counted, printable, quote
from lstm_cli.training.interfaces import Exchange
from lstm_cli.training.micro_batches import ONE_RANK

LAUNCHERS = {
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}
"""Variables by which launchers tell the number of processes, and the number of this one.

A Slurm script that calls no srun is one process, and has no ``SLURM_STEP_NUM_TASKS`` above 1.
"""

EXTRA = "pip install 'lstm-cli[mpi]'"
DASK_EXTRA = "pip install 'lstm-cli[dask]'"
DASK_SECONDS = 30
"""Seconds that a Dask cluster gets to answer, and to have a worker."""
PART_BYTES = 64 << 20
"""Largest number of bytes that one call of MPI sends."""

FORWARD_SECONDS = 0.5
"""Seconds that a launcher gets to forward the last message of a rank."""

FAILURE_SECONDS = 2.0
"""Seconds that a rank with an error waits for the others to have one, too."""


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int, str]:
    """Number of processes, number of this one, and the variable that says so, by the launcher.

    (1, 0, "") without a launcher.
    """
    for size, rank in LAUNCHERS.items():
        text = environment.get(size, "")
        if text.isdecimal():  # the innermost launcher: mpiexec may run in a step of Slurm
            number = environment.get(rank, "0")
            return int(text), int(number) if number.isdecimal() else 0, size
    return 1, 0, ""


def check_single(command: str) -> None:
    """Raise if a launcher started several processes of a command that does not share its work.

    Raises
    ------
    UsageError
        There are several processes.
    """
    size, _, variable = launched()
    if size > 1:
        raise UsageError(
            f"{command} was started as {counted(size, 'process')}, but runs on one",
            expected="one process; only run and train share their work among ranks",
            found=f"{variable}={size}",
            hint=f"start lstm-cli {command} without mpiexec or srun",
        )


def open_exchange() -> Exchange:
    """The exchange between the ranks that a launcher started; that of one process without any.

    Raises
    ------
    DeviceError
        mpi4py or an MPI library is missing, or MPI knows fewer ranks than the launcher.
    """
    size, _, variable = launched()
    if size == 1:
        return ONE_RANK
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise DeviceError(
            f"{counted(size, 'process')} were started, but they cannot exchange anything",
            expected="the mpi extra, and an MPI library",
            found=str(error),
            hint=EXTRA,
        ) from None
    except RuntimeError as error:  # mpi4py finds no MPI library
        raise DeviceError(
            f"{counted(size, 'process')} were started, but mpi4py finds no MPI library",
            found=str(error).splitlines()[0],
            hint="load the cluster's MPI module, or: pip install mpich",
        ) from None
    world = MPI.COMM_WORLD
    if world.size != size:
        raise DeviceError(
            f"the launcher started {counted(size, 'process')}, but MPI knows {world.size}",
            expected="a launcher of the MPI that mpi4py uses",
            found=f"{variable}={size}, and {library(MPI.Get_library_version())}",
            hint="mpiexec of this MPI, or srun --mpi=pmi2 or --mpi=pmix",
        )
    return MpiExchange(world)


def library(text: str) -> str:
    """Name and version of an MPI library, from the text that describes it."""
    words = text.replace("MPICH Version:", "MPICH").split("\n")[0].split(",")[0].split()
    return " ".join(words[:4])


@dataclass(frozen=True)
class MpiStatus:
    """MPI on this machine, for ``lstm-cli devices``.

    Attributes
    ----------
    usable
        Whether `run` and `train` can use several ranks.
    mpi4py, library
        Version of mpi4py, and name and version of the MPI library. None: not found.
    reason
        Reason why it is not usable, with a remedy.
    """

    usable: bool
    mpi4py: str | None = None
    library: str | None = None
    reason: str | None = None


def mpi_status() -> MpiStatus:
    """mpi4py and the MPI library, which is loaded but not started."""
    try:
        found = version("mpi4py")
    except PackageNotFoundError:
        return MpiStatus(False, reason=f"the mpi extra is not installed: {EXTRA}")
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        return MpiStatus(True, found, library(MPI.Get_library_version()))
    except Exception as error:
        reason = (
            f"{str(error).splitlines()[0]}; load the cluster's MPI module, or: pip install mpich"
        )
        return MpiStatus(False, found, reason=reason)


class MpiExchange:
    """The exchange between MPI's ranks; see `lstm_cli.training.interfaces.Exchange`.

    Parameters
    ----------
    world
        Communicator of all ranks.
    """

    def __init__(self, world: Any) -> None:
        self._world, self._failed = world, world.Dup()
        self.rank, self.size = int(world.rank), int(world.size)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in the order of ranks."""
        values: list[Any] = self._world.allgather(value)
        return values

    def scatter_slices(self, slices: Sequence[Array]) -> list[Array]:
        """Send each rank its slice; return the slices that all ranks sent to this one."""
        counts = self.gather(len(slices[0]))
        widths = [part.shape[1] for part in slices]
        dtype = slices[0].dtype
        width = max(1, PART_BYTES // (dtype.itemsize * max(1, sum(counts))))
        received = [np.empty((n, widths[self.rank]), dtype) for n in counts]
        for first in range(0, max(widths), width):
            block = slice(first, first + width)
            sent = [np.ascontiguousarray(part[:, block]) for part in slices]
            targets = [np.empty_like(part[:, block]) for part in received]
            send, send_sizes = _joined(sent)
            receive, sizes = _joined(targets)
            self._world.Alltoallv([send, send_sizes], [receive, sizes])
            for target, part in zip(received, _parted(receive, sizes, targets), strict=True):
                target[:, block] = part
        return received

    def join_slices(self, mine: Array, out: Array) -> None:
        """Fill `out` with the arrays of all ranks, in the order of ranks."""
        widths = self.gather(len(mine))
        width = max(1, PART_BYTES // (out.itemsize * self.size))
        starts = np.concatenate([[0], np.cumsum(widths)])
        for first in range(0, max(widths), width):
            parts = [out[starts[r] + first : min(starts[r] + first + width, starts[r + 1])]
                     for r in range(self.size)]  # fmt: skip
            receive, sizes = _joined([np.empty_like(part) for part in parts])
            send = np.ascontiguousarray(mine[first : first + width]).view(np.uint8)
            self._world.Allgatherv(send, [receive, sizes])
            for part, filled in zip(parts, _parted(receive, sizes, parts), strict=True):
                part[...] = filled

    def local_rank(self) -> int:
        """Number of this rank among those of its node, from 0."""
        nodes = self.gather(platform.node())
        return nodes[: self.rank].count(nodes[self.rank])

    def local_ranks(self) -> int:
        """Number of ranks on this node that share its processors."""
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        every = self.gather((platform.node(), allowed))
        return every.count(every[self.rank])

    def all_failed(self) -> bool:
        """Whether every rank has called this within `FAILURE_SECONDS`."""
        request, end = self._failed.Ibarrier(), time.monotonic() + FAILURE_SECONDS
        while not request.Test():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def abort(self, code: int) -> None:
        """End all ranks, once the launcher has forwarded what this rank has printed."""
        sys.stderr.flush()
        time.sleep(FORWARD_SECONDS)
        self._world.Abort(code)

    def close(self) -> None:
        """End MPI; all ranks call it."""
        from mpi4py import MPI

        if not MPI.Is_finalized():
            MPI.Finalize()


def _joined(arrays: Sequence[Array]) -> tuple[Array, list[int]]:
    """The arrays' bytes in a row, and the number of bytes of each."""
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    return np.concatenate(parts), [part.size for part in parts]


def _parted(data: Array, sizes: Sequence[int], like: Sequence[Array]) -> list[Array]:
    """Arrays in the shapes and dtypes of `like`, from their bytes in a row."""
    stops = np.cumsum(sizes)
    return [
        data[stop - size : stop].view(array.dtype).reshape(array.shape)
        for stop, size, array in zip(stops, sizes, like, strict=True)
    ]


def dask_version() -> str | None:
    """Version of Dask's distributed; None: it is not installed."""
    try:
        return version("distributed")
    except PackageNotFoundError:
        return None


class DaskPool:
    """Workers of a Dask cluster; see `lstm_cli.workflows.workers.WorkerPool`.

    Dask itself gives the tasks of a dead worker to another one.

    Parameters
    ----------
    address
        Address of the scheduler, or the path of its JSON file.
    release
        Function that every worker calls once all tasks are done.

    Raises
    ------
    DeviceError
        The extra is missing, the scheduler does not answer, or it has no workers.
    """

    def __init__(self, address: str, release: Callable[[], None]) -> None:
        self._release = release
        try:
            from distributed import Client
        except ImportError as error:
            raise DeviceError(
                "a Dask cluster is reached through the package distributed, which is missing",
                expected="the dask extra",
                found=str(error),
                hint=DASK_EXTRA,
            ) from None
        scheduler = {"scheduler_file" if address.endswith(".json") else "address": address}
        try:
            self._client: Any = Client(**scheduler, timeout=DASK_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:  # a timeout is an OSError
            raise DeviceError(
                f"no Dask scheduler answers at {address}",
                expected="the address that dask scheduler prints",
                found=printable(str(error)) or type(error).__name__,
            ) from None
        try:
            self._client.wait_for_workers(1, timeout=DASK_SECONDS)
        except TimeoutError:
            self._client.close()
            raise DeviceError(
                f"the Dask scheduler at {address} has no workers",
                expected="at least one worker",
                found=f"none in {DASK_SECONDS} seconds",
                hint=f"dask worker {quote(address)} starts one",
            ) from None
        self.size = sum(self._client.nthreads().values())
        self.most_submitted = sys.maxsize

    def start(self) -> Executor:
        """See `lstm_cli.workflows.workers.WorkerPool`."""
        executor: Executor = self._client.get_executor(pure=False)
        return executor

    def stop(self, executor: Executor, *, is_done: bool) -> None:
        """See `lstm_cli.workflows.workers.WorkerPool`."""
        executor.shutdown(wait=is_done)
        if is_done:
            self._client.run(self._release, on_error="ignore")
        self._client.close()

    def is_lost(self, error: BaseException) -> bool:
        """Whether an error of a task says that its workers died again and again."""
        from distributed import KilledWorker

        return isinstance(error, KilledWorker)
