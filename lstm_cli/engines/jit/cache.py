"""What a compiled kernel is found by on disk."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from lstm_cli import cells
from lstm_cli.engines.jit.machine import Machine


def key_of(name: str, machine: Machine) -> str:
    """What a file is found by: a hash of all that its contents depend on.

    Raises
    ------
    OSError
        The package's sources cannot be read, so nothing says what made the contents.
    """
    import llvmlite
    from llvmlite import binding as llvm

    parts = (llvmlite.__version__, llvm.llvm_version_info, machine, sources(), name)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@lru_cache(maxsize=1)
def sources() -> str:
    """A hash of the code that emits and compiles the kernels.

    Raises
    ------
    OSError
        It cannot be read, as in a zip archive.
    """
    here = Path(__file__).parent
    folders = [here, here.parent, *map(Path, cells.__path__)]
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    if Path(__file__) not in files:
        raise OSError("the package's sources are no files")
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.parent.name}/{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
