"""The GPU kernels of every cell compile for every architecture, without a GPU."""

from __future__ import annotations

import re

import pytest
from cuda_sources import general_sources, layer_sources
from strategies_cuda import CELLS

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
if nvrtc.nvrtcVersion()[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
    pytest.skip("NVRTC is not installed", allow_module_level=True)

ARCHITECTURES = ("80", "86", "89", "90", "90a", "100", "120")


def compiled(source: str, architecture: str) -> str:
    """The compiler's log, with what ptxas says of registers and frames."""
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v"]
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    size = nvrtc.nvrtcGetProgramLogSize(program)[1]
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.decode().strip("\0 \n")
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, text
    nvrtc.nvrtcDestroyProgram(program)
    return text


def check(source: str, architecture: str, name: str) -> None:
    """A source compiles, and its kernels keep everything in registers."""
    log = compiled(source, architecture)
    frames = [int(found) for found in re.findall(r"(\d+) bytes stack frame", log)]
    assert frames, f"{name}\n{log}"
    # Beside a call of double precision's division, ptxas may save a register or two.
    most = 16 if "float64" in name else 0
    assert max(frames) <= most, f"{name}\n{log}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_general_kernels_compile(cell, architecture):
    sources = sorted(general_sources(cell))
    first = ARCHITECTURES.index(architecture)
    share = len(ARCHITECTURES)
    for name, source in sources[first::share]:  # a cell's kernels, shared out
        check(source, architecture, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_kernels_compile(architecture):
    for name, source in layer_sources():
        check(source, architecture, name)


def test_gate_sees_an_error():
    with pytest.raises(AssertionError, match="unknown"):
        compiled('extern "C" __global__ void f() { unknown(); }', "90")
