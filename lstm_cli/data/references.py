"""Whole datasets of a group, by name: reference inputs and outputs of another framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lstm_cli.data.files import Hdf5File
from lstm_cli.data.links import Folder
from lstm_cli.data.storage import Stored, need_numeric
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError

DEEPEST = 3
"""Groups within each other that are looked into: ``state/0/h``."""


def read_arrays(argument: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """Datasets of numbers of ``FILE.h5`` or ``FILE.h5:/group``, by their path in the group.

    Parameters
    ----------
    wanted
        Whether a dataset is read, by that path.

    Raises
    ------
    DataError
        The file cannot be read, or one that is wanted holds no numbers or leads elsewhere.
    """
    with Hdf5File(argument, allow_external=None) as file:
        found = {}
        for name, stored in _datasets(file.folder, "", wanted):
            need_numeric(stored, name, (stored.where,))
            if stored.vlen:
                raise DataError(f"{stored.where} has rows of their own lengths", where=stored.where)
            found[name] = stored.read()
        return found


def _datasets(
    folder: Folder, prefix: str, wanted: Callable[[str], bool], depth: int = 1
) -> Iterator[tuple[str, Stored]]:
    for name in folder.names():
        path = f"{prefix}{name}"
        if wanted(path):
            stored = folder.dataset(name)
            if stored is not None:
                yield path, stored
        elif depth < DEEPEST and path.split("/", 1)[0] == "state":
            inner = folder.folder(name)
            if inner is not None:
                yield from _datasets(inner, f"{path}/", wanted, depth + 1)
