"""The native weights file: safetensors, with the config as YAML in its metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.version import __version__

SUFFIX = ".safetensors"

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


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
    """

    path: Path
    tensors: Mapping[str, Array]
    config: str | None
    sha256: str


def is_native(path: str | Path) -> bool:
    """Whether the name says that this is a native weights file."""
    return Path(path).suffix.lower() == SUFFIX


def read(path: str | Path) -> WeightsFile:
    """Read a safetensors file.

    Raises
    ------
    WeightsError
        Missing, unreadable, not safetensors, or of a dtype that is no real number.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the weights file {path} cannot be read",
            found=_reason(error),
            hint="--weights names a .safetensors file" if path.is_dir() else None,
        ) from None
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file",
            expected="a header of JSON and the tensors it lists",
            found=str(error).removeprefix("Error while deserializing: "),
            hint="lstm-cli runs its own .safetensors weights",
        ) from None
    tensors = {name: _array(path, name, entry) for name, entry in entries}
    return WeightsFile(path, tensors, _config(data), hashlib.sha256(data).hexdigest())


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _array(path: Path, name: str, entry: Mapping[str, Any]) -> Array:
    code = _DTYPES.get(entry["dtype"])
    if code is None:
        raise WeightsError(
            f"{name} is stored as {entry['dtype']}",
            expected="one of " + ", ".join(_DTYPES),
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


def _config(data: bytes) -> str | None:
    """The config in the metadata; the header was checked when the tensors were read."""
    import json

    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    config = metadata.get("config")
    return config if isinstance(config, str) else None


def write(path: str | Path, tensors: Mapping[str, Array], config: str | None) -> None:
    """Write a native file: to a temporary name first, renamed when it is whole.

    Raises
    ------
    LstmCliError
        The folder is not there, not writable, or full.
    """
    from safetensors.numpy import save

    path = Path(path)
    metadata = {"format": "lstm-cli", "version": __version__}
    if config is not None:
        metadata["config"] = config
    data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LstmCliError(
            f"the weights cannot be written to {path}", found=_reason(error)
        ) from None
