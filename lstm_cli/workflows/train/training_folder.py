"""Folder of a training run: its lock, its files, and the checks before a run is resumed.

One process at a time works in a folder. A file is either whole or does not exist.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lstm_cli import config as configs
from lstm_cli.config import Config
from lstm_cli.errors import (
    ConfigError,
    LstmCliError,
    Problem,
    UsageError,
    WeightsError,
    counted,
    quote,
)
from lstm_cli.formats import native
from lstm_cli.formats.interchange import Imported
from lstm_cli.formats.limits import read_whole
from lstm_cli.output_files import (
    discard_on_exit,
    error_reason,
    remove_leftovers,
    write_all,
    write_atomically,
    write_error,
)
from lstm_cli.training.checkpoint import Checkpoint, Progress
from lstm_cli.training.interfaces import EpochRow
from lstm_cli.workflows.train.trainer import train_section

MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
CONFIG, METRICS, CURVES = "config.yaml", "metrics.jsonl", "curves.png"
LOCK, EVENTS = ".lock", "tensorboard"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of a config."""
HINT = "--output names another folder for a run with other settings"


@dataclass(frozen=True)
class StoredRun:
    """A run as its checkpoint stores it.

    Attributes
    ----------
    checkpoint
        State from which the loop continues.
    config
        The run's config, as YAML.
    facts
        Other values that must not change: data, first weights, dtype, engine, threads.
    """

    checkpoint: Checkpoint
    config: str
    facts: Mapping[str, Any]


