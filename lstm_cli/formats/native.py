"""The native weights file: safetensors with the config as YAML text in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, quote, require_memory
from lstm_cli.formats.capabilities import storable_layers
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import Export, Imported, ReadOptions, TensorSource
from lstm_cli.formats.limits import why_not_regular
from lstm_cli.output_files import PRODUCER, error_reason, write_atomically
from lstm_cli.version import __version__

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS = {"I64": "<i8", "U8": "|u1"}


@dataclass(frozen=True)
class WeightsFile:
    """Content of a native weights file.

    Attributes
    ----------
    path
        Path of the file.
    tensors
        Tensors by name; bfloat16 widened to float32.
    config
        YAML text of the config; None if the file has none.
    sha256
        SHA-256 of the file, in hexadecimal.
    metadata
        All texts of the file by name, the config among them.
    """

    path: Path
    tensors: Mapping[str, Array]
    config: str | None
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def read(
    path: str | Path, named_at: str | None = None, *, allow_integers: bool = False
) -> WeightsFile:
    """Read a safetensors file.

    Parameters
    ----------
    named_at
        Line of the config that names the file, for errors.
    allow_integers
        Accept tensors of integers, which checkpoints hold and weights files do not.

    Raises
    ------
    WeightsError
        The file is missing, unreadable or not safetensors, or a dtype is not a real number.
    """
    path = Path(path)
    problem, data = why_not_regular(path), b""
    if problem is None:
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            problem = error_reason(error)
    if problem is not None:
        raise WeightsError(
            f"the weights file {path} cannot be read",
            found=problem,
            where=() if named_at is None else named_at,
        )
    entries, metadata = deserialize_entries(path, data)
    if "training" in metadata and not allow_integers:
        best = path.parent / "model.safetensors"
        raise WeightsError(
            f"{path} is the checkpoint of a training run",
            expected="a file of weights",
            where=str(path),
            hint=f"{quote(best)} holds the network of that run" if best.is_file() else None,
        )
    codes = _DTYPES | _INTEGERS if allow_integers else _DTYPES
    tensors = {
        name: _array(path, name, entry, codes) for name, entry in sorted(entries, key=itemgetter(0))
    }
    digest = hashlib.sha256(data).hexdigest()
    return WeightsFile(path, tensors, metadata.get("config"), digest, metadata)


def deserialize_entries(path: Path, data: bytes) -> tuple[list[Any], dict[str, str]]:
    """Entries (name, entry) of a safetensors file, and the texts in its header.

    Raises
    ------
    WeightsError
        The data is not safetensors, or its header has a name twice.
    """
    from safetensors import SafetensorError, deserialize

    require_memory(len(data) + (8 << 20), str(path))  # the library's Rust would end the process
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file",
            expected="a header of JSON and the tensors it lists",
            found=str(error).removeprefix("Error while deserializing: "),
        ) from None
    return entries, _metadata(path, data)


def _array(path: Path, name: str, entry: Mapping[str, Any], codes: Mapping[str, str]) -> Array:
    code = codes.get(entry["dtype"])
    if code is None:
        raise WeightsError(
            f"{name} is stored as {entry['dtype']}",
            expected="one of " + ", ".join(codes),
            where=str(path),
        )
    try:
        data = memoryview(entry["data"]).toreadonly()
        values = np.frombuffer(data, code).reshape(entry["shape"])
    except ValueError as error:
        raise WeightsError(
            f"{name} has a shape that no array can have",
            found=f"{entry['shape']}: {error}",
            where=str(path),
        ) from None
    if entry["dtype"] == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def parse_header(
    data: bytes, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Header of a safetensors file: JSON after its length, which is 8 bytes little-endian.

    Parameters
    ----------
    data
        The file, at least up to the end of its header.
    pairs_hook
        ``object_pairs_hook`` of `json.loads`.

    Raises
    ------
    ValueError, RecursionError
        The header is not JSON, or is nested too deep.
    """
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size], object_pairs_hook=pairs_hook)


def _metadata(path: Path, data: bytes) -> dict[str, str]:
    """Texts in a header that `deserialize` has accepted."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):  # readers differ in which of the two they take
            raise WeightsError(f"{path} is refused", found="a header that names something twice")
        return mapping

    metadata = parse_header(data, unique).get("__metadata__") or {}
    return {name: text for name, text in metadata.items() if isinstance(text, str)}


def write(
    path: str | Path,
    tensors: Mapping[str, Array],
    config: str | None,
    metadata: Mapping[str, str] | None = None,
    *,
    what: str = "the weights",
) -> None:
    """Write a native file under a temporary name, and rename it when it is complete.

    Equal tensors and texts give equal bytes.

    Parameters
    ----------
    metadata
        Further texts by name.
    what
        Content of the file in words, for errors.

    Raises
    ------
    LstmCliError
        The folder is missing, not writable or full. An older file is kept.
    """
    from safetensors.numpy import save

    texts = {**(metadata or {}), "format": PRODUCER, "version": __version__}
    if config is not None:
        texts["config"] = config
    data = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, texts)
    write_atomically(Path(path), sort_metadata(data), what)


def sort_metadata(data: bytes) -> bytes:
    """Sort the texts in a safetensors header, which the library writes in random order."""
    header = parse_header(data)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + body


def read_network(path: Path, options: ReadOptions) -> Imported:
    """Read a native file as one format among the others; see `read`."""
    file = read(path)
    return Imported(
        path=path,
        format="native",
        title="lstm-cli weights",
        sha256=file.sha256,
        config=None,
        text=file.config,
        tensors=file.tensors,
        sources=tuple(
            TensorSource(name, value.shape, str(value.dtype), "", name, "")
            for name, value in file.tensors.items()
        ),
        gate_orders={kind: " ".join(letters) for kind, letters in NATIVE_GATES.items()},
        describes_layers=file.config is not None,
    )


def write_network(path: Path, export: Export) -> tuple[str, ...]:
    """Write a native file. A native file holds all of a network, so no notes are returned."""
    storable_layers(export.layers)
    write(path, export.tensors, export.config)
    return ()
