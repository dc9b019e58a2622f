"""Kernel sources compiled to shared libraries of the host."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = None if sys.platform == "win32" else shutil.which("g++")
KERNEL_FLAGS = ("-std=c++17", "-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
RUNTIME_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off")
LIBRARY_FLAGS = ("-fPIC", "-shared")
FOLDER = "LSTM_CUDA_HOST_FOLDER"
"""Environment variable: folder that keeps libraries for the next run; unset: a temporary one."""


class HostError(RuntimeError):
    """A kernel, or the code that launches it, breaks a rule of the device."""


def headers_digest() -> str:
    """Hash of all that is compiled into every library."""
    texts = [path.read_text() for path in sorted(HERE.iterdir()) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256("".join([*texts, *KERNEL_FLAGS, *RUNTIME_FLAGS]).encode()).hexdigest()


@functools.cache
def folder() -> Path:
    """Folder of the libraries."""
    if lasting := os.environ.get(FOLDER):
        Path(lasting).mkdir(parents=True, exist_ok=True)
        return Path(lasting)
    temporary = tempfile.mkdtemp(prefix="lstm-cuda-host-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _compile(text: str, target: Path, flags: Sequence[str]) -> None:
    if COMPILER is None:
        raise HostError("g++ is not installed")
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        source, library_file = Path(scratch) / "source.cpp", Path(scratch) / "library.so"
        source.write_text(text)
        command = [COMPILER, *flags[:-1], *LIBRARY_FLAGS, f"-I{HERE}", str(source), flags[-1]]
        run = subprocess.run(
            [*(part for part in command if part), "-o", str(library_file), "-lm"],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise HostError(f"the kernel does not compile\n{run.stderr[:4000]}")
        library_file.rename(target)


@functools.cache
def runtime() -> Path:
    """Library of the scheduler, compiled once."""
    target = folder() / f"runtime-{headers_digest()[:24]}.so"
    if not target.exists():
        _compile((HERE / "runtime.cpp").read_text(), target, (*RUNTIME_FLAGS, ""))
    return target


@functools.cache
def library(source: str, names: tuple[str, ...]) -> ctypes.CDLL:
    """Library of a source, with entry points that start the kernels `names`."""
    entries = "".join(f"HOST_ENTRY({name})\n" for name in names)
    text = f'#include "shim.h"\n{source}\n{entries}'
    digest = hashlib.sha256((text + headers_digest()).encode()).hexdigest()
    target = folder() / f"kernel-{digest[:24]}.so"
    if not target.exists():
        _compile(text, target, (*KERNEL_FLAGS, "-fvisibility=hidden", str(runtime())))
    return ctypes.CDLL(str(target))


def attributes(source: str, name: str) -> tuple[int | None, int]:
    """Launch bounds of a kernel (None if not a number in the source), and its cluster size."""
    head = re.search(rf'extern "C"([^;{{}}]*?)\b{re.escape(name)}\s*\(', source)
    if head is None:
        raise HostError(f'no extern "C" kernel is called {name}')
    bounds = re.search(r"__launch_bounds__\(\s*(\d+)", head[1])
    cluster = re.search(r"CLUSTER\(\s*(\d+)\s*\)", head[1])
    return int(bounds[1]) if bounds else None, int(cluster[1]) if cluster else 1
