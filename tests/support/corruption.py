"""Damages a weights file in many ways, reads each, and reports what escaped. A separate script:

    python corruption.py FILE COUNT SEED [refused]

What a library makes of damaged bytes may loop, take all memory, or end the process; the parent
then knows the case by the last line. One JSON document a line: the case, or what went wrong.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

MEMORY = 4 << 30
"""Address space of the process, where the system can limit it."""
SLOW = 3.0
"""Seconds of processor time that no case may take."""

Damage = Callable[[bytearray, np.random.Generator], None]

WORDS = [
    b"", b"0", b"1", b"-1", b"3", b"7", b"4294967296", b"99999999999999999999", b"1e400", b"NaN",
    b"null", b"true", b"[]", b"{}", b'""', b'"lstm"', b"[1,[2]]", b'{"a":1}', b"\xff", b"\\ud800",
    b"../x", b"LSTM", b"Bidirectional", b"\\u001b[2J", b"\x1b[2J",
]  # fmt: skip
WHOLE = [0, 1, 2, 3, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


def bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def some_bytes(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))


def cut_off(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def field(data: bytearray, rng: np.random.Generator) -> None:
    """A number of 1 to 8 bytes, in either order, such as a length or a place in the file."""
    size = int(rng.choice([1, 2, 4, 8]))
    value = WHOLE[rng.integers(len(WHOLE))] if rng.integers(4) else len(data) + int(rng.integers(9))
    at = int(rng.integers(len(data)))
    if rng.integers(2):
        at -= at % size
    order = "little" if rng.integers(4) else "big"
    data[at : at + size] = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _random_slice(data: bytearray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(len(data)))
    return slice(start, start + int(rng.choice([1, 4, 16, 64, 512])))


def cleared(data: bytearray, rng: np.random.Generator) -> None:
    where = _random_slice(data, rng)
    data[where] = bytes([int(rng.choice([0, 255]))]) * len(data[where])


def left_out(data: bytearray, rng: np.random.Generator) -> None:
    del data[_random_slice(data, rng)]


def repeated(data: bytearray, rng: np.random.Generator) -> None:
    where = _random_slice(data, rng)
    data[where] = bytes(data[where]) * int(rng.choice([2, 3, 20]))


def spliced(data: bytearray, rng: np.random.Generator) -> None:
    """One part of the file in the place of another."""
    part = bytes(data[_random_slice(data, rng)])
    at = int(rng.integers(len(data)))
    data[at : at + len(part)] = part


def word(data: bytearray, rng: np.random.Generator) -> None:
    """A word or number of the file's texts, another in its place; of the same length or not."""
    words = list(re.finditer(rb"[A-Za-z_.]{2,}|-?\d+|\"[^\"]{0,40}\"", bytes(data)))
    if not words:
        return
    old = words[rng.integers(len(words))]
    new = WORDS[rng.integers(len(WORDS))] if rng.integers(3) else words[rng.integers(len(words))][0]
    if rng.integers(2):
        new = new[: len(old[0])].ljust(len(old[0]))
    data[old.start() : old.end()] = new


DAMAGE: list[Damage] = [
    bits, some_bytes, cut_off, field, field, cleared, left_out, repeated, spliced, word, word,
]  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content, damaged; inside an archive's members as often as the archive itself."""
    if content.startswith(b"PK") and rng.integers(4):
        return _archive(content, rng)
    if content[8:9] == b"{" and rng.integers(2):
        return _header(content, rng)
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        if data:
            DAMAGE[rng.integers(len(DAMAGE))](data, rng)
    return bytes(data)


def _archive(content: bytes, rng: np.random.Generator) -> bytes:
    """An archive that is sound, of members that are not."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    names = [name for name, data in members.items() if data]
    chosen = names[rng.integers(len(names))]
    kind = rng.integers(12)
    if kind == 0:
        del members[chosen]
    elif kind == 1:
        members[str(rng.choice(["data.pkl", "x/data.pkl", "config.json", "x"]))] = members[chosen]
    else:
        members[chosen] = damaged(members[chosen], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _header(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage the header of a safetensors file, and keep its length right."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = bytearray(content[8:end])
    word(header, rng)
    return len(header).to_bytes(8, "little") + bytes(header) + content[end:]


def attempt(path: Path) -> bool:
    """Return True for a file that is read, False for LstmCliError; other errors pass through."""
    if path.suffix == ".npz":
        return _checked(path)
    from lstm_cli.config import from_mapping, from_text
    from lstm_cli.errors import LstmCliError
    from lstm_cli.formats import registry
    from lstm_cli.network.weights import fit_weights

    try:
        imported = registry.read(path)
    except LstmCliError as error:
        _printable(str(error))
        if str(path) not in str(error) and "not enough memory" not in str(error):
            raise ValueError(f"the error does not name the file: {error}") from error
        return False
    _printable("\n".join(imported.notes))
    try:
        if imported.text is not None:
            config = from_text(imported.text, "w", None)
        elif imported.config is not None:
            config = from_mapping(imported.config)
        else:
            return True
        fit_weights(config.specs, imported.tensors)
    except LstmCliError as error:
        _printable(str(error))
    return True


def _checked(path: Path) -> bool:
    """Return True for a file that is read as a reference of a network's outputs."""
    from lstm_cli.config import from_mapping
    from lstm_cli.errors import DataError, LstmCliError
    from lstm_cli.workflows.convert.reference_check import check_reference

    layers = [{"type": "lstm", "hidden_size": 2}, {"type": "dense", "units": 1}]
    config = from_mapping({"model": {"input_size": 3, "layers": layers}})
    rng = np.random.default_rng(0)
    parameters = {k: p for spec in config.specs for k, p in spec.parameters().items()}
    tensors = {name: rng.standard_normal(p.shape) for name, p in parameters.items()}
    try:
        check_reference(config, tensors, str(path), 1e-5, {})
    except DataError as error:
        _printable(str(error))
        return False
    except LstmCliError as error:
        _printable(str(error))
    return True


def _printable(text: str) -> None:
    """Check that a text moves no cursor, also with names from a file."""
    if not all(letter.isprintable() for line in text.split("\n") for letter in line):
        raise ValueError(f"printed as it stands: {text!r}")


def main(name: str, count: int, seed: int, refused: bool = False) -> None:
    """Damage, read, and print what escaped; `refused`: the sound file is not read either."""
    _limit_memory()
    source = Path(name)
    content = source.read_bytes()
    suffix = "".join(source.suffixes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        path.write_bytes(content)
        if attempt(path) == refused:
            raise ValueError("the sound file is read, or not, against what was said")
        read = 0
        for case in range(count):
            print(json.dumps({"case": case}), flush=True)
            path.write_bytes(damaged(content, np.random.default_rng([seed, case])))
            before = time.process_time()
            try:
                read += attempt(path)
            except BaseException:
                print(json.dumps({"case": case, "escaped": traceback.format_exc()}), flush=True)
            if (seconds := time.process_time() - before) > SLOW:
                print(json.dumps({"case": case, "escaped": f"took {seconds:.1f} s"}), flush=True)
    print(json.dumps({"done": count, "read": read}), flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["refused"])
