"""The native weights file: safetensors, with the config as YAML in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, quote, require_memory
from lstm_cli.formats.safety import irregular
from lstm_cli.output_files import PRODUCER, error_reason, write_atomically
from lstm_cli.version import __version__

SUFFIX = ".safetensors"

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_COUNTS = {"I64": "<i8", "U8": "|u1"}


@dataclass(frozen=True)
class WeightsFile:
    """A weights file, read whole.

    Attributes
    ----------
    path
        Where it was read from.
    tensors
        By stored name; bfloat16 widened to float32.
    config
        The config it carries, as YAML text; None if it carries none.
    sha256
        Of the file.
    metadata
        All texts it carries, by name; the config is one of them.
    """

    path: Path
    tensors: Mapping[str, Array]
    config: str | None
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def is_native(path: str | Path) -> bool:
    """Whether the name says that this is a native weights file."""
    return Path(path).suffix.lower() == SUFFIX


def read(path: str | Path, named_at: str | None = None, *, counts: bool = False) -> WeightsFile:
    """Read a safetensors file.

    Parameters
    ----------
    named_at
        The line that names it, for errors.
    counts
        Take integers too, as a checkpoint has them; no weight is one.

    Raises
    ------
    WeightsError
        Missing, unreadable, not safetensors, or of a dtype that is no real number.
    """
    path = Path(path)
    found, data = irregular(path), b""
    if found is None:
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            found = error_reason(error)
    if found is not None:
        raise WeightsError(
            f"the weights file {path} cannot be read",
            found=found,
            where=() if named_at is None else named_at,
        )
    entries, metadata = deserialized(path, data)
    if "training" in metadata and not counts:
        best = path.parent / "model.safetensors"
        raise WeightsError(
            f"{path} is the checkpoint of a training run",
            expected="a file of weights",
            where=str(path),
            hint=f"{quote(best)} holds the network of that run" if best.is_file() else None,
        )
    known = _DTYPES | _COUNTS if counts else _DTYPES
    tensors = {
        name: _array(path, name, entry, known) for name, entry in sorted(entries, key=itemgetter(0))
    }
    digest = hashlib.sha256(data).hexdigest()
    return WeightsFile(path, tensors, metadata.get("config"), digest, metadata)


def deserialized(path: Path, data: bytes) -> tuple[list[Any], dict[str, str]]:
    """What a safetensors file lists, (name, entry) each, and the texts in its header.

    Raises
    ------
    WeightsError
        Not safetensors, or a header that names something twice.
    """
    from safetensors import SafetensorError, deserialize

    require_memory(len(data) + (8 << 20), str(path))  # without it, its Rust ends the process
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file",
            expected="a header of JSON and the tensors it lists",
            found=str(error).removeprefix("Error while deserializing: "),
        ) from None
    return entries, _metadata(path, data)


def _array(path: Path, name: str, entry: Mapping[str, Any], known: Mapping[str, str]) -> Array:
    code = known.get(entry["dtype"])
    if code is None:
        raise WeightsError(
            f"{name} is stored as {entry['dtype']}",
            expected="one of " + ", ".join(known),
            where=str(path),
        )
    try:
        values = np.frombuffer(bytes(entry["data"]), code).reshape(entry["shape"])
    except ValueError as error:
        raise WeightsError(
            f"{name} has a shape that no array can have",
            found=f"{entry['shape']}: {error}",
            where=str(path),
        ) from None
    if entry["dtype"] == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _metadata(path: Path, data: bytes) -> dict[str, str]:
    """The texts in the header, which was checked when the tensors were read."""
    size = int.from_bytes(data[:8], "little")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # readers differ in which of the two they take
            raise WeightsError(f"{path} is refused", found="a header that names something twice")
        return found

    header = json.loads(data[8 : 8 + size], object_pairs_hook=unique)
    metadata = header.get("__metadata__") or {}
    return {name: text for name, text in metadata.items() if isinstance(text, str)}


def write(
    path: str | Path,
    tensors: Mapping[str, Array],
    config: str | None,
    metadata: Mapping[str, str] | None = None,
    *,
    what: str = "the weights",
) -> None:
    """Write a native file: to a temporary name first, renamed when it is whole.

    The same tensors and texts give the same bytes.

    Parameters
    ----------
    metadata
        Further texts to carry, by name.
    what
        What the file is, for errors.

    Raises
    ------
    LstmCliError
        The folder is not there, not writable, or full. An older file stays as it was.
    """
    from safetensors.numpy import save

    texts = {**(metadata or {}), "format": PRODUCER, "version": __version__}
    if config is not None:
        texts["config"] = config
    data = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, texts)
    write_atomically(Path(path), repeatable(data), what)


def repeatable(data: bytes) -> bytes:
    """A safetensors file with its texts in order: the library writes them in a random one."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]
