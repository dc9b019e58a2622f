"""Limits for untrusted files: regular files only, bounded memory, no paths out of an archive."""

from __future__ import annotations

import math
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lstm_cli.errors import WeightsError, counted, is_memory_error, memory_error
from lstm_cli.output_files import error_reason

MAX_TEXT_BYTES = 64 << 20
"""Bytes of the largest JSON, pickle or XML text that is read."""
MAX_RATIO = 200
"""Largest ratio of unpacked to stored bytes of an archive member."""
MIN_RATIO_BYTES = 1 << 20
"""Unpacked bytes up to which the ratio of a member is not checked."""
MAX_MEMBERS = 100_000


def check_regular(path: Path, what: str = "the weights file") -> None:
    """Check that a path is a regular file.

    Raises
    ------
    WeightsError
        The file is missing, or not a regular file.
    """
    if (problem := why_not_regular(path)) is not None:
        raise WeightsError(f"{what} {path} cannot be read", found=problem)


def why_not_regular(path: Path) -> str | None:
    """Reason not to open a path, None for a regular file.

    A pipe may never start, and a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return error_reason(error)
    if stat.S_ISREG(mode):
        return None
    return "is a directory" if stat.S_ISDIR(mode) else "a pipe or a device, not a file"


def read_whole(path: Path, what: str = "the weights file", limit: int | None = None) -> bytes:
    """Read all bytes of a regular file.

    Raises
    ------
    WeightsError
        The file is missing, unreadable, not regular, or larger than `limit` bytes.
    """
    check_regular(path, what)
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise WeightsError(
                f"{what} {path} is too large",
                expected=f"at most {counted(limit, 'byte', grouped=True)}",
                found=counted(size, "byte", grouped=True),
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{what} {path} cannot be read", found=error_reason(error)) from None


def checked_size(shape: Sequence[int], itemsize: int, available: int, name: str, path: Path) -> int:
    """Bytes of an array of `shape`, checked against the bytes that a file has for it.

    Raises
    ------
    WeightsError
        A size is negative, or the array needs more than `available` bytes.
    """
    size = math.prod(shape) * itemsize
    if any(n < 0 for n in shape) or size > available:
        raise WeightsError(
            f"{name} declares a shape that the file does not hold",
            expected=f"{counted(size, 'byte', grouped=True)} for {tuple(shape)}",
            found=counted(available, "byte", grouped=True),
            where=str(path),
        )
    return size


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive whose members stay inside it and unpack to a bounded size.

    Raises
    ------
    WeightsError
        The file is not a zip archive. Or a member appears twice, has a path out of the archive,
        is a symbolic link, is encrypted, or declares far more bytes than it stores.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # struct, zipfile, memory: damaged archives raise many types
        problem = error_reason(error) if isinstance(error, OSError | ValueError) else str(error)
        raise WeightsError(
            f"{path} is not a zip archive that can be read",
            found=problem,
            hint="the file may be truncated: copy or save it again",
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
    if len(members) > MAX_MEMBERS:
        raise _refused(path, f"it has {len(members):,} members")
    if len(set(names)) != len(names):
        raise _refused(path, "two members have the same name")
    for member in members:
        pure = PurePosixPath(member.filename.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0:1]:
            raise _refused(path, f"the member {member.filename!r} leads outside the archive")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(path, f"the member {member.filename!r} is a symbolic link")
        if member.flag_bits & 1:
            raise _refused(path, f"the member {member.filename!r} is encrypted")
        if member.file_size > max(MIN_RATIO_BYTES, MAX_RATIO * member.compress_size):
            raise _refused(
                path,
                f"the member {member.filename!r} unpacks "
                f"{counted(member.compress_size, 'byte', grouped=True)} to "
                f"{counted(member.file_size, 'byte', grouped=True)}",
            )


def member_bytes(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """Read one member of an archive, never more bytes than it declares.

    Raises
    ------
    WeightsError
        The member is missing, damaged, or larger than `limit` bytes.
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
    except (WeightsError, MemoryError):  # sizes were checked, so memory is short
        raise
    except Exception as error:  # zlib, struct, EOF: damaged archives raise many types
        if is_memory_error(error):
            raise memory_error(path) from error
        raise WeightsError(f"the member {name!r} of {path} is damaged", found=str(error)) from None
    if len(data) != info.file_size:
        raise _refused(path, f"the member {name!r} holds another size than it declares")
    return data


def _refused(path: str | Path, why: str) -> WeightsError:
    return WeightsError(
        f"the archive {path} is refused",
        found=why,
        hint="save the weights again with the program that wrote the file",
    )
