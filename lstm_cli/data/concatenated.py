"""Layout concatenated: inputs (sum T, D) one after the other, with lengths or offsets."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.data.axes import turning
from lstm_cli.data.labels import stored_names
from lstm_cli.data.lengths import agreed, lengths_of_offsets, lengths_table, only_lengths
from lstm_cli.data.links import Folder
from lstm_cli.data.ragged import Lengths, check_lengths, check_total, pad_into, starts_of
from lstm_cli.data.roles import Roles
from lstm_cli.data.storage import Stored
from lstm_cli.data.targets import FlatTargets, find_targets
from lstm_cli.data.types import Array, DataOptions, Targets
from lstm_cli.errors import DataError


@dataclass(frozen=True)
class Concatenated:
    """Frames of all sequences in one dataset; RETURNN's and CURRENNT's files too."""

    folder: Folder
    stored: Stored
    lengths: Lengths
    starts: Lengths
    targets: Targets | None
    found: dict[str, str]
    name: str = "concatenated"
    padded: bool = False

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def features(self) -> int:
        return self.stored.shape[1] if self.stored.rank == 2 else 1

    @property
    def steps(self) -> int:
        return int(self.lengths.max(initial=0))

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return str(self.stored.dtype)

    def read(self, start: int, stop: int, out: Array) -> int:
        rows = slice(int(self.starts[start]), int(self.starts[stop]))
        if rows.stop - rows.start == out.shape[0] * out.shape[1]:
            return self.stored.read_into(rows, out)
        values = self.stored.read(rows)
        pad_into(values, self.lengths[start:stop], out)
        return values.nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        first = int(self.starts[number])
        rows = self.stored.read(slice(first + begin, first + end))
        return rows.reshape(-1, self.features)

    def place(self, number: int) -> str:
        return self.inputs

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return stored_names(self.folder, self.count)


def open_concatenated(
    folder: Folder, roles: Roles, inputs: Stored, options: DataOptions
) -> Concatenated:
    """The concatenated layout of a group.

    Raises
    ------
    DataError
        Nothing divides the rows, or lengths, offsets or targets do not fit.
    """
    if inputs.rank not in (1, 2) or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (sum T, D) in the concatenated layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    lengths, table = _lengths(folder, roles, inputs, options)
    starts = starts_of(lengths)
    found = find_targets(folder, options)
    targets = None if found is None else FlatTargets.of(found, lengths, starts, table, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    return Concatenated(folder, inputs, lengths, starts, targets, paths)


def _lengths(
    folder: Folder, roles: Roles, inputs: Stored, options: DataOptions
) -> tuple[Lengths, Lengths | None]:
    """The lengths (N,), and the whole table where the file has one."""
    told: dict[str, Lengths] = {}
    table = None
    if roles.lengths is not None:
        name, places = roles.lengths.where, options.places(roles.lengths.where, inputs.where)
        table = lengths_table(roles.lengths, options)
        if folder.folder("targets") is None:  # RETURNN's have a column each
            only_lengths(roles.lengths, options)
        told[name] = table[:, 0]
        check_lengths(told[name], name, places, None)
        fits = sum(told[name].tolist()) == inputs.shape[-1]
        hint = turning(options) if fits else None
        check_total(told[name], inputs.shape[0], name, inputs.where, places, hint)
    if roles.offsets is not None:
        told[roles.offsets.where] = lengths_of_offsets(roles.offsets, inputs.shape[0], options)
    lengths = agreed(told, options)
    if lengths is None:
        raise DataError(
            f"nothing says where the sequences of {inputs.where} begin",
            expected="lengths (N,) or offsets (N + 1,) beside inputs (sum T, D)",
            where=options.places(folder.where),
            hint="in a config, data.lengths names them",
        )
    return lengths, table
