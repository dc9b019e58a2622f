"""Compiles CUDA C++ as CuPy would, on a machine without a GPU."""

from __future__ import annotations

import re

from lstm_cli.engines.cuda.runtime.kernel import NVRTC_OPTIONS


class CompileError(RuntimeError):
    """The compiler's log."""


def compiled(source: str, architecture: str) -> str:
    """The compiler's log, with what ptxas says of registers and frames."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture=sm_{architecture}", *NVRTC_OPTIONS, "--ptxas-options=-v"]
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(str(error))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    text = log.decode().strip("\0 \n")
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(text)
    return text


def problem(name: str, source: str, architecture: str, most: int) -> str | None:
    """What is wrong with a source: it does not compile, or has a frame of more than `most` bytes.

    Frames are what to look for, not spills: an array that is not wholly in registers has one.
    """
    try:
        log = compiled(source, architecture)
    except CompileError as error:
        return f"{name} on sm_{architecture}: {error}"
    frames = [int(found) for found in re.findall(r"(\d+) bytes stack frame", log)]
    if frames and max(frames) <= most:
        return None
    return f"{name} on sm_{architecture}: {log}"
