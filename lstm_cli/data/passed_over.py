"""Notes on what a file holds beside the data that are read: nothing is left out unsaid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from lstm_cli.data.groups import Groups
from lstm_cli.data.links import Folder
from lstm_cli.data.recognise import parts_of
from lstm_cli.data.roles import CLASSES, INPUTS, LENGTHS, MASK, OFFSETS, OTHER_ROLES, TARGETS
from lstm_cli.data.storage import Stored, type_name
from lstm_cli.data.targets import usable
from lstm_cli.data.types import DataOptions, Layout
from lstm_cli.errors import DataError, nearest, printable, quote_yaml

LIKE_TARGETS = re.compile(r"label|target|class|output|truth|^y([^a-z]|$)|_y$", re.IGNORECASE)
"""Names that targets have; other datasets of as many rows are times, weights and the like."""
SINGULAR = ("label", "target", "class", "classes")
"""Names that are hardly anything else, whatever stands beside them."""
LOOK_AT = 200
"""Members of a group that are looked at."""
SHOWN = 4
"""Names that a note lists."""


def passed_over(folder: Folder, layout: Layout, options: DataOptions) -> tuple[str, ...]:
    """Notes on data in the group of `layout` that are not read, one for each kind."""
    if isinstance(layout, Groups):
        inner = folder.folder(layout.names[0])  # all alike: the first tells for the others
        return (*_beside(folder, layout), *(() if inner is None else _all(inner, layout, options)))
    return (*_all(folder, layout, options), *_other_groups(folder, options))


def _all(folder: Folder, layout: Layout, options: DataOptions) -> Iterator[str]:
    used = layout.roles()
    if options.targets is not None and folder.find(options.targets) is None:
        near = nearest(options.targets, folder.names())
        meant = f"; did you mean {near}?" if near else ""
        yield (
            f"{folder.where} holds no targets {options.targets}, as data.targets says: "
            f"there are no metrics{meant}"
        )
    yield from _not_inputs(folder, used, options)
    yield from _not_targets(folder, layout, options)
    members = list(islice(folder.members(), LOOK_AT))
    stored = [one for one in members if isinstance(one, Stored) and one.path not in used]
    rest = [one for one in stored if one.numeric and not one.is_axis]
    parts = [one for one in rest if _name(one) in LENGTHS + OFFSETS + MASK]
    if parts:
        yield f"{_listed(parts)}: no part of the {layout.name} layout, and passed over"
    twins, labels = [], []
    for one in rest:
        if _name(one) in OTHER_ROLES.difference(CLASSES):
            continue
        if _like_inputs(one, folder, layout):
            twins.append(one)
        elif _one_each(one, layout):
            labels.append(one)
    if layout.targets is not None:
        usual = layout.targets.info.name.endswith("/targets")  # called what they are
        labels = [one for one in labels if _name(one).lower() in SINGULAR and not usual]
    else:
        texts = [one for one in stored if one.text and _name(one) not in OTHER_ROLES]
        yield from (
            f"{one.where} holds text, not numbers: not taken for targets"
            for one in texts
            if options.targets is None and _one_each(one, layout)
        )
    if twins:
        yield (
            f"{_listed(twins)}: of the same form as {layout.inputs}, but passed over; "
            f"data.inputs names what is read"
        )
    if labels and options.targets is None:
        but = "passed over" if layout.targets is None else f"{layout.targets.info.name} is taken"
        yield (
            f"{_listed(labels)}: may be targets{'' if layout.targets is None else ' too'}, but "
            f"{but}; data.targets: {quote_yaml(_name(labels[0]))} takes them"
        )


def _not_inputs(folder: Folder, used: dict[str, str], options: DataOptions) -> Iterator[str]:
    """Notes on datasets under a usual name of inputs that hold no numbers."""
    for name in INPUTS if options.inputs is None else ():
        found = folder.dataset(name)
        if found is not None and found.path in used:
            return
        if found is not None and not found.numeric:
            yield f"{found.where} holds {type_name(found)}, not numbers: not taken for inputs"


def _not_targets(folder: Folder, layout: Layout, options: DataOptions) -> Iterator[str]:
    """Notes on members under a usual name of targets that are not the targets.

    `labels` are no targets but names of classes, unless there is one for each sequence and
    nothing else to learn.
    """
    if options.targets is not None:
        return
    taken = None
    notes: dict[str, str] = {}
    for name in TARGETS:
        try:
            found = folder.find(name)
            usable_one = usable(found, options)
        except DataError:  # refused: it could not have been taken
            continue
        if usable_one is not None:
            if taken is not None:
                notes[name] = f"{_where(found)}: may be targets too, but {taken} is taken"
                notes[name] += f"; data.targets: {quote_yaml(name)} takes it instead"
            taken = taken or name
            notes.pop("labels", None)
        elif taken is not None:
            continue
        elif isinstance(found, Stored):
            if name != "labels" or found.shape[:1] in ((), (layout.count,)):
                notes[name] = f"{found.where} holds {type_name(found)}, not numbers"
        elif isinstance(found, Folder):
            notes[name] = f"{found.where} is a group without data/KEY"
        elif (path := folder.soft_link(name)) is not None:
            where = folder.where.rstrip("/")
            notes[name] = f"{where}/{name} is a link to {path}, which is not there"
    for note in notes.values():
        yield note if "data.targets" in note else f"{note}: not taken for targets"


def _where(found: Folder | Stored | None) -> str:
    return "" if found is None else found.where


def _like_inputs(stored: Stored, folder: Folder, layout: Layout) -> bool:
    """Whether a dataset has the form of the inputs, but for its first axis."""
    path = next((path for path, role in layout.roles().items() if role == "inputs"), "")
    inputs = folder.dataset(path)
    if inputs is None or stored.vlen != inputs.vlen or stored.rank != inputs.rank:
        return False
    if stored.vlen or stored.rank == 1:
        # Any list of numbers has one axis: only what has as many of the same type is alike.
        return stored.shape == inputs.shape and stored.dtype == inputs.dtype
    return stored.shape[1:] == inputs.shape[1:]


def _one_each(stored: Stored, layout: Layout) -> bool:
    """Whether a dataset is called like targets, and has some for each sequence or step."""
    if not LIKE_TARGETS.search(_name(stored)):
        return False
    lengths = layout.lengths
    steps = layout.count * layout.steps if lengths is None else int(lengths.sum())
    return stored.rank > 0 and stored.shape[0] in (layout.count, steps)


def _beside(folder: Folder, layout: Groups) -> Iterator[str]:
    """Datasets beside the groups or datasets that are the sequences."""
    names = [name for name in layout.beside if _may_matter(folder, name)]
    if names:
        listed = ", ".join(f"{folder.where.rstrip('/')}/{printable(n)}" for n in names[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield (
            f"{listed}{more}: beside the sequences, and passed over; targets stand in each "
            "sequence's group, beside its inputs"
        )


def _may_matter(folder: Folder, name: str) -> bool:
    stored = folder.dataset(name)
    return stored is not None and stored.numeric and stored.rank > 0 and not stored.is_axis


def _other_groups(folder: Folder, options: DataOptions) -> Iterator[str]:
    parts = [part for part in parts_of(folder, options) if _name(part) not in OTHER_ROLES]
    if parts:
        names = ", ".join(part.where for part in parts[:SHOWN])
        more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        yield f"{names}{more}: sequences of their own, which are passed over; DATA names a group"


def _name(stored: Folder | Stored) -> str:
    return stored.path.rpartition("/")[2]


def _listed(stored: list[Stored]) -> str:
    more = f" and {len(stored) - SHOWN} more" if len(stored) > SHOWN else ""
    return ", ".join(one.where for one in stored[:SHOWN]) + more
