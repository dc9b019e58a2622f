"""Python that hints propose: a changed copy of a data file, or an HDF5 file from another one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lstm_cli.data.axes import Turned
from lstm_cli.data.ragged import Lengths
from lstm_cli.data.storage import Stored
from lstm_cli.errors import quote


@dataclass(frozen=True)
class Beside:
    """What stands beside a mask, or beside lengths: all that is turned with them.

    Attributes
    ----------
    file
        The file.
    inputs
        (N, T, D).
    targets
        Targets that may be one a step, (N, T, ...), or None.
    lengths
        (N,) lengths that the file gives too, or None.
    """

    file: str
    inputs: Stored
    targets: Stored | None = None
    lengths: Lengths | None = None


def turning_command(divides: Stored, beside: Beside) -> str:
    """A command that writes a copy of the file with the valid steps in front.

    Parameters
    ----------
    divides
        The mask, or the lengths of sequences of which the padding stands in front.
    """
    N, T = beside.inputs.shape[:2]
    mask = divides.rank > 1
    if mask:
        order = f"np.argsort({_values(divides)}.reshape({N}, {T}) == 0, 1, kind='stable')"
    else:
        order = f"(np.arange({T}) - {_values(divides)}.reshape({N}, 1).astype(int)) % {T}"
    moved = [beside.inputs, *([divides] if mask else [])]
    moved += [] if beside.targets is None else [beside.targets]
    lines = [f"o = {order}", f"r = np.arange({N})[:, None]"]
    lines += [_assigned(stored, f"{_values(stored)}[r, o]") for stored in moved]
    also = "" if beside.targets is None else ", and their targets"
    return f"{copying(beside.file, lines)} has the valid steps{also} first"


def inverting_command(mask: Stored, beside: Beside) -> str:
    """A command that writes a copy of the file with an inverted mask."""
    lines = [_assigned(mask, f"{_values(mask)} == 0")]
    return f"{copying(beside.file, lines)} has 1 at valid steps"


def copying(file: str, lines: Sequence[str]) -> str:
    """A command that changes a copy of a file, and the name of the copy."""
    stem, suffix = os.path.splitext(os.path.basename(file))
    copy = f"{stem}-turned{suffix}"
    names = f"{text(file)}, {text(copy)}"
    opened = f"import shutil, h5py, numpy as np; f = h5py.File(shutil.copyfile({names}), 'r+')"
    code = "; ".join([opened, *lines]).replace("'", '"')
    return f"python -c {quote(code)} writes {quote(copy)}, which"


def converting(file: str, read: str, array: str) -> str:
    """A command that makes a file whose `inputs` are an array, and what to do with it.

    Parameters
    ----------
    read, array
        Python: a statement that reads from the file `f`, and the array (T, D).
    """
    copy = os.path.splitext(os.path.basename(file))[0] + "-inputs.h5"
    code = (
        f"import h5py, numpy as np; f = h5py.File({text(file)}); {read}; "
        f'h5py.File({text(copy)}, "w")["inputs"] = {array}'
    )
    return (
        f"python -c {quote(code)} writes {quote(copy)}: one series (T, D); `lengths` (N,) beside "
        "it divide it into sequences"
    )


def made_of(path: str, statement: str) -> str:
    """A command that writes an HDF5 file from another one."""
    copy = os.path.splitext(os.path.basename(path))[0] + ".h5"
    code = f'import h5py, numpy as np; h5py.File({text(copy)}, "w"){statement}'
    return f"python -c {quote(code)} writes {quote(copy)}"


def text(name: str) -> str:
    """A name as Python writes it, between double quotes."""
    return json.dumps(name, ensure_ascii=False).replace("'", "\\x27")


def _values(stored: Stored) -> str:
    return f"f[{text(stored.path)}][:]" + (".T" if isinstance(stored, Turned) else "")


def _assigned(stored: Stored, value: str) -> str:
    turned = f"({value}).T" if isinstance(stored, Turned) else value
    return f"f[{text(stored.path)}][:] = {turned}"
