"""Reading a PyTorch file: its state dict, its modules, their order, and the network they make."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

from lstm_cli.engines.types import Layers
from lstm_cli.errors import WeightsError
from lstm_cli.formats.gates import NATIVE
from lstm_cli.formats.model import Imported, ReadOptions
from lstm_cli.formats.safety import check_regular
from lstm_cli.formats.torch.archive import TorchArchive
from lstm_cli.formats.torch.checkpoint import StateDict, find_state_dict, selected
from lstm_cli.formats.torch.layers import translate
from lstm_cli.formats.torch.modules import Tensors
from lstm_cli.formats.torch.order import find_order
from lstm_cli.formats.torch.others import modules_of
from lstm_cli.formats.torch.safetensors_file import read_tensors
from lstm_cli.formats.torch.tensors import listed, shown
from lstm_cli.output_files import error_reason


def read(path: Path, options: ReadOptions) -> Imported:
    """Read torch.save's file, or a safetensors file with PyTorch's names.

    Raises
    ------
    WeightsError
        Not readable, hostile, or a network that lstm-cli cannot represent.
    """
    check_regular(path)
    if _is_safetensors(path):
        whole = StateDict((), read_tensors(path))
        part = _below(whole, options.prefix, path)
        if options.only or options.ignore:
            (part,) = selected([part], options, path, [whole])
        title = "PyTorch state dict in safetensors"
        return _imported(path, part.tensors, title, options.layers, stored=False, notes=part.notes)
    with TorchArchive(path) as archive:
        state = find_state_dict(archive.root, options, path)
        tensors = {name: archive.tensor(name, view) for name, view in state.tensors.items()}
        stored = not _is_sorted(tensors)
        title, notes = "PyTorch state dict", state.notes
        return _imported(path, tensors, title, options.layers, stored=stored, notes=notes)


def _is_sorted(tensors: Tensors) -> bool:
    """Whether the names are sorted, which is no order that PyTorch gives: a weight comes first."""
    names = list(tensors)
    starts = [name.rpartition(".")[2].startswith("bias") for name in names]
    return names == sorted(names) and any(a > b for a, b in pairwise(starts))


def _imported(
    path: Path,
    tensors: Tensors,
    title: str,
    layers: Layers | None,
    *,
    stored: bool,
    notes: tuple[str, ...] = (),
) -> Imported:
    modules, left_out = modules_of(tensors, str(path), stored)
    config, network = translate(find_order(modules, stored, str(path), layers))
    kinds = {str(layer["type"]) for layer in network.layers}
    return Imported(
        path=path,
        format="pytorch",
        title=title,
        sha256=_digest(path),
        config=config,
        tensors=network.tensors,
        stored=tuple(network.stored),
        order={kind: " ".join(gates) for kind, gates in NATIVE.items() if kind in kinds},
        notes=(*notes, *left_out, *network.notes),
        halves=network.halves,
    )


def _below(state: StateDict, prefix: str | None, path: Path) -> StateDict:
    part = state.below(prefix) if prefix else state
    if not part.tensors and prefix:
        raise WeightsError(
            f"{path} has no tensor below {shown(prefix)}", found=listed(list(state.tensors))
        )
    return part


def _is_safetensors(path: Path) -> bool:
    """A zip archive begins with PK, a pickle with 0x80; safetensors with the header's length."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except (OSError, ValueError):
        return False  # said when it is opened as an archive
    return head[8:] == b"{" and not head.startswith(b"PK")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None
