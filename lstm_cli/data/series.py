"""Layout series: one (T, D) series, as a single sequence or cut into windows as they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from lstm_cli.data.labels import stored_names
from lstm_cli.data.links import Folder
from lstm_cli.data.ragged import Lengths, starts_of
from lstm_cli.data.roles import Roles
from lstm_cli.data.storage import Stored
from lstm_cli.data.targets import (
    FlatTargets,
    FoundTargets,
    cast_targets,
    find_targets,
    misfit,
    target_info,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo, Targets, Window
from lstm_cli.errors import DataError


@dataclass(frozen=True)
class Series:
    """A series; each window is a sequence, or the whole of it is the only one."""

    folder: Folder
    stored: Stored
    window: Window
    count: int
    targets: Targets | None
    found: dict[str, str]
    padded: bool
    name: str = "series"
    lengths: Lengths | None = None

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def features(self) -> int:
        return self.stored.shape[1] if self.stored.rank == 2 else 1

    @property
    def steps(self) -> int:
        return self.window.length

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return str(self.stored.dtype)

    def read(self, start: int, stop: int, out: Array) -> int:
        """Overlapping windows share one read; windows apart leave out what is between them."""
        n, length, stride = stop - start, self.window.length, self.window.stride
        out[:, length:] = 0
        begin, end = start * stride, (stop - 1) * stride + length
        if length == 0:
            return 0
        if n == 1 or stride == length:
            return self.stored.read_into(slice(begin, end), out[:, :length])
        with np.errstate(all="ignore"):
            if stride > length:
                rows = self.stored.blocks(begin, n, stride, length)
                out[:, :length] = rows.reshape(n, length, self.features)
                return rows.nbytes
            rows = self.stored.read(slice(begin, end)).reshape(end - begin, self.features)
            windows = sliding_window_view(rows, length, axis=0)[::stride]  # (n, D, length)
            out[:, :length] = windows.transpose(0, 2, 1)
        return rows.nbytes

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return None if self.padded else stored_names(self.folder, self.count)


@dataclass(frozen=True)
class WindowTargets:
    """The value `horizon` steps after each window's last step."""

    stored: Stored
    info: TargetInfo
    window: Window

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        window = self.window
        first = start * window.stride + window.length - 1 + window.horizon
        last = first + (stop - start - 1) * window.stride
        values = self.stored.read(slice(first, last + 1, window.stride))
        values = values.reshape(stop - start, *self.info.shape)
        return cast_targets(values, self.info, dtype), values.nbytes


def open_series(folder: Folder, roles: Roles, inputs: Stored, options: DataOptions) -> Series:
    """The series layout of a group.

    Raises
    ------
    DataError
        Another shape, a series shorter than one window, or targets that do not fit.
    """
    if inputs.rank not in (1, 2) or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (T, D) or (T,) in the series layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    found = find_targets(folder, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    T = inputs.shape[0]
    if options.window is None:
        lengths = np.array([T], np.int64)
        targets = _whole_targets(found, lengths, options)
        return Series(folder, inputs, Window(T), 1, targets, paths, padded=False)
    count = _count(inputs, options.window, options)
    windowed = _window_targets(found, inputs, options.window, options)
    return Series(folder, inputs, options.window, count, windowed, paths, padded=True)


def _whole_targets(
    found: FoundTargets | None, lengths: Lengths, options: DataOptions
) -> Targets | None:
    if found is None:
        return None
    if found.stored.rank > 0 and found.stored.shape[0] != lengths[0]:
        raise misfit(found.stored, f"one a step: ({lengths[0]},) or ({lengths[0]}, K)", options)
    return FlatTargets.of(found, lengths, starts_of(lengths), None, options)


def _count(inputs: Stored, window: Window, options: DataOptions) -> int:
    """Windows whose target still stands in the series."""
    _check_window(window, options)
    T, need = inputs.shape[0], window.length + window.horizon
    if need > T:
        raise DataError(
            f"{inputs.where} has {T} steps, too few for one window",
            expected=f"at least {need}: window length {window.length} + horizon {window.horizon}",
            found=f"{T} steps",
            where=options.places(inputs.where),
            hint=f"--set data.window.length={max(1, T - window.horizon)}",
        )
    return (T - need) // window.stride + 1


def _check_window(window: Window, options: DataOptions) -> None:
    if window.length < 1 or window.stride < 1 or window.horizon < 0:
        raise DataError(
            "data.window cannot be cut",
            expected="length and stride of 1 or more, horizon of 0 or more",
            found=f"length {window.length}, stride {window.stride}, horizon {window.horizon}",
            where=options.places(),
        )


def _window_targets(
    found: FoundTargets | None, inputs: Stored, window: Window, options: DataOptions
) -> WindowTargets:
    """From the targets, or else from the inputs themselves."""
    if found is None:
        shape = inputs.shape[1:] or (1,)
        info = TargetInfo(inputs.where, "values", shape, False, str(inputs.dtype))
        return WindowTargets(inputs, info, window)
    stored, T = found.stored, inputs.shape[0]
    if stored.rank not in (1, 2) or stored.shape[0] != T or stored.vlen:
        raise misfit(stored, f"one a step: ({T},) or ({T}, K)", options)
    return WindowTargets(stored, target_info(stored, stored.shape[1:], False), window)
