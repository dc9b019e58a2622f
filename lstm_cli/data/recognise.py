"""Which layout a group holds: told by names and shapes, or forced by the config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from lstm_cli.data.axes import need_known_axes
from lstm_cli.data.concatenated import open_concatenated
from lstm_cli.data.dense import open_dense
from lstm_cli.data.groups import open_groups
from lstm_cli.data.links import Folder
from lstm_cli.data.origin import (
    below,
    compound_error,
    is_table,
    refuse_foreign,
    refuse_own,
    refuse_variables,
)
from lstm_cli.data.roles import (
    INPUTS,
    OFFSETS,
    OTHER_ROLES,
    MissingDatasetError,
    Roles,
    contents,
    find_roles,
    missing,
)
from lstm_cli.data.series import open_series
from lstm_cli.data.storage import Stored, need_numeric
from lstm_cli.data.types import LAYOUTS, DataOptions, Layout
from lstm_cli.data.vlen import open_vlen
from lstm_cli.data.windows import open_windows
from lstm_cli.errors import DataError, counted, nearest, quote, quote_yaml

SPLITS = frozenset(
    ("train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval")
)
"""Child groups of these names are parts of a data set, not sequences."""

PARTS_OF = {
    "dense": ("lengths", "mask", "offsets"),
    "concatenated": ("lengths", "offsets"),
    "vlen": ("lengths",),
    "groups": (),
    "series": (),
}
"""Datasets beside the inputs that have a part in each layout; `open_dense` refuses offsets."""
PARTS = ("lengths", "offsets", "mask")

LOOK_AT = 50
"""Children looked at to tell what a group is."""
SHOWN = 4
"""Names that an error lists."""


@dataclass(frozen=True)
class Recognition:
    """A group's layout and what it was told by."""

    layout: str
    reason: str
    roles: Roles


def open_layout(folder: Folder, options: DataOptions) -> tuple[Layout, str]:
    """The sequences of a group, and why they were taken for that layout.

    Raises
    ------
    DataError
        There are none, there are several layouts, or something in it does not fit.
    """
    told = _with_roles(folder, recognise(folder, options), options)
    if told.roles.inputs is not None:
        need_known_axes(told.roles.inputs, options)
    layout = _open(folder, told, options)
    if layout.count == 0 or layout.features == 0:
        lacking = "sequences" if layout.count == 0 else "features"
        raise DataError(
            f"{layout.inputs} holds no {lacking}",
            expected=f"at least one of its {lacking}",
            found=f"{counted(layout.count, 'sequence')}, {counted(layout.features, 'feature')}",
            where=options.places(layout.inputs),
        )
    if options.window is not None:
        layout = open_windows(layout, options, options.window)
    return layout, told.reason


def _open(folder: Folder, told: Recognition, options: DataOptions) -> Layout:
    if told.layout == "groups":
        return open_groups(folder, options)
    inputs = told.roles.inputs
    if inputs is None:
        raise _no_inputs(folder, options)
    if inputs.dtype.names:
        raise compound_error(inputs, folder.file, options)
    need_numeric(inputs, "inputs", options.places(inputs.where))
    if told.layout == "dense":
        return open_dense(folder, told.roles, inputs, options)
    if told.layout == "concatenated":
        return open_concatenated(folder, told.roles, inputs, options)
    if told.layout == "vlen":
        return open_vlen(folder, told.roles, inputs, options)
    return open_series(folder, told.roles, inputs, options)


def _with_roles(folder: Folder, told: Recognition, options: DataOptions) -> Recognition:
    """The recognition, without what has no part in the layout; DataError if that was asked for."""
    roles, others = told.roles, set(PARTS) - set(PARTS_OF[told.layout])
    if told.layout == "dense" and (roles.lengths or roles.mask):
        others.add("offsets")
    for part in PARTS:
        if part in others and getattr(options, part) is not None:
            raise DataError(
                f"data.{part} has no part in the {told.layout} layout",
                expected=" or ".join(PARTS_OF[told.layout]) or "no lengths, offsets or mask",
                found=f"data.{part}: {getattr(options, part)}; {told.reason}",
                where=options.places(folder.where),
                hint="--set data.layout=concatenated"
                if told.layout == "series" and part != "mask"
                else f"--set data.{part}=null",
            )
    if told.layout == "series" and options.window is not None and roles.divided is not None:
        _need_one_series(told, roles.divided, options)
    return replace(told, roles=replace(roles, **dict.fromkeys(others)))


