"""The GPU kernels of every cell compile for every architecture, without a GPU."""

from __future__ import annotations

import re

import pytest
from strategies_cuda import CELLS

from lstm_cli.engines.cuda import forward
from lstm_cli.engines.schedule import inference, inspection, training

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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_forward_compiles(cell, element, architecture):
    for schedule in (inference(cell), inspection(cell), training(cell, True)):
        log = compiled(forward.source(cell, schedule, element), architecture)
        frames = [int(found) for found in re.findall(r"(\d+) bytes stack frame", log)]
        # Beside a call of double precision's division, ptxas may save a register or two.
        assert frames, log
        assert max(frames) <= (16 if element == "double" else 0), log


def test_gate_sees_an_error():
    with pytest.raises(AssertionError, match="unknown"):
        compiled('extern "C" __global__ void f() { unknown(); }', "90")
