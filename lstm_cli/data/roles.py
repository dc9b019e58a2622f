"""Which dataset of a group plays which part: found by the config's name, or by the usual ones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from lstm_cli.data.links import Folder
from lstm_cli.data.storage import Stored
from lstm_cli.data.types import DataOptions
from lstm_cli.errors import DataError, nearest, printable, quote

INPUTS = ("inputs", "x", "X", "data", "features", "sequences")
LENGTHS = ("lengths", "seqLengths", "sequence_lengths")
OFFSETS = ("offsets",)
MASK = ("mask",)
TARGETS = ("targets", "labels", "y", "targetClasses", "targetPatterns")
NAMES = ("names", "seqTags")
CLASSES = ("classes", "class_names")
OTHER_ROLES = frozenset(LENGTHS + OFFSETS + MASK + TARGETS + NAMES + CLASSES)


SHOWN = 8
"""Members of a group that an error lists."""


@dataclass(frozen=True)
class Roles:
    """The datasets of one group by the part they play; targets are found later."""

    inputs: Stored | None = None
    lengths: Stored | None = None
    offsets: Stored | None = None
    mask: Stored | None = None

    @property
    def divided(self) -> Stored | None:
        """What divides flat rows into sequences."""
        return self.lengths or self.offsets

    def paths(self) -> dict[str, str]:
        """Path in the file to part."""
        parts = ("inputs", "lengths", "offsets", "mask")
        stored = {part: getattr(self, part) for part in parts}
        return {found.path: part for part, found in stored.items() if found is not None}


def find_roles(folder: Folder, options: DataOptions, *, forced_inputs: bool = True) -> Roles:
    """Find the datasets of `folder`.

    Raises
    ------
    DataError
        A configured name is missing (for inputs only with `forced_inputs`), or one leads out
        of the file.
    """
    return Roles(
        find_role(folder, options, "inputs", INPUTS, required=forced_inputs),
        as_vector(find_role(folder, options, "lengths", LENGTHS)),
        as_vector(find_role(folder, options, "offsets", OFFSETS)),
        find_role(folder, options, "mask", MASK),
    )


def as_vector(stored: Stored | None) -> Stored | None:
    """A dataset that may be a row or column, if its axes are turned, as a vector."""
    return None if stored is None else stored.vector()


def find_role(
    folder: Folder,
    options: DataOptions,
    role: str,
    usual: tuple[str, ...],
    *,
    required: bool = True,
) -> Stored | None:
    """The dataset configured for `role`, or the first that bears a usual name.

    Raises
    ------
    DataError
        The configured one is `required` and not there.
    """
    configured: str | None = getattr(options, role)
    if configured is None:
        found = first_dataset(folder, usual)
        if role == "inputs" and found is not None and not found.numeric:
            numeric = (folder.dataset(name) for name in usual)
            found = next((one for one in numeric if one is not None and one.numeric), None)
        return found
    found = folder.dataset(configured)
    if found is None and required:
        raise missing(folder, configured, role, options)
    return found


def first_dataset(folder: Folder, names: tuple[str, ...]) -> Stored | None:
    """The first of `names` that is a dataset."""
    for name in names:
        found = folder.dataset(name)
        if found is not None:
            return found
    return None


class MissingDatasetError(DataError):
    """A configured dataset is not there."""


def missing(folder: Folder, name: str, role: str, options: DataOptions) -> MissingDatasetError:
    """The error for a configured dataset that is not there."""
    near = nearest(name, folder.names())
    named = quote(f"data.{role}={near}")
    return MissingDatasetError(
        f"{folder.where} holds no dataset {name}",
        expected=f"the {role}, as data.{role} says",
        found=contents(folder),
        where=options.places(folder.where),
        hint=f"--set {named}" if near else f"lstm-cli data {quote(folder.file)}",
    )


def contents(folder: Folder) -> str:
    """What the group holds, in a line: ``frames (5687, 12), lengths (370,)``."""
    members = filter(None, (_content(folder, name) for name in folder.names()))
    return ", ".join(islice(members, SHOWN)) or "nothing that can be read"


def _content(folder: Folder, name: str) -> str | None:
    """A member in a few words; None if it cannot be read."""
    try:
        found = folder.find(name)
        link = folder.soft_link(name) if found is None else None
    except DataError:
        return None
    if isinstance(found, Folder):
        return f"group {printable(name)}"
    if found is not None:
        return f"{printable(name)} {found.shape}"
    return None if link is None else f"{printable(name)} (a link to {link}, which is not there)"
