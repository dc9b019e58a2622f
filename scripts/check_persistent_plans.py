"""Compile the persistent kernels of many sizes, and report those with too few registers.

    python scripts/check_persistent_plans.py [H,H,...] [N,N,...]

It needs cuda-bindings with NVRTC, no GPU. It exits with 1 if a kernel has a stack frame: then some
weights are not in registers.
"""

from __future__ import annotations

import re
import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cuda.bindings import nvrtc  # noqa: E402 - behind the path

from lstm_cli.cells import GRU, LSTM, Cell  # noqa: E402
from lstm_cli.engines.cuda.codegen import persistent_backward, persistent_forward  # noqa: E402
from lstm_cli.engines.cuda.planning.plan import DeviceLimits, recurrence_shape  # noqa: E402
from lstm_cli.engines.cuda.planning.plan_search import best_plan  # noqa: E402
from lstm_cli.engines.cuda.precision import PRECISIONS  # noqa: E402
from lstm_cli.engines.schedule import inference, training  # noqa: E402

DEVICES = {
    "90a": DeviceLimits(132, 232448, 16),
    "80": DeviceLimits(108, 166912, 1),
    "86": DeviceLimits(84, 101376, 1),
}
HIDDEN = (64, 128, 160, 192, 256, 320, 512, 768, 1024, 1536, 2048)
BATCH = (1, 16, 64, 128)


def compile_log(source: str, architecture: str) -> str:
    """Compile a source, and return the compiler's log."""
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v"]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    return log.decode()


def check(cell: Cell, N: int, dtype: str, architecture: str, sources: set[str]) -> int:
    """Number of kernels of a size with a stack frame."""
    failed = 0
    for backward in (False, True):
        precision = PRECISIONS[dtype].backward if backward else PRECISIONS[dtype]
        shape = recurrence_shape(cell, PRECISIONS[dtype], backward)
        plan = None if isinstance(shape, str) else best_plan(shape, DEVICES[architecture], N, 1)
        if plan is None:
            continue
        module = persistent_backward if backward else persistent_forward
        for schedule in (
            (training(cell, True),)
            if backward
            else (
                inference(cell),
                training(cell, True),
            )
        ):
            source = module.source(cell, schedule, precision, plan)
            if source + architecture in sources:
                continue
            sources.add(source + architecture)
            log = compile_log(source, architecture)
            registers = re.findall(r"Used (\d+) registers", log)
            frames = re.findall(r"(\d+) bytes stack frame", log)
            good = frames == ["0"]
            failed += not good
            what = "backward" if backward else schedule.purpose
            print(
                f"{'ok' if good else 'FRAME'} sm_{architecture} {cell.kind} {cell.hidden_size} "
                f"N={N} {dtype} {what}: {plan.kind} {plan.blocks}x{plan.units}, "
                f"{plan.register_chunks}/{plan.chunks} chunks in registers, "
                f"{plan.registers} registers estimated, {' '.join(registers)} used, "
                f"frame {' '.join(frames) or log}",
                flush=True,
            )
    return failed


def main() -> int:
    """Compile all sizes; 1 if a kernel has a stack frame."""
    hidden, batch = (
        tuple(map(int, text.split(","))) if text else default
        for text, default in zip([*sys.argv[1:], "", ""], (HIDDEN, BATCH), strict=False)
    )
    sources: set[str] = set()
    cells = [
        lambda H: LSTM(hidden_size=H),
        lambda H: LSTM(hidden_size=H, peepholes=True, clip=1.0),
        lambda H: GRU(hidden_size=H),
    ]
    failed = 0
    for architecture, H, N, dtype, make in product(
        DEVICES, hidden, batch, ("bfloat16", "tf32"), cells
    ):
        failed += check(make(H), N, dtype, architecture, sources)
    print(f"{failed} of {len(sources)} kernels have a stack frame")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
