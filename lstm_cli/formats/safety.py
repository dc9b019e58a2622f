"""Limits for files that come from elsewhere: bounded memory, no paths that lead outside."""

from __future__ import annotations

import math
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lstm_cli.errors import WeightsError, is_memory_error, memory_error
from lstm_cli.output_files import error_reason

LARGEST_TEXT = 64 << 20
"""Bytes of the largest description (JSON, pickle, XML) that is read."""
LARGEST_RATIO = 200
"""A member of an archive may hold at most so many bytes for each stored one."""
SMALL = 1 << 20
"""Up to this size a member's ratio does not matter."""
MOST_MEMBERS = 100_000


def check_regular(path: Path, what: str = "the weights file") -> None:
    """Make sure that a file is one.

    Raises
    ------
    WeightsError
        Missing, or no regular file.
    """
    if (found := irregular(path)) is not None:
        raise WeightsError(f"{what} {path} cannot be read", found=found)


def irregular(path: Path) -> str | None:
    """Why this is no file to be read, or None: a pipe may never begin, a device may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return error_reason(error)
    if stat.S_ISREG(mode):
        return None
    return "is a directory" if stat.S_ISDIR(mode) else "a pipe or a device, not a file"


def read_whole(path: Path, what: str = "the weights file", limit: int | None = None) -> bytes:
    """A file's bytes.

    Raises
    ------
    WeightsError
        Missing, unreadable, no regular file, or larger than `limit` bytes.
    """
    check_regular(path, what)
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise WeightsError(
                f"{what} {path} is too large",
                expected=f"at most {limit:,} bytes",
                found=f"{size:,} bytes",
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{what} {path} cannot be read", found=error_reason(error)) from None


def checked_size(shape: Sequence[int], itemsize: int, available: int, name: str, path: Path) -> int:
    """Bytes of an array of `shape`.

    Raises
    ------
    WeightsError
        A negative size, or more bytes than the `available` ones that the file holds for it.
    """
    size = math.prod(shape) * itemsize
    if any(n < 0 for n in shape) or size > available:
        raise WeightsError(
            f"{name} declares a shape that the file does not hold",
            expected=f"{size:,} bytes for {tuple(shape)}",
            found=f"{available:,} bytes",
            where=str(path),
        )
    return size


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive whose members all stay inside it and unpack to a bounded size.

    Raises
    ------
    WeightsError
        No zip archive, a member named twice or by a path that leads outside, a symbolic link,
        encrypted, or a declared size out of proportion to what is stored.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # struct, zipfile, memory: whatever a damaged archive leads to
        found = error_reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise WeightsError(
            f"{path} is not a zip archive that can be read",
            found=found,
            hint="the file may be cut short: copy it, or save it, again",
        ) from None
    try:
        _check_members(archive, path)
    except WeightsError:
        archive.close()
        raise
    return archive


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MOST_MEMBERS:
        raise _refused(path, f"it has {len(members):,} members")
    if len(set(names)) != len(names):
        raise _refused(path, "two members have the same name")
    for member in members:
        pure = PurePosixPath(member.filename.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0:1]:
            raise _refused(path, f"the member {member.filename!r} leads outside it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(path, f"the member {member.filename!r} is a symbolic link")
        if member.flag_bits & 1:
            raise _refused(path, f"the member {member.filename!r} is encrypted")
        if member.file_size > max(SMALL, LARGEST_RATIO * member.compress_size):
            raise _refused(
                path,
                f"the member {member.filename!r} unpacks {member.compress_size:,} bytes to "
                f"{member.file_size:,}",
            )


def member_bytes(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """One member's bytes, never more than it declares.

    Raises
    ------
    WeightsError
        No such member, damaged, or larger than `limit`.
    """
    path = archive.filename or "archive"
    try:
        info = archive.getinfo(name)
        if limit is not None and info.file_size > limit:
            raise _refused(path, f"the member {name!r} has {info.file_size:,} bytes")
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
    except KeyError:
        raise WeightsError(f"{path} has no member {name!r}") from None
    except (WeightsError, MemoryError):  # sizes were checked: it is memory that lacks
        raise
    except Exception as error:  # zlib, struct, EOF: whatever a damaged archive leads to
        if is_memory_error(error):
            raise memory_error(path) from error
        raise WeightsError(f"the member {name!r} of {path} is damaged", found=str(error)) from None
    if len(data) != info.file_size:
        raise _refused(path, f"the member {name!r} holds another size than it declares")
    return data


def _refused(path: str | Path, why: str) -> WeightsError:
    return WeightsError(
        f"the archive {path} is refused", found=why, hint="save the weights anew where they are"
    )
