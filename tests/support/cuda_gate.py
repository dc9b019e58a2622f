"""Compiles CUDA C++ as CuPy would, on a machine without a GPU."""

from __future__ import annotations

import re

from lstm_cli.engines.cuda.runtime.kernel import NVRTC_OPTIONS


class CompileError(RuntimeError):
    """A source does not compile; the message is the compiler's log."""


def compile_log(source: str, architecture: str) -> str:
    """Compile a source; returns the log, with the registers and stack frames that ptxas reports."""
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


def compile_problem(name: str, source: str, architecture: str, max_frame: int) -> str | None:
    """Problem of a source: it does not compile, or has a frame of more than `max_frame` bytes.

    Stack frames matter, not spills: an array that is not wholly in registers has a frame.
    """
    try:
        log = compile_log(source, architecture)
    except CompileError as error:
        return f"{name} on sm_{architecture}: {error}"
    frames = [int(size) for size in re.findall(r"(\d+) bytes stack frame", log)]
    if frames and max(frames) <= max_frame:
        return None
    return f"{name} on sm_{architecture}: {log}"
