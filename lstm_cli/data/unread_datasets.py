"""Notes on data in a file that are not read, so that no data are ignored silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from lstm_cli.data.dataset_roles import (
    CLASSES,
    INPUTS,
    LENGTHS,
    MASK,
    OFFSETS,
    OTHER_ROLES,
    TARGETS,
    usable_targets,
)
from lstm_cli.data.layouts.base import SequenceLayout
from lstm_cli.data.layouts.detection import subgroups_with_layout
from lstm_cli.data.layouts.groups import Groups
from lstm_cli.data.types import DataOptions
from lstm_cli.errors import DataError, nearest, printable, quote_yaml
from lstm_cli.hdf5.dataset import Dataset, type_name
from lstm_cli.hdf5.group import Group

TARGET_LIKE_NAME = re.compile(r"label|target|class|output|truth|^y([^a-z]|$)|_y$", re.IGNORECASE)
"""Typical names of targets. Other datasets of as many rows may be times or weights."""
CERTAIN_NAMES = ("label", "target", "class", "classes")
"""Names that mean targets even if there are other targets."""
MAX_MEMBERS = 200
"""Largest number of members of a group that are read."""
MAX_LISTED = 4
"""Largest number of names in a note."""


def unread_notes(group: Group, layout: SequenceLayout, options: DataOptions) -> tuple[str, ...]:
    """Notes on data in the group of `layout` that are not read, one for each kind."""
    if isinstance(layout, Groups):
        inner = group.group(layout.names[0])  # the first group stands for all
        return (
            *_sibling_notes(group, layout),
            *(() if inner is None else _group_notes(inner, layout, options)),
        )
    return (*_group_notes(group, layout, options), *_other_group_notes(group, options))


def _group_notes(group: Group, layout: SequenceLayout, options: DataOptions) -> Iterator[str]:
    used = layout.roles()
    if options.targets is not None and group.find(options.targets) is None:
        near = nearest(options.targets, group.names())
        meant = f"; did you mean {near}?" if near else ""
        yield (
            f"{group.where} holds no targets {options.targets}, as data.targets says: "
            f"there are no metrics{meant}"
        )
    yield from _unread_inputs_notes(group, used, options)
    yield from _unread_targets_notes(group, layout, options)
    members = list(islice(group.members(), MAX_MEMBERS))
    unread = [one for one in members if isinstance(one, Dataset) and one.path not in used]
    numeric = [one for one in unread if one.numeric and not one.is_dimension_scale]
    length_datasets = [one for one in numeric if _last_name(one) in LENGTHS + OFFSETS + MASK]
    if length_datasets:
        yield f"{_listed(length_datasets)}: not used by the {layout.name} layout, and not read"
    twins, labels = [], []
    for one in numeric:
        if _last_name(one) in OTHER_ROLES.difference(CLASSES):
            continue
        if _resembles_inputs(one, group, layout):
            twins.append(one)
        elif _resembles_targets(one, layout):
            labels.append(one)
    if layout.targets is not None:
        usual = layout.targets.info.name.endswith("/targets")  # the name is certain
        labels = [one for one in labels if _last_name(one).lower() in CERTAIN_NAMES and not usual]
    else:
        texts = [one for one in unread if one.text and _last_name(one) not in OTHER_ROLES]
        yield from (
            f"{one.where} holds text, not numbers: not read as targets"
            for one in texts
            if options.targets is None and _resembles_targets(one, layout)
        )
    if twins:
        yield (
            f"{_listed(twins)}: shaped like {layout.inputs}, but not read; "
            f"data.inputs names the dataset to read"
        )
    if labels and options.targets is None:
        but = "not read" if layout.targets is None else f"{layout.targets.info.name} is read"
        yield (
            f"{_listed(labels)}: may be targets{'' if layout.targets is None else ' too'}, but "
            f"{but}; data.targets: {quote_yaml(_last_name(labels[0]))} reads them"
        )


def _unread_inputs_notes(group: Group, used: dict[str, str], options: DataOptions) -> Iterator[str]:
    """Notes on datasets with a usual name of inputs that are not numeric."""
    for name in INPUTS if options.inputs is None else ():
        member = group.dataset(name)
        if member is not None and member.path in used:
            return
        if member is not None and not member.numeric:
            yield f"{member.where} holds {type_name(member)}, not numbers: not read as inputs"


def _unread_targets_notes(
    group: Group, layout: SequenceLayout, options: DataOptions
) -> Iterator[str]:
    """Notes on members with a usual name of targets that are not the targets.

    The dataset `labels` holds names of classes. It counts as targets only if it has one label
    per sequence and there are no other targets.
    """
    if options.targets is not None:
        return
    first_name = None
    notes: dict[str, str] = {}
    for name in TARGETS:
        try:
            member = group.find(name)
            targets = usable_targets(member, options)
        except DataError:  # refused: it cannot be targets
            continue
        if targets is not None:
            if first_name is not None:
                notes[name] = f"{_where(member)}: may be targets too, but {first_name} is read"
                notes[name] += f"; data.targets: {quote_yaml(name)} reads it instead"
            first_name = first_name or name
            notes.pop("labels", None)
        elif first_name is not None:
            continue
        elif isinstance(member, Dataset):
            if name != "labels" or member.shape[:1] in ((), (layout.count,)):
                notes[name] = f"{member.where} holds {type_name(member)}, not numbers"
        elif isinstance(member, Group):
            notes[name] = f"{member.where} is a group without data/KEY"
        elif (path := group.soft_link_target(name)) is not None:
            where = group.where.rstrip("/")
            notes[name] = f"{where}/{name} is a link to {path}, which is missing"
    for note in notes.values():
        yield note if "data.targets" in note else f"{note}: not read as targets"


def _where(member: Group | Dataset | None) -> str:
    return "" if member is None else member.where


def _resembles_inputs(dataset: Dataset, group: Group, layout: SequenceLayout) -> bool:
    """Whether a dataset has the shape of the inputs, apart from the first axis."""
    path = next((path for path, role in layout.roles().items() if role == "inputs"), "")
    inputs = group.dataset(path)
    if inputs is None or dataset.vlen != inputs.vlen or dataset.rank != inputs.rank:
        return False
    if dataset.vlen or dataset.rank == 1:
        # Any list of numbers has one axis, so length and type must be the same too.
        return dataset.shape == inputs.shape and dataset.dtype == inputs.dtype
    return dataset.shape[1:] == inputs.shape[1:]


def _resembles_targets(dataset: Dataset, layout: SequenceLayout) -> bool:
    if not TARGET_LIKE_NAME.search(_last_name(dataset)):
        return False
    lengths = layout.lengths
    steps = layout.count * layout.steps if lengths is None else int(lengths.sum())
    return dataset.rank > 0 and dataset.shape[0] in (layout.count, steps)


def _sibling_notes(group: Group, layout: Groups) -> Iterator[str]:
    """Notes on datasets next to the groups or datasets that are sequences."""
    names = [name for name in layout.other_names if _may_matter(group, name)]
    if names:
        listed = ", ".join(f"{group.where.rstrip('/')}/{printable(n)}" for n in names[:MAX_LISTED])
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        yield (
            f"{listed}{more}: next to the sequences, and not read; targets belong in the group of "
            "each sequence, next to its inputs"
        )


def _may_matter(group: Group, name: str) -> bool:
    dataset = group.dataset(name)
    return (
        dataset is not None
        and dataset.numeric
        and dataset.rank > 0
        and not dataset.is_dimension_scale
    )


def _other_group_notes(group: Group, options: DataOptions) -> Iterator[str]:
    subgroups = [
        one for one in subgroups_with_layout(group, options) if _last_name(one) not in OTHER_ROLES
    ]
    if subgroups:
        names = ", ".join(one.where for one in subgroups[:MAX_LISTED])
        more = f" and {len(subgroups) - MAX_LISTED} more" if len(subgroups) > MAX_LISTED else ""
        yield f"{names}{more}: more sequences, which are not read; FILE:/group as DATA reads them"


def _last_name(dataset: Group | Dataset) -> str:
    return dataset.path.rpartition("/")[2]


def _listed(datasets: list[Dataset]) -> str:
    more = f" and {len(datasets) - MAX_LISTED} more" if len(datasets) > MAX_LISTED else ""
    return ", ".join(one.where for one in datasets[:MAX_LISTED]) + more
