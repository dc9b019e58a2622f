"""Kernels on disk: found again, and read only from complete files of this user."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lstm_cli.engines import kernel_cache as cache
from lstm_cli.engines.kernel_cache import CompiledKernels
from lstm_cli.output_files import AtomicFile

KEY = "5f" * 32
OTHER = "a0" * 32
KERNELS = CompiledKernels(("step", "gates"), bytes(range(256)) * 5 + b"\n\n\0")

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of an empty cache. It does not exist yet."""
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def file(folder: Path) -> Path:
    """Files of the cache."""
    cache.store(KEY, KERNELS)
    (only,) = folder.iterdir()
    return only


def test_what_is_stored_is_found_again(file: Path) -> None:
    assert cache.load(KEY) == KERNELS
    assert cache.load(OTHER) is None


def test_storing_replaces(file: Path) -> None:
    newer = replace(KERNELS, code=b"newer")
    cache.store(KEY, newer)
    assert cache.load(KEY) == newer
    assert list(file.parent.iterdir()) == [file]


def test_no_functions_and_no_code(folder: Path) -> None:
    cache.store(KEY, CompiledKernels((), b""))
    assert cache.load(KEY) == CompiledKernels((), b"")


@pytest.mark.parametrize("position", [0, 18, 19, 50, 51, 114, 116, 121, 127, 200, -1])
def test_one_changed_byte_anywhere_is_noticed(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    assert cache.load(KEY) is None
    cache.store(KEY, KERNELS)
    assert cache.load(KEY) == KERNELS


@pytest.mark.parametrize("length", [0, 10, 19, 40, 51, 100, 116, 128, -1])
def test_a_truncated_file_is_ignored(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    assert cache.load(KEY) is None


def test_a_file_made_for_something_else_is_ignored(file: Path) -> None:
    file.rename(file.with_name(file.name.replace(KEY, OTHER)))
    assert cache.load(OTHER) is None


# Who may have written it


@posix
def test_folder_and_files_are_private(file: Path) -> None:
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_not_used(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    assert cache.load(KEY) is None
    cache.store(OTHER, KERNELS)
    assert list(file.parent.iterdir()) == [file]
    assert cache.state().reason == "others may write to the folder"
    assert not cache.state().usable


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_to_is_written_anew(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert cache.load(KEY) is None
    cache.store(KEY, KERNELS)
    assert cache.load(KEY) == KERNELS


@posix
def test_what_belongs_to_another_user_is_not_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert cache.load(KEY) is None
    cache.store(OTHER, KERNELS)
    assert list(file.parent.iterdir()) == [file]
    assert cache.state().reason == "the folder belongs to another user"


@posix
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives files away")
def test_another_users_file_in_ones_own_folder_is_not_used(file: Path) -> None:
    os.chown(file, 12_345, -1)
    assert cache.load(KEY) is None


@posix
def test_a_linked_folder_is_not_used(file: Path, tmp_path: Path) -> None:
    file.parent.rename(tmp_path / "elsewhere")
    file.parent.symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is None
    assert cache.state().reason == "the folder is a link"


@posix
def test_a_linked_file_is_not_used(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is None
    cache.store(KEY, KERNELS)
    assert not file.is_symlink()
    assert cache.load(KEY) == KERNELS


@posix
def test_a_pipe_does_not_keep_the_program_waiting(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    assert cache.load(KEY) is None


# Where nothing can be kept


def test_an_empty_variable_turns_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    cache.store(KEY, KERNELS)
    assert cache.load(KEY) is None
    assert list(tmp_path.iterdir()) == []
    state = cache.state()
    assert (state.folder, state.usable) == (None, False)
    assert state.reason == "turned off by an empty LSTM_CLI_CACHE_DIR"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(cache, "AtomicFile", refuse)
    cache.store(OTHER, KERNELS)
    assert cache.load(OTHER) is None
    assert cache.load(KEY) == KERNELS


def test_a_disk_that_fills_up_leaves_nothing_behind(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    cache.store(OTHER, KERNELS)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("part", ["cache", "cache/kernels"])
def test_a_file_in_the_folders_place(tmp_path: Path, part: str) -> None:
    place = tmp_path / part
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    cache.store(KEY, KERNELS)
    assert cache.load(KEY) is None
    assert not cache.state().usable
    assert cache.state().reason
    assert place.read_text() == "mine"


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (cache.ENVIRONMENT_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    cache.store(KEY, KERNELS)
    assert cache.load(KEY) is None
    assert cache.state().reason == "no home folder is known"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg"),
        ("darwin", {}, "home/Library/Caches"),
        ("win32", {}, "home/AppData/Local"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
    ],
)
@posix
def test_the_usual_places(
    platform: str,
    variables: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in (cache.ENVIRONMENT_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os.path, "expanduser", lambda _: str(tmp_path / "home"))
    assert cache.state().folder == tmp_path / expected / "lstm-cli" / "kernels"


# State


def test_state_makes_no_folder(folder: Path) -> None:
    state = cache.state()
    assert (state.folder, state.usable, state.reason) == (folder, True, None)
    assert (state.files, state.bytes) == (0, 0)
    assert not folder.parent.exists()


def test_state_counts(file: Path) -> None:
    cache.store(OTHER, replace(KERNELS, code=b"1234567"))
    (file.parent / "notes.txt").write_text("not counted")
    state = cache.state()
    assert state.files == 2
    assert state.bytes == file.stat().st_size + file.with_name(OTHER + ".kernels").stat().st_size


def test_state_tells_of_a_folder_nothing_can_be_added_to(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    state = cache.state()
    assert (state.usable, state.files) == (True, 1)
    assert state.reason == f"{file.parent} cannot be written to"


# Size


def _stored(folder: Path, index: int, age: float) -> str:
    key = f"{index:064x}"
    cache.store(key, KERNELS)
    then = time.time() - age
    os.utime(folder / f"{key}.kernels", (then, then))
    return key


def test_the_longest_unused_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [_stored(folder, index, age) for index, age in enumerate([500, 9000, 70, 8000])]
    (folder / "notes.txt").write_text("not the cache's")
    monkeypatch.setattr(cache, "LIMIT_FILES", 3)
    cache.store(KEY, KERNELS)
    assert [cache.load(key) is not None for key in [*keys, KEY]] == [True, False, True, False, True]
    assert (folder / "notes.txt").exists()


def test_bytes_are_limited_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [_stored(folder, index, age) for index, age in enumerate([500, 9000, 70])]
    size = next(folder.iterdir()).stat().st_size
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * size)
    cache.store(KEY, KERNELS)
    assert [cache.load(key) is not None for key in [*keys, KEY]] == [False, False, True, True]


def test_use_is_noted_once_a_day(folder: Path) -> None:
    old, recent = _stored(folder, 0, 90_000), _stored(folder, 1, 80_000)
    assert cache.load(old)
    assert cache.load(recent)
    ages = [time.time() - (folder / f"{key}.kernels").stat().st_mtime for key in (old, recent)]
    assert ages[0] < 60
    assert ages[1] > 79_000


def test_remains_of_ended_processes_are_swept_up(folder: Path) -> None:
    _stored(folder, 0, 0)
    left = folder / f".0123abcd.part.{2:064x}.kernels"
    left.write_text("half")
    with AtomicFile(folder / f"{3:064x}.kernels") as being_written:
        cache.store(KEY, KERNELS)
        assert not left.exists()
        assert being_written.path.exists()
        assert cache.state().files == 2


def test_files_that_vanish_meanwhile_are_no_matter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        _stored(folder, index, 100)
    monkeypatch.setattr(cache, "LIMIT_FILES", 1)
    lstat, unlink = os.lstat, os.unlink

    def vanished(path: str) -> os.stat_result:
        if str(path).endswith(f"{1:064x}.kernels"):
            unlink(path)
        return lstat(path)

    def removed_twice(path: str) -> None:
        unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "lstat", vanished)
    monkeypatch.setattr(os, "unlink", removed_twice)
    cache.store(KEY, KERNELS)
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.kernels"]
