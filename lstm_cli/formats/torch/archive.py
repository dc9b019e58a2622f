"""Archive of torch.save: a zip file with a pickle and the raw bytes of each storage."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.limits import member_bytes, open_archive
from lstm_cli.formats.torch.allowed_globals import TensorView
from lstm_cli.formats.torch.refused_objects import REFUSED, load_code, refusal, weights_file_name
from lstm_cli.formats.torch.tensors import FLOATS, StateTensor, printable, widen
from lstm_cli.formats.torch.unpickler import (
    MAX_PICKLE_BYTES,
    PickleScanner,
    unpickle,
    unpickle_next,
)

MAX_SHARING = 4
"""Bytes of all tensors per stored byte. Tied weights share storages; more sharing is an attack."""
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Number at the start of files from torch.save before 1.6, as their pickle encodes it."""


class TorchArchive:
    """Open archive of torch.save; a context manager.

    Attributes
    ----------
    root
        Content of the pickle: dicts, lists, `TensorView` and plain values.
    """

    def __init__(self, path: Path) -> None:
        _refuse_bare_pickle(path)
        self.path = path
        self._zip = open_archive(path)
        try:
            _refuse_overlap(self._zip, path)
            self._folder = self._find_folder()
            self._order = self._byte_order()
            name = f"{self._folder}data.pkl"
            pickled = member_bytes(self._zip, name, MAX_PICKLE_BYTES)
            self.root: Any = unpickle(pickled, f"{name} in {path}", path)
        except BaseException:
            self._zip.close()
            raise
        self._storages: dict[str, bytes] = {}
        stored = sum(member.file_size for member in self._zip.infolist())
        self._bytes_left = MAX_SHARING * stored

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def tensor(self, name: str, view: TensorView) -> StateTensor:
        """Tensor of the pickle; its values are read on demand."""
        return StateTensor(name, view.shape, view.dtype, partial(self._values, name, view))

    def _find_folder(self) -> str:
        names = self._zip.namelist()
        folders = [name.removesuffix("data.pkl") for name in names if _is_pickle(name)]
        if len(folders) != 1:
            raise WeightsError(
                f"{self.path} is not a file of torch.save",
                expected="a zip archive with one data.pkl",
                found=f"{len(folders)} members data.pkl" if folders else "no data.pkl",
            )
        folder = folders[0]
        if any(n == f"{folder}constants.pkl" or n.startswith(f"{folder}code/") for n in names):
            raise WeightsError(
                f"{self.path} is a TorchScript archive, whose code lstm-cli does not run",
                expected="a state dict",
                hint=f"torch.save(torch.jit.load({str(self.path)!r}, map_location='cpu')"
                f".state_dict(), {weights_file_name(self.path)!r})",
            )
        return folder

    def _byte_order(self) -> str:
        name = f"{self._folder}byteorder"
        if name not in self._zip.namelist():
            return "<"  # files before 2.1 have none
        word = member_bytes(self._zip, name, 100).strip()
        if word not in (b"little", b"big"):
            raise WeightsError(
                f"{self.path} has an unknown byte order",
                expected="little or big",
                found=repr(word),
            )
        return "<" if word == b"little" else ">"

    def _values(self, name: str, view: TensorView) -> Array:
        """Values of a tensor, after a check of every index that its view reaches."""
        if view.dtype not in FLOATS:
            raise WeightsError(
                f"{printable(name)} is stored as {view.dtype}",
                expected="one of " + ", ".join(FLOATS),
                where=str(self.path),
            )
        dtype = np.dtype(self._order + FLOATS[view.dtype])
        data = self._storage(view.storage.key, name)
        self._check_bounds(name, view, len(data) // dtype.itemsize, dtype.itemsize)
        strides = [step * dtype.itemsize for step in view.strides]
        if 0 in view.shape:
            values = np.empty(view.shape, dtype)
        else:
            offset = view.offset * dtype.itemsize
            values = np.ndarray(view.shape, dtype, data, offset, strides)
        return widen(values, view.dtype)

    def _storage(self, key: str, name: str) -> bytes:
        member = f"{self._folder}data/{key}"
        if member not in self._zip.NameToInfo:
            raise WeightsError(
                f"the values of {printable(name)} are missing: "
                f"there is no member {printable(member)}",
                where=str(self.path),
            )
        if key not in self._storages:
            self._storages[key] = member_bytes(self._zip, member)
        return self._storages[key]

    def _check_bounds(self, name: str, view: TensorView, available: int, itemsize: int) -> None:
        count, last = 1, view.offset
        for size, step in zip(view.shape, view.strides, strict=True):
            count *= size
            last += (size - 1) * step
        if count and (last >= available or count > available):
            inside = last < available
            what = "repeats the values of" if inside else "reaches outside"
            raise WeightsError(
                f"{printable(name)} {what} its storage",
                expected=f"at most {counted(available, 'value', grouped=True)}",
                found=f"{counted(count, 'value', grouped=True)} up to number {last:,}",
                where=str(self.path),
                hint="save tensor.contiguous()" if inside else None,
            )
        self._bytes_left -= count * itemsize
        if self._bytes_left < 0:
            raise WeightsError(
                f"the tensors of {self.path} share their storages too often",
                expected=f"at most {MAX_SHARING} times the bytes that are stored",
                hint="save the state dict with every tensor cloned",
            )


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _refuse_overlap(archive: zipfile.ZipFile, path: Path) -> None:
    # Overlapping members would unpack to more bytes than the ratio of each one shows.
    declared = sum(member.compress_size for member in archive.infolist())
    if declared > path.stat().st_size:
        raise WeightsError(
            f"the members of the archive {path} overlap",
            expected=f"at most {path.stat().st_size:,} stored bytes",
            found=f"{declared:,}",
        )


def _refuse_bare_pickle(path: Path) -> None:
    """Refuse a bare pickle; the error names its kind and a remedy."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head[:1] != b"\x80" or zipfile.is_zipfile(path):
                return
            data = head + file.read(MAX_PICKLE_BYTES)
    except (OSError, ValueError):
        return  # opening the archive reports the problem
    if LEGACY_MAGIC in head:
        raise _legacy_error(data, path)
    raise WeightsError(
        f"{path} is a bare pickle, which could run any code",
        expected="a zip archive of torch.save",
        hint="save the weights with torch.save(model.state_dict(), path)",
    )


def _legacy_error(data: bytes, path: Path) -> WeightsError:
    """Error for a file of torch.save before 1.6: three small pickles before the values."""
    scanner = PickleScanner(data)
    what = f"{path} is in the old, non-zip format of torch.save"
    expected = "a zip archive of torch.save"
    try:
        for _ in range(3):
            unpickle_next(scanner, str(path))
        root, unknown_globals = unpickle_next(scanner, str(path))
    except WeightsError as error:
        problem = error.problems[0]
        return WeightsError(what, expected=expected, found=problem.what, hint=problem.hint)
    if unknown_globals:
        problem = refusal(root, unknown_globals, "it", path).problems[0]
        found = problem.what.removesuffix(REFUSED)
        return WeightsError(what, expected=expected, found=found, hint=problem.hint)
    hint = f"torch.save({load_code(path)}, {weights_file_name(path)!r}) writes the current format"
    return WeightsError(what, expected=expected, hint=hint)
