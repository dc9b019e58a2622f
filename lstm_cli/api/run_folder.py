"""The folder of a training run: one process at a time, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstm_cli.errors import LstmCliError, UsageError, WeightsError, quote
from lstm_cli.formats import native
from lstm_cli.output_files import (
    discard_on_exit,
    error_reason,
    remove_leftovers,
    write_all,
    write_atomically,
    write_error,
)
from lstm_cli.training.progress import Checkpoint, Progress
from lstm_cli.training.surroundings import Row

MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
CONFIG, METRICS, CURVES = "config.yaml", "metrics.jsonl", "curves.png"
LOCK, EVENTS = ".lock", "tensorboard"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}


@dataclass(frozen=True)
class Stored:
    """A checkpoint as it was read.

    Attributes
    ----------
    checkpoint
        What the loop goes on from.
    config
        The run's config, as YAML.
    facts
        What else must be as it was: data, weights it began with, dtype, engine, threads.
    """

    checkpoint: Checkpoint
    config: str
    facts: Mapping[str, Any]


class RunFolder:
    """A folder for one run; a context manager that holds its lock.

    A folder that is not there is made with the first checkpoint: a run that fails before has
    nothing to keep.

    Parameters
    ----------
    path
        The folder.
    resume
        Go on with the run that it holds; one that is missing or empty begins anew.

    Raises
    ------
    LstmCliError
        It holds a run and `resume` is not set; another process is at work in it; it cannot be
        made or written.
    UsageError
        Something that is no folder has its name.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.held: Stored | None = None
        self._lock: int | None = None
        self._new_lock = False
        self._new_folders: list[Path] = []
        if os.path.exists(path) and not os.path.isdir(path):
            folder = path.with_name(f"{path.stem}-run")
            raise UsageError(
                f"{path} is a file, and a training run is kept in a folder",
                expected="a folder, or a new name",
                hint=f"--output {quote(folder)}",
            )
        if not os.path.exists(path):
            self._need_writable()
            return
        try:
            self._open()
            self.held = self._held(resume)
        except BaseException:
            self.close()
            raise

    @property
    def threads(self) -> int | None:
        """What the run that goes on has computed with."""
        found = None if self.held is None else self.held.facts.get("threads")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def model(self) -> Path:
        """The best weights so far."""
        return self.path / MODEL

    @property
    def checkpoint(self) -> Path:
        """What a resumed run goes on from."""
        return self.path / CHECKPOINT

    @property
    def metrics(self) -> Path:
        """A line of JSON for each epoch."""
        return self.path / METRICS

    @property
    def curves(self) -> Path:
        """The picture of them."""
        return self.path / CURVES

    @property
    def events(self) -> Path:
        """The folder TensorBoard is pointed to."""
        return self.path / EVENTS

    def files(self) -> dict[str, str]:
        """Path of each of the run's files that is there, by name."""
        names = (MODEL, CHECKPOINT, CONFIG, METRICS, CURVES, EVENTS)
        return {name: str(self.path / name) for name in names if os.path.exists(self.path / name)}

    def save(self, checkpoint: Checkpoint, config: str, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint; the first one makes the folder."""
        text = json.dumps({"progress": checkpoint.progress.numbers(), "facts": facts})
        first = not os.path.exists(self.checkpoint)
        try:
            with discard_on_exit(self.path, self) if first else nullcontext():
                if self._lock is None:
                    self._make()
                native.write(
                    self.checkpoint,
                    checkpoint.tensors,
                    config,
                    {"training": text},
                    what="the checkpoint",
                )
                if first:
                    self.write_config(config)
        except BaseException:
            self.close()
            raise

    def write_config(self, text: str) -> None:
        """Write the config as resolved, unless it stands there already."""
        path, data = self.path / CONFIG, text.encode()
        if _read(path) != data:
            write_atomically(path, data, "the config")

    def rows(self, epochs: int) -> list[Row]:
        """The rows of metrics up to an epoch; what was written after it is removed."""
        data = _read(self.metrics)
        rows = [row for row in map(_row, data.splitlines()) if row is not None]
        rows = [row for row in rows if row["epoch"] <= epochs]
        kept = b"".join(map(_line, rows))
        if kept != data:
            write_atomically(self.metrics, kept, "the metrics")
        return rows

    def append(self, row: Row) -> None:
        """Add a row of metrics."""
        try:
            with self.metrics.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    write_all(file, _line(row))
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise write_error(self.metrics, "the metrics", error) from None

    def close(self) -> None:
        """Let the next process in; what holds nothing is removed."""
        self.discard()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove what this process made, if there is no checkpoint."""
        if os.path.exists(self.checkpoint):
            return
        with suppress(OSError):
            if self._new_lock:
                (self.path / LOCK).unlink(missing_ok=True)
            for folder in reversed(self._new_folders):
                folder.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need_writable(self) -> None:
        """Raise unless the folder can be made, as far as that can be told without making it."""
        parent = next(parent for parent in self.path.absolute().parents if os.path.exists(parent))
        number = errno.ENOTDIR
        if os.path.isdir(parent):
            number = 0 if os.access(parent, os.W_OK | os.X_OK) else errno.EACCES
        if number:
            raise write_error(self.path, "the run", OSError(number, os.strerror(number)))

    def _make(self) -> None:
        """Make the folder and lock it; another process may have done so meanwhile."""
        missing = [
            folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)
        ]
        try:
            for folder in reversed(missing):
                self._new_folders.append(folder)
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.path, "the run", error) from None
        self._open()
        self._held(resume=False)

    def _open(self) -> None:
        """Lock the folder, and remove what killed processes left in it."""
        path = self.path / LOCK
        try:
            while True:
                self._new_lock = not os.path.exists(path)
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                self._take_lock(self._lock)
                # The process that held the lock may have removed the file.
                if os.name == "nt" or _is_open(path, self._lock):
                    break
                os.close(self._lock)
        except OSError as error:
            raise write_error(self.path, "the run", error) from None
        remove_leftovers(self.path)

    def _take_lock(self, handle: int) -> None:
        """Lock the folder; the system lets go when the process ends, however it ends."""
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return  # a file system without locks: as good as it gets there
            self._new_lock = False
            raise LstmCliError(
                f"another process is training in {self.path}",
                found=_owner(self.path / LOCK),
                hint="wait until it ends, or name another folder with --output",
            ) from None
        with suppress(OSError):  # for those who wait; the lock holds without it
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()}\n".encode())

    def _held(self, resume: bool) -> Stored | None:
        """The run that the folder holds, if it is to go on."""
        names = (CHECKPOINT, MODEL, METRICS, CONFIG, CURVES, EVENTS)
        found = [name for name in names if os.path.exists(self.path / name)]
        if not found:
            return None
        if CHECKPOINT not in found:
            raise LstmCliError(
                f"{self.path} holds files that a run would replace, and no run to go on with",
                expected=f"an empty folder, or one with {CHECKPOINT}",
                found=", ".join(found),
                hint="--output names another folder for a new run",
            )
        if not resume:
            raise LstmCliError(
                f"{self.path} holds a run already",
                found=", ".join(found),
                hint="--resume goes on with it; --output names another folder for a new one",
            )
        return read_checkpoint(self.checkpoint)


def read_checkpoint(path: Path) -> Stored:
    """Read a checkpoint.

    Raises
    ------
    WeightsError
        It cannot be read, or is none.
    """
    file = native.read(path, counts=True)
    try:
        training = json.loads(file.metadata["training"])
        progress, facts = Progress.of(training["progress"]), dict(training["facts"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _no_checkpoint(path) from None
    if file.config is None:
        raise _no_checkpoint(path)
    return Stored(Checkpoint(progress, file.tensors), file.config, facts)


def _no_checkpoint(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is no checkpoint of a run",
        hint=f"lstm-cli train writes {CHECKPOINT}; name a folder with one, or a new one",
    )


def _read(path: Path) -> bytes:
    """What a file of the run holds; nothing if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LstmCliError(f"{path} cannot be read", found=error_reason(error)) from None


def _line(row: Row) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _row(line: bytes) -> Row | None:
    """A row of metrics; None for a line that was not written to its end."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None


def _lock(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_open(path: Path, handle: int) -> bool:
    """Whether a name is that of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str | None:
    """Who holds the lock, as it said itself."""
    try:
        return path.read_text(errors="replace").strip()[:80] or None
    except OSError:
        return None  # Windows lets nobody read what is locked
