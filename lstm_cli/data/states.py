"""Initial states from an earlier results file: what ``run --state FILE`` reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lstm_cli.data.files import Hdf5File
from lstm_cli.data.results import StateShape
from lstm_cli.data.storage import Stored, type_name
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError


class StateReader:
    """Reads ``state/<layer>/h`` and ``/c`` of a results file; a context manager.

    Parameters
    ----------
    path
        ``FILE.h5`` or ``FILE.h5:/group``.
    states
        The recurrent layers that need states, as for `ResultWriter`.
    count
        Sequences N of the run.
    unread
        Layers and letters of states that are not asked for, and may be missing.
    one_sided
        Layers of which the states of the reverse direction alone are enough.

    Raises
    ------
    DataError
        The file is missing or damaged, or a state is missing or has another shape.
    """

    def __init__(
        self,
        path: str,
        states: Sequence[StateShape],
        count: int,
        unread: Collection[tuple[int, str]] = (),
        one_sided: Collection[int] = (),
    ) -> None:
        self._file = Hdf5File(path, allow_external=None)
        self.not_finite: str | None = None
        self._stored: dict[int, dict[str, Stored]] = {}
        try:
            for layer, directions, *sizes in states:
                self._stored[layer] = {
                    letter: self._state(
                        layer, letter, (count, directions, size), layer in one_sided
                    )
                    for letter, size in zip("hc", sizes, strict=True)
                    if size is not None and (layer, letter) not in unread
                }
        except BaseException:
            self.close()
            raise

    def read(self, first: int, n: int) -> dict[int, tuple[Array | None, Array | None]]:
        """States h (n, directions, P or H) and c, or None, of `n` sequences, by layer index."""
        rows = slice(first, first + n)
        found = {}
        for layer, stored in self._stored.items():
            parts = {letter: state.read(rows) for letter, state in stored.items()}
            for letter, part in parts.items():
                self._note_not_finite(f"state/{layer}/{letter}", first, part)
            found[layer] = (parts.get("h"), parts.get("c"))
        return found

    def _note_not_finite(self, name: str, first: int, values: Array) -> None:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if self.not_finite is None and not finite.all():
            place = f"{self._file.folder.where.rstrip('/')}/{name}"
            row = first + int(np.argmin(finite))
            self.not_finite = f"{place} holds NaN or infinity, in sequence {row} say"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, layer: int, name: str, shape: tuple[int, int, int], one_sided: bool) -> Stored:
        folder = self._file.folder
        stored = folder.dataset(f"state/{layer}/{name}")
        where = f"{folder.where.rstrip('/')}/state/{layer}/{name}"
        letters = "(N, directions, H)" if name == "c" else "(N, directions, H or P)"
        if stored is None:
            raise DataError(
                f"{where} does not exist",
                expected=f"the state of layer {layer}, {letters} = {shape}",
                where=where,
                hint="lstm-cli run ... --output writes a file with states",
            )
        shapes = [shape, (shape[0], 1, shape[2])] if one_sided else [shape]
        if stored.shape not in shapes or not stored.numeric or stored.vlen:
            either = f", or {shapes[-1]} of the reverse direction, the only one in use"
            raise DataError(
                f"{where} does not fit the network and the data",
                expected=f"{letters} = {shape}" + (either if one_sided else ""),
                found=f"{stored.shape}, {type_name(stored)}",
                where=where,
            )
        return stored