def _need_one_series(told: Recognition, divided: Stored, options: DataOptions) -> None:
    """Raise DataError if windows of a forced series would see several of its sequences."""
    inputs = told.roles.inputs
    if inputs is None or not inputs.rank or not divided.numeric or divided.rank != 1:
        return
    if divided.shape[0] < 2:
        return
    values = divided.read()
    total = values[-1] if _base(divided) in OFFSETS else values.sum()
    if total == inputs.shape[0]:
        raise DataError(
            f"data.layout is series, but {divided.where} divides the rows of {inputs.where}",
            expected="data.layout: concatenated, so that no window sees two sequences",
            found=f"{divided.where} {divided.shape}",
            where=options.places(inputs.where, divided.where),
            hint="--set data.layout=concatenated",
        )


def recognise(folder: Folder, options: DataOptions) -> Recognition:
    """Tell the layout of a group; DataError if it holds none, or several parts hold one."""
    if options.layout is not None and options.layout not in LAYOUTS:
        near = nearest(options.layout, LAYOUTS)
        raise DataError(
            f"data.layout: {options.layout} is no layout",
            expected=", ".join(LAYOUTS),
            where=options.places(),
            hint=f"data.layout: {near}" if near else None,
        )
    refuse_own(folder, options)
    try:
        told = _holds(folder, options)
    except MissingDatasetError as error:
        parts = parts_of(folder, options)
        if parts:
            raise _several(folder, parts, options) from error
        refuse_foreign(folder, options)
        raise
    if told is not None:
        return told if options.layout is None else _forced(told.roles, options.layout)
    parts = parts_of(folder, options)
    if options.layout == "groups":
        return _forced(Roles(), "groups")
    if parts:
        raise _several(folder, parts, options)
    refuse_foreign(folder, options)
    if options.inputs is not None:
        raise missing(folder, options.inputs, "inputs", options)
    told = _only_candidate(folder, options)
    if told is None:
        raise _no_inputs(folder, options)
    return told if options.layout is None else _forced(told.roles, options.layout)


def _forced(roles: Roles, layout: str) -> Recognition:
    return Recognition(layout, f"data.layout is {layout}", roles)


def _holds(folder: Folder, options: DataOptions) -> Recognition | None:
    """The layout of a group that holds inputs under a known name, or a group a sequence."""
    roles = find_roles(folder, options, forced_inputs=False)
    if roles.inputs is not None and options.layout != "groups":
        return _by_shape(roles, roles.inputs)
    children = _child_groups(folder)
    sequences = [child for child in children if _is_sequence(child, options)]
    if sequences and not all(_base(child) in SPLITS for child in sequences):
        reason = f"each child group, such as {_base(sequences[0])}, holds inputs (T, D)"
        return Recognition("groups", reason, Roles())
    return None


def parts_of(folder: Folder, options: DataOptions) -> list[Folder]:
    """Child groups that hold a layout of their own."""
    return [child for child in _child_groups(folder) if _has_layout(child, options)]


def _has_layout(folder: Folder, options: DataOptions) -> bool:
    try:
        return _holds(folder, options) is not None
    except DataError:
        return False


def _child_groups(folder: Folder) -> list[Folder]:
    members = islice(folder.members(), LOOK_AT)
    groups = [child for child in members if isinstance(child, Folder)]
    # MATLAB's own, and tables that stand in a group.
    return [child for child in groups if _base(child)[:1] != "#" and not is_table(child)]


def _base(folder: Folder | Stored) -> str:
    return folder.path.rpartition("/")[2]


def _is_sequence(child: Folder, options: DataOptions) -> bool:
    """Whether a child group holds one sequence: (T, D) that nothing divides further."""
    try:
        roles = find_roles(child, options, forced_inputs=False)
    except DataError:
        return False
    inputs = roles.inputs
    if inputs is None or inputs.vlen or not inputs.numeric:
        return False
    return inputs.rank in (1, 2) and roles.divided is None


