"""The native file as one codec among the others."""

from __future__ import annotations

from pathlib import Path

from lstm_cli.formats import native
from lstm_cli.formats.gates import NATIVE
from lstm_cli.formats.model import Export, Imported, ReadOptions, Stored


def read(path: Path, options: ReadOptions) -> Imported:
    """Read a native file; see `native.read`."""
    file = native.read(path)
    return Imported(
        path=path,
        format="native",
        title="lstm-cli weights",
        sha256=file.sha256,
        config=None,
        text=file.config,
        tensors=file.tensors,
        stored=tuple(
            Stored(name, value.shape, str(value.dtype), "", name, "")
            for name, value in file.tensors.items()
        ),
        order={kind: " ".join(letters) for kind, letters in NATIVE.items()},
        described=file.config is not None,
    )


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a native file; nothing is ever left out."""
    native.write(path, export.tensors, export.config)
    return ()
