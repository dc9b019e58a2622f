"""Initial states from an earlier results file: what ``run --state FILE`` reads."""

from __future__ import annotations

from collections.abc import Sequence

from lstm_cli.data.files import Hdf5File
from lstm_cli.data.results import StateShape
from lstm_cli.data.storage import Stored
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

    Raises
    ------
    DataError
        The file is missing or damaged, or a state is missing or has another shape.
    """

    def __init__(self, path: str, states: Sequence[StateShape], count: int) -> None:
        self._file = Hdf5File(path)
        self._stored: dict[int, tuple[Stored, Stored | None]] = {}
        try:
            for layer, directions, h, c in states:
                self._stored[layer] = (
                    self._state(layer, "h", (count, directions, h)),
                    None if c is None else self._state(layer, "c", (count, directions, c)),
                )
        except BaseException:
            self.close()
            raise

    def read(self, first: int, n: int) -> dict[int, tuple[Array, Array | None]]:
        """States h (n, directions, P or H) and c, or None, of `n` sequences, by layer index."""
        rows = slice(first, first + n)
        return {
            layer: (h.read(rows), None if c is None else c.read(rows))
            for layer, (h, c) in self._stored.items()
        }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, layer: int, name: str, shape: tuple[int, int, int]) -> Stored:
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
        if stored.shape != shape or not stored.numeric:
            raise DataError(
                f"{where} does not fit the network and the data",
                expected=f"{letters} = {shape}",
                found=f"{stored.shape}, {stored.dtype}",
                where=where,
            )
        return stored