def _by_shape(roles: Roles, inputs: Stored) -> Recognition:
    name = inputs.path.rpartition("/")[2]
    if inputs.vlen:
        return Recognition("vlen", f"{name} has rows of variable length", roles)
    if inputs.rank == 3:
        return Recognition("dense", f"{name} has 3 axes {inputs.shape}", roles)
    if roles.divided is not None and inputs.rank in (1, 2):
        beside = roles.divided.path.rpartition("/")[2]
        return Recognition("concatenated", f"{name} {inputs.shape} stands beside {beside}", roles)
    if inputs.rank in (1, 2):
        reason = f"{name} {inputs.shape} has neither lengths nor offsets beside it"
        return Recognition("series", reason, roles)
    raise DataError(
        f"{inputs.where} has shape {inputs.shape}",
        expected="inputs (N, T, D), (sum T, D), (T, D), or (N,) of variable length",
        found=f"{counted(inputs.rank, 'axis')}",
        where=inputs.where,
    )


def _only_candidate(folder: Folder, options: DataOptions) -> Recognition | None:
    """The only numeric dataset of a fitting rank; several (T, D) are a sequence each."""
    candidates = [found for found in folder.members() if _may_be_inputs(found)]
    stored = [found for found in candidates if isinstance(found, Stored)]
    wide = [found for found in stored if found.rank > 1 or found.vlen]
    chosen = wide or stored
    if len(chosen) == 1:
        roles = replace(find_roles(folder, options, forced_inputs=False), inputs=chosen[0])
        told = _by_shape(roles, chosen[0])
        return replace(told, reason=f"{told.reason}; it is the only dataset that may be inputs")
    alike = {found.shape[1:] for found in wide}
    if len(wide) > 1 and len(alike) == 1 and all(f.rank == 2 and not f.vlen for f in wide):
        refuse_variables(wide, folder, options)
        reason = f"each dataset, such as {wide[0].path.rpartition('/')[2]}, has shape (T, D)"
        return Recognition("groups", reason, Roles())
    return None


def _may_be_inputs(found: Folder | Stored) -> bool:
    if isinstance(found, Folder) or not found.numeric or found.rank not in (1, 2, 3):
        return False
    return not found.is_axis and found.path.rpartition("/")[2] not in OTHER_ROLES


def _is_array(stored: Stored) -> bool:
    """Whether a dataset below a group may be inputs, although nothing says so."""
    return _may_be_inputs(stored) and (stored.rank > 1 or stored.vlen)


def _several(folder: Folder, parts: list[Folder], options: DataOptions) -> DataError:
    names = [part.where for part in parts]
    return DataError(
        f"{folder.where} holds no sequences itself, but its groups do",
        expected="one group, named as FILE:/group",
        found=", ".join(names),
        where=options.places(folder.where),
        hint=f"choose one: {' or '.join(map(quote, names[:SHOWN]))}",
    )


def _no_inputs(folder: Folder, options: DataOptions) -> DataError:
    inside = list(islice(below(folder, lambda child: _has_layout(child, options)), LOOK_AT))
    parts = [found for found in inside if isinstance(found, Folder)]
    if parts:
        return _several(folder, parts, options)
    arrays = [found for found in inside if isinstance(found, Stored) and _is_array(found)]
    names = [found.path.removeprefix(folder.path.rstrip("/") + "/") for found in arrays]
    listed = (
        "; or ".join(f"data.inputs: {quote_yaml(name)}" for name in names[:SHOWN]) or "data.inputs"
    )
    choice = any(_may_be_inputs(found) for found in inside) or len(inside) == LOOK_AT
    hint = f"in a config, {listed} names them" if choice else None
    # A refused dataset under an expected name says more than that there is none.
    for name in folder.names():
        found = None if name in OTHER_ROLES else folder.find(name)
        if isinstance(found, Stored) and name in INPUTS:
            need_numeric(found, "inputs", options.places(found.where), hint if names else None)
    return DataError(
        f"{folder.where} holds no inputs",
        expected=f"a dataset {', '.join(INPUTS[:-1])} or {INPUTS[-1]}, or one group a sequence",
        found=contents(folder),
        where=options.places(folder.where),
        hint=hint,
    )
