"""Reading a config's text, and telling at once what is no config."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lstm_cli.config.words import did_you_mean
from lstm_cli.config.yaml12 import MAX_CHARACTERS
from lstm_cli.errors import ConfigError, is_memory, short_of_memory

DATA_HINT = "the config comes before the data: lstm-cli run CONFIG DATA"
WEIGHTS_HINT = "give weights as --weights FILE, and a YAML file as CONFIG"

SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", DATA_HINT),
    (b"CDF", "a NetCDF file", DATA_HINT),
    (b"PK\x03\x04", "a zip archive, such as PyTorch's and Keras's weights", WEIGHTS_HINT),
    (b"\x80\x02", "a Python pickle", WEIGHTS_HINT),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
)
"""First bytes, what they tell, and what to do about it."""


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises
    ------
    ConfigError
        Missing, not readable, or not text.
    """
    try:
        with path.open("rb") as file:
            # A character takes up to four bytes; what is longer is refused when parsed.
            content = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file {path}", expected="a YAML config", hint=_neighbour(path)
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return _decode(content, path)


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    if is_memory(error):
        raise short_of_memory(str(path)) from error
    # Windows answers "permission denied" for a folder, so the folder is asked about itself.
    if isinstance(error, OSError) and os.path.isdir(path):
        inside = next(iter(sorted(path.glob("*.y*ml"))), None)
        hint = f"did you mean {inside}?" if inside else None
        return ConfigError(f"{path} is a folder", expected="a YAML config", hint=hint)
    reason = getattr(error, "strerror", None) or str(error)
    hint = "check the file's permissions" if isinstance(error, PermissionError) else None
    return ConfigError(f"{path} cannot be read: {reason}", expected="a YAML config", hint=hint)


def _neighbour(path: Path) -> str | None:
    """A hint with the file of the nearest name in the same folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    return did_you_mean(path.name, names)


def _decode(content: bytes, path: Path) -> str:
    for signature, kind, hint in SIGNATURES:
        if content.startswith(signature):
            raise _no_config(path, kind, hint)
    # safetensors: eight bytes of length, little-endian, then a JSON header.
    if content[8:10] in (b'{"', b"{}") and b"\0" in content[:8]:
        raise _no_config(path, "a safetensors file", WEIGHTS_HINT)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if re.search(rb"[\x00-\x08\x0e-\x1a]", content[:4096]):
            raise _no_config(path, "a binary file", WEIGHTS_HINT) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not text in UTF-8",
            found=f"byte {content[error.start]:#04x}",
            where=f"{path} line {line}",
            hint="save it as UTF-8",
        ) from None
    if "\0" in text:
        raise _no_config(path, "a binary file", None)
    return text


def _no_config(path: Path, kind: str, hint: str | None) -> ConfigError:
    return ConfigError(
        f"{path} is no config", expected="text in YAML", found=kind, where=str(path), hint=hint
    )