class TrainingFolder:
    """A folder for one run; a context manager that holds its lock.

    A new folder is made with the first checkpoint, so a run that fails earlier leaves no folder.

    Parameters
    ----------
    path
        Path of the folder.
    resume
        Continue the run in the folder; in a missing or empty folder, begin a new run.
    writes
        False: another rank of this run holds the lock and writes; this one only reads.

    Attributes
    ----------
    stored
        The run to continue; None: a new one begins.

    Raises
    ------
    LstmCliError
        The folder holds a run and `resume` is not set, or another process works in it, or it
        cannot be made or written.
    UsageError
        The path is no folder.
    """

    def __init__(self, path: Path, *, resume: bool, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        self.stored: StoredRun | None = None
        self._lock: int | None = None
        self._new_lock = False
        self._new_folders: list[Path] = []
        if os.path.exists(path) and not os.path.isdir(path):
            folder = path.with_name(f"{path.stem}-run")
            raise UsageError(
                f"{path} is a file, but a training run needs a folder",
                expected="a folder, or a new name",
                hint=f"--output {quote(folder)}",
            )
        if not writes:
            self.stored = self._read_stored(resume) if os.path.exists(path) else None
            return
        if not os.path.exists(path):
            self._check_writable()
            return
        try:
            self._open()
            self.stored = self._read_stored(resume)
        except BaseException:
            self.close()
            raise

    @property
    def threads(self) -> int | None:
        """Threads of the run to continue; None: there is no such run, or they are unknown."""
        count = None if self.stored is None else self.stored.facts.get("threads")
        return count if isinstance(count, int) and count > 0 else None

    @property
    def model(self) -> Path:
        """Path of the best weights so far."""
        return self.path / MODEL

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint, from which a resumed run continues."""
        return self.path / CHECKPOINT

    @property
    def metrics(self) -> Path:
        """Path of the metrics, a line of JSON for each epoch."""
        return self.path / METRICS

    @property
    def curves(self) -> Path:
        """Path of the plot of the metrics."""
        return self.path / CURVES

    @property
    def events(self) -> Path:
        """Path of the folder with TensorBoard's events."""
        return self.path / EVENTS

    def files(self) -> dict[str, str]:
        """Return the paths of the run's files that exist, by name."""
        names = (MODEL, CHECKPOINT, CONFIG, METRICS, CURVES, EVENTS)
        return {name: str(self.path / name) for name in names if os.path.exists(self.path / name)}

    def save(self, checkpoint: Checkpoint, config: str, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint; the first one makes the folder."""
        text = json.dumps({"progress": checkpoint.progress.numbers(), "facts": facts})
        first = not os.path.exists(self.checkpoint)
        try:
            with discard_on_exit(self.path, self) if first else nullcontext():
                if self._lock is None:
                    self._make_folder()
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
        """Write the config, unless the file holds it already."""
        path, data = self.path / CONFIG, text.encode()
        if _read(path) != data:
            write_atomically(path, data, "the config")

    def rows(self, epochs: int) -> list[EpochRow]:
        """Return the rows of metrics up to an epoch, and remove later ones from the file."""
        data = _read(self.metrics)
        rows = [row for row in map(_row, data.splitlines()) if row is not None]
        rows = [row for row in rows if row["epoch"] <= epochs]
        lines = b"".join(map(_line, rows))
        if lines != data and self._writes:
            write_atomically(self.metrics, lines, "the metrics")
        return rows

    def append(self, row: EpochRow) -> None:
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
        """Release the lock, and remove a folder without a checkpoint that this process made."""
        self.discard()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove the folders and the lock that this process made, if there is no checkpoint."""
        if os.path.exists(self.checkpoint) or not self._writes:
            return
        with suppress(OSError):
            if self._new_lock:
                (self.path / LOCK).unlink(missing_ok=True)
            for folder in reversed(self._new_folders):
                folder.rmdir()

    def __enter__(self) -> TrainingFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        """Raise if permissions forbid making the folder."""
        parent = next(parent for parent in self.path.absolute().parents if os.path.exists(parent))
        number = errno.ENOTDIR
        if os.path.isdir(parent):
            number = 0 if os.access(parent, os.W_OK | os.X_OK) else errno.EACCES
        if number:
            raise write_error(self.path, "the run", OSError(number, os.strerror(number)))

    def _make_folder(self) -> None:
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
        self._read_stored(resume=False)

    def _open(self) -> None:
        """Lock the folder, and remove the temporary files of killed processes."""
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
        """Lock the folder; the system releases the lock when the process ends in any way."""
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return  # a file system without locks
            self._new_lock = False
            raise LstmCliError(
                f"another process is training in {self.path}",
                found=_lock_owner(self.path / LOCK),
                hint="wait until it ends, or name another folder with --output",
            ) from None
        with suppress(OSError):  # only for messages of other processes
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()}\n".encode())

    def _read_stored(self, resume: bool) -> StoredRun | None:
        """Return the run to continue; None if the folder holds none.

        Raises
        ------
        LstmCliError
            The folder holds a run and `resume` is not set, or files but no checkpoint.
        """
        names = (CHECKPOINT, MODEL, METRICS, CONFIG, CURVES, EVENTS)
        present = [name for name in names if os.path.exists(self.path / name)]
        if not present:
            return None
        if CHECKPOINT not in present:
            raise LstmCliError(
                f"{self.path} holds files that a run would replace, but no run to resume",
                expected=f"an empty folder, or one with {CHECKPOINT}",
                found=", ".join(present),
                hint="--output names another folder for a new run",
            )
        if not resume:
            raise LstmCliError(
                f"{self.path} holds a run already",
                found=", ".join(present),
                hint="--resume continues the run; --output names another folder for a new run",
            )
        return read_checkpoint(self.checkpoint)


def read_checkpoint(path: Path) -> StoredRun:
    """Read a checkpoint.

    Raises
    ------
    WeightsError
        The file cannot be read, or is no checkpoint.
    """
    file = native.read(path, allow_integers=True)
    try:
        training = json.loads(file.metadata["training"])
        progress, facts = Progress.from_numbers(training["progress"]), dict(training["facts"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _no_checkpoint(path) from None
    if file.config is None:
        raise _no_checkpoint(path)
    return StoredRun(Checkpoint(progress, file.tensors), file.config, facts)


def _no_checkpoint(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is no checkpoint of a run",
        hint=f"lstm-cli train writes {CHECKPOINT}; name a folder with one, or a new one",
    )


def _read(path: Path) -> bytes:
    """Return the bytes of a file of the run; none if it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LstmCliError(f"{path} cannot be read", found=error_reason(error)) from None


def _line(row: EpochRow) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _row(line: bytes) -> EpochRow | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a killed process left half a line
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
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _lock_owner(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()[:80] or None
    except OSError:
        return None  # Windows forbids reading a locked file


def run_config(config: Config, folder: Path) -> Config:
    """Return the config as a run writes it, with paths relative to the run's folder.

    Raises
    ------
    ConfigError
        The config has no section `train`.
    """
    train = train_section(config).model_dump(exclude_none=True)
    if isinstance(config.validation, str):
        train["validation"] = _relative_data(folder, config.validation)
    return config.with_train(train)


def _relative_data(folder: Path, data: str) -> str:
    """Return ``FILE.h5:/group`` relative to a folder, links resolved; absolute on other drives."""
    from lstm_cli.hdf5.file import split_argument

    file, group = split_argument(data)
    try:
        # In a folder that is a link, .. is the parent of the link's target.
        file = os.path.relpath(os.path.realpath(file), os.path.realpath(folder))
    except ValueError:
        file = os.path.abspath(file)
    return file if group == "/" else f"{file}:{group}"


def check_same_config(
    stored: StoredRun, config: Config, text: str, folder: Path
) -> tuple[str, ...]:
    """Check that a resumed run has its first config; more epochs are allowed.

    Parameters
    ----------
    config
        The config of the resumed run, with the source of each value for errors.
    text
        The same config, as the run writes it.

    Returns
    -------
    Notes on the effect of more epochs.

    Raises
    ------
    ConfigError
        A key has another value than at the start. The error lists every such key.
    """
    name = str(folder / "config.yaml")
    old = dict(_leaves(_sections(configs.from_text(stored.config, name, folder))))
    new = dict(_leaves(_sections(configs.from_text(text, name, folder))))
    problems = [
        _changed_key(config, path, old.get(path, "nothing"), new.get(path, "nothing"))
        for path in dict.fromkeys((*old, *new))
        if old.get(path) != new.get(path) and not _more_epochs(path, old, new)
    ]
    if problems:
        raise ConfigError(problems, headline=_headline(folder, problems))
    length = ("train", "schedule", "epochs")
    if old != new and old.get(length, 0) is None:
        return (
            "the cosine of the learning rate now ends with the new last epoch: the run differs "
            "from one that had so many epochs from the start",
        )
    return ()


def check_same_numbers(
    stored: StoredRun, folder: Path, *, dtype: str, weights: str | Path | Imported | None
) -> None:
    """Check that a resumed run has its first dtype and its first weights.

    Parameters
    ----------
    weights
        Weights file to begin from, or imported weights; None: there is none.

    Raises
    ------
    ConfigError
        The dtype has changed.
    WeightsError
        The weights have changed.
    """
    if stored.facts.get("dtype") != dtype:
        was = str(stored.facts.get("dtype"))
        problem = Problem("dtype differs from the run's dtype", was, dtype, hint=f"--dtype {was}")
        raise ConfigError([problem], headline=_headline(folder, [problem]))
    now = _sha256(weights)
    if now is None or now == (was := str(stored.facts.get("weights_sha256"))):
        return
    name = weights.path if isinstance(weights, Imported) else weights
    raise WeightsError(
        f"{name} is not the file that the run in {folder} began with",
        expected=f"sha256 {was[:16]}…",
        found=f"sha256 {now[:16]}…",
        hint=HINT,
    )


def _sha256(weights: str | Path | Imported | None) -> str | None:
    if isinstance(weights, Imported):
        return weights.sha256
    if weights is None or not Path(weights).is_file():
        return None
    return hashlib.sha256(read_whole(Path(weights))).hexdigest()


def _headline(folder: Path, problems: list[Problem]) -> str:
    count = counted(len(problems), "setting")
    return f"{count} changed since the run in {folder} began; a resumed run keeps its settings"


def _changed_key(config: Config, path: KeyPath, old: Any, new: Any) -> Problem:
    name = ".".join(map(str, path))
    where = config.where(*path)
    what = f"{name} was {old}, and is now {new}"
    if path == ("train", "epochs"):
        return Problem(what, where=(where,), hint="more epochs are allowed, fewer are not")
    return Problem(what, where=(where,), hint=HINT)


def _more_epochs(path: KeyPath, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    return path == ("train", "epochs") and bool(new[path] > old[path])


def _sections(config: Config) -> dict[str, Any]:
    train = None if config.train is None else config.train.model_dump()
    return {"model": config.model.model_dump(), "data": config.data.model_dump(), "train": train}


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[Any, Any]]:
    """Yield every value that holds no others, with its path."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, (*path, key))
