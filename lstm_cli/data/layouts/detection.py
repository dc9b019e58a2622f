"""Detection of the layout of a group, by names and shapes or by the config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from lstm_cli.data.dataset_roles import (
    INPUTS,
    OFFSETS,
    OTHER_ROLES,
    DatasetRoles,
    MissingDatasetError,
    find_roles,
    group_contents,
    missing_error,
    require_known_axes,
    require_numeric,
)
from lstm_cli.data.layouts.base import SequenceLayout, UncutLayout
from lstm_cli.data.layouts.concatenated import open_concatenated
from lstm_cli.data.layouts.dense import open_dense
from lstm_cli.data.layouts.groups import open_groups
from lstm_cli.data.layouts.series import open_series
from lstm_cli.data.layouts.vlen import open_vlen
from lstm_cli.data.not_sequences import (
    compound_error,
    descendants,
    is_table,
    refuse_foreign_content,
    refuse_results,
    refuse_variables,
)
from lstm_cli.data.types import LAYOUTS, DataOptions
from lstm_cli.data.windows import open_windows
from lstm_cli.errors import DataError, counted, nearest, quote, quote_yaml
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group

SPLITS = frozenset(
    ("train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval")
)
"""Names of child groups that are parts of a data set, not sequences."""

ROLES_IN_LAYOUT = {
    "dense": ("lengths", "mask", "offsets"),
    "concatenated": ("lengths", "offsets"),
    "vlen": ("lengths",),
    "groups": (),
    "series": (),
}
"""Roles that each layout uses besides the inputs. `open_dense` refuses offsets."""
LENGTH_ROLES = ("lengths", "offsets", "mask")

MAX_CHILDREN = 50
"""Largest number of children that are read to detect a layout."""
MAX_LISTED = 4
"""Largest number of names that an error lists."""


@dataclass(frozen=True)
class DetectedLayout:
    """Layout of a group, the reason in words, and the roles of the datasets."""

    layout: str
    reason: str
    roles: DatasetRoles


def open_layout(group: Group, options: DataOptions) -> tuple[SequenceLayout, str]:
    """The sequences of a group, and the reason for their layout in words.

    Raises
    ------
    DataError
        The group holds no layout or several layouts, or its datasets do not fit together.
    """
    detected = _drop_unused_roles(group, detect_layout(group, options), options)
    if detected.roles.inputs is not None:
        require_known_axes(detected.roles.inputs, options)
    layout = _open(group, detected, options)
    if layout.count == 0 or layout.features == 0:
        noun = "sequences" if layout.count == 0 else "features"
        raise DataError(
            f"{layout.inputs} holds no {noun}",
            expected=f"at least one of its {noun}",
            found=f"{counted(layout.count, 'sequence')}, {counted(layout.features, 'feature')}",
            where=options.places(layout.inputs),
        )
    if options.window is None:
        return layout, detected.reason
    return open_windows(layout, options, options.window), detected.reason


def _open(group: Group, detected: DetectedLayout, options: DataOptions) -> UncutLayout:
    if detected.layout == "groups":
        return open_groups(group, options)
    inputs = detected.roles.inputs
    if inputs is None:
        raise _no_inputs_error(group, options)
    if inputs.dtype.names:
        raise compound_error(inputs, group.file, options)
    require_numeric(inputs, "inputs", options.places(inputs.where))
    if detected.layout == "dense":
        return open_dense(group, detected.roles, inputs, options)
    if detected.layout == "concatenated":
        return open_concatenated(group, detected.roles, inputs, options)
    if detected.layout == "vlen":
        return open_vlen(group, detected.roles, inputs, options)
    return open_series(group, detected.roles, inputs, options)


def _drop_unused_roles(
    group: Group, detected: DetectedLayout, options: DataOptions
) -> DetectedLayout:
    """The detected layout without roles it does not use; DataError if one is configured."""
    roles, unused = detected.roles, set(LENGTH_ROLES) - set(ROLES_IN_LAYOUT[detected.layout])
    if detected.layout == "dense" and (roles.lengths or roles.mask):
        unused.add("offsets")
    for part in LENGTH_ROLES:
        if part in unused and getattr(options, part) is not None:
            raise DataError(
                f"the {detected.layout} layout does not use data.{part}",
                expected=" or ".join(ROLES_IN_LAYOUT[detected.layout])
                or "no lengths, offsets or mask",
                found=f"data.{part}: {getattr(options, part)}; {detected.reason}",
                where=options.places(group.where),
                hint="--set data.layout=concatenated"
                if detected.layout == "series" and part != "mask"
                else f"--set data.{part}=null",
            )
    if detected.layout == "series" and options.window is not None and roles.row_divider is not None:
        _require_one_series(detected, roles.row_divider, options)
    return replace(detected, roles=replace(roles, **dict.fromkeys(unused)))


def _require_one_series(
    detected: DetectedLayout, row_divider: Dataset, options: DataOptions
) -> None:
    """Raise DataError if windows of a configured series would span several sequences."""
    inputs = detected.roles.inputs
    if inputs is None or not inputs.rank or not row_divider.numeric or row_divider.rank != 1:
        return
    if row_divider.shape[0] < 2:
        return
    values = row_divider.read()
    total = values[-1] if _last_name(row_divider) in OFFSETS else values.sum()
    if total == inputs.shape[0]:
        raise DataError(
            f"data.layout is series, but {row_divider.where} divides the rows of {inputs.where}",
            expected="data.layout: concatenated, so that no window sees two sequences",
            found=f"{row_divider.where} {row_divider.shape}",
            where=options.places(inputs.where, row_divider.where),
            hint="--set data.layout=concatenated",
        )


def detect_layout(group: Group, options: DataOptions) -> DetectedLayout:
    """Detect the layout of a group.

    Raises
    ------
    DataError
        The group holds no layout, or its subgroups do.
    """
    if options.layout is not None and options.layout not in LAYOUTS:
        near = nearest(options.layout, LAYOUTS)
        raise DataError(
            f"data.layout: {options.layout} is no layout",
            expected=", ".join(LAYOUTS),
            where=options.places(),
            hint=f"data.layout: {near}" if near else None,
        )
    refuse_results(group, options)
    try:
        detected = _own_layout(group, options)
    except MissingDatasetError as error:
        subgroups = subgroups_with_layout(group, options)
        if subgroups:
            raise _several_groups_error(group, subgroups, options) from error
        refuse_foreign_content(group, options)
        raise
    if detected is not None:
        return (
            detected
            if options.layout is None
            else _configured_layout(detected.roles, options.layout)
        )
    subgroups = subgroups_with_layout(group, options)
    if options.layout == "groups":
        return _configured_layout(DatasetRoles(), "groups")
    if subgroups:
        raise _several_groups_error(group, subgroups, options)
    refuse_foreign_content(group, options)
    if options.inputs is not None:
        raise missing_error(group, options.inputs, "inputs", options)
    detected = _only_candidate(group, options)
    if detected is None:
        raise _no_inputs_error(group, options)
    return (
        detected if options.layout is None else _configured_layout(detected.roles, options.layout)
    )


def _configured_layout(roles: DatasetRoles, layout: str) -> DetectedLayout:
    return DetectedLayout(layout, f"data.layout is {layout}", roles)


def _own_layout(group: Group, options: DataOptions) -> DetectedLayout | None:
    """Layout of a group with inputs of a usual name, or with one child group per sequence."""
    roles = find_roles(group, options, forced_inputs=False)
    if roles.inputs is not None and options.layout != "groups":
        return _by_shape(roles, roles.inputs)
    children = _child_groups(group)
    sequences = [child for child in children if _is_sequence(child, options)]
    if sequences and not all(_last_name(child) in SPLITS for child in sequences):
        reason = f"each child group, such as {_last_name(sequences[0])}, holds inputs (T, D)"
        return DetectedLayout("groups", reason, DatasetRoles())
    return None


def subgroups_with_layout(group: Group, options: DataOptions) -> list[Group]:
    """Child groups that hold a layout themselves."""
    return [child for child in _child_groups(group) if _has_layout(child, options)]


def _has_layout(group: Group, options: DataOptions) -> bool:
    try:
        return _own_layout(group, options) is not None
    except DataError:
        return False


def _child_groups(group: Group) -> list[Group]:
    members = islice(group.members(), MAX_CHILDREN)
    groups = [child for child in members if isinstance(child, Group)]
    # MATLAB's #refs# and tables are groups too.
    return [child for child in groups if _last_name(child)[:1] != "#" and not is_table(child)]


def _last_name(group: Group | Dataset) -> str:
    return group.path.rpartition("/")[2]


def _is_sequence(child: Group, options: DataOptions) -> bool:
    """Whether a child group holds one sequence: inputs (T, D) without lengths or offsets."""
    try:
        roles = find_roles(child, options, forced_inputs=False)
    except DataError:
        return False
    inputs = roles.inputs
    if inputs is None or inputs.vlen or not inputs.numeric:
        return False
    return inputs.rank in (1, 2) and roles.row_divider is None


def _by_shape(roles: DatasetRoles, inputs: Dataset) -> DetectedLayout:
    name = inputs.path.rpartition("/")[2]
    if inputs.vlen:
        return DetectedLayout("vlen", f"{name} has rows of variable length", roles)
    if inputs.rank == 3:
        return DetectedLayout("dense", f"{name} has 3 axes {inputs.shape}", roles)
    if roles.row_divider is not None and inputs.rank in (1, 2):
        divider = roles.row_divider.path.rpartition("/")[2]
        return DetectedLayout("concatenated", f"{divider} divides {name} {inputs.shape}", roles)
    if inputs.rank in (1, 2):
        reason = f"neither lengths nor offsets divide {name} {inputs.shape}"
        return DetectedLayout("series", reason, roles)
    raise DataError(
        f"{inputs.where} has shape {inputs.shape}",
        expected="inputs (N, T, D), (sum T, D), (T, D), or (N,) of variable length",
        found=f"{inputs.rank} axes",
        where=inputs.where,
    )


def _only_candidate(group: Group, options: DataOptions) -> DetectedLayout | None:
    """Layout by the only dataset that may be inputs; several (T, D) are one sequence each."""
    candidates = [member for member in group.members() if _may_be_inputs(member)]
    datasets = [one for one in candidates if isinstance(one, Dataset)]
    wide = [one for one in datasets if one.rank > 1 or one.vlen]
    inputs = wide or datasets
    if len(inputs) == 1:
        roles = replace(find_roles(group, options, forced_inputs=False), inputs=inputs[0])
        detected = _by_shape(roles, inputs[0])
        return replace(
            detected, reason=f"{detected.reason}; it is the only dataset that may be inputs"
        )
    step_shapes = {one.shape[1:] for one in wide}
    if len(wide) > 1 and len(step_shapes) == 1 and all(w.rank == 2 and not w.vlen for w in wide):
        refuse_variables(wide, group, options)
        reason = f"each dataset, such as {wide[0].path.rpartition('/')[2]}, has shape (T, D)"
        return DetectedLayout("groups", reason, DatasetRoles())
    return None


def _may_be_inputs(member: Group | Dataset) -> bool:
    if isinstance(member, Group) or not member.numeric or member.rank not in (1, 2, 3):
        return False
    return not member.is_dimension_scale and _last_name(member) not in OTHER_ROLES


def _is_likely_input(dataset: Dataset) -> bool:
    return _may_be_inputs(dataset) and (dataset.rank > 1 or dataset.vlen)


def _several_groups_error(group: Group, subgroups: list[Group], options: DataOptions) -> DataError:
    names = [part.where for part in subgroups]
    return DataError(
        f"{group.where} holds no sequences itself, but its groups do",
        expected="one group, named as FILE:/group",
        found=", ".join(names),
        where=options.places(group.where),
        hint=f"choose one: {' or '.join(map(quote, names[:MAX_LISTED]))}",
    )


def _no_inputs_error(group: Group, options: DataOptions) -> DataError:
    below = list(
        islice(descendants(group, lambda child: _has_layout(child, options)), MAX_CHILDREN)
    )
    subgroups = [one for one in below if isinstance(one, Group)]
    if subgroups:
        return _several_groups_error(group, subgroups, options)
    arrays = [one for one in below if isinstance(one, Dataset) and _is_likely_input(one)]
    names = [one.path.removeprefix(group.path.rstrip("/") + "/") for one in arrays]
    listed = (
        "; or ".join(f"data.inputs: {quote_yaml(name)}" for name in names[:MAX_LISTED])
        or "data.inputs"
    )
    choice = any(_may_be_inputs(one) for one in below) or len(below) == MAX_CHILDREN
    hint = f"in a config, {listed} names the inputs" if choice else None
    # The error for a refused dataset of a usual name tells more than "holds no inputs".
    for name in group.names():
        member = None if name in OTHER_ROLES else group.find(name)
        if isinstance(member, Dataset) and name in INPUTS:
            require_numeric(member, "inputs", options.places(member.where), hint if names else None)
    return DataError(
        f"{group.where} holds no inputs",
        expected=f"a dataset {', '.join(INPUTS[:-1])} or {INPUTS[-1]}, or one group per sequence",
        found=group_contents(group),
        where=options.places(group.where),
        hint=hint,
    )
