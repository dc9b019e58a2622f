"""Modeled times of persistent kernels per step, as Markdown; nothing is measured.

    python scripts/modeled_floors.py

The device is an H200: 132 multiprocessors, 227 KB of shared memory a block, clusters of up to 16.
`benchmarks/gpu.md` contains the output.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lstm_cli.cells import LSTM  # noqa: E402 - behind the path
from lstm_cli.engines.cuda.planning.plan import DeviceLimits, recurrence_shape  # noqa: E402
from lstm_cli.engines.cuda.planning.plan_search import best_plan, step_seconds  # noqa: E402
from lstm_cli.engines.cuda.precision import PRECISIONS  # noqa: E402

H200 = DeviceLimits(132, 232448, 16)
HIDDEN = (64, 128, 160, 192, 256, 320, 512, 768, 1024, 1536, 2048)
BATCH = (1, 16, 64, 128)


def entry(dtype: str, H: int, N: int, *, backward: bool = False) -> str:
    """Modeled microseconds per step, and the kind of exchange; or ``general`` without a plan."""
    shape = recurrence_shape(LSTM(hidden_size=H), PRECISIONS[dtype], backward)
    plan = None if isinstance(shape, str) else best_plan(shape, H200, N, 1)
    if plan is None:
        return "general"
    return f"{step_seconds(plan, H200, N, 1) * 1e6:.2f} {plan.kind} {plan.blocks}"


def table(dtype: str, *, backward: bool = False) -> str:
    """Markdown table: a row per number of units, a column per number of sequences."""
    lines = ["| H | " + " | ".join(f"N = {N}" for N in BATCH) + " |", "|--:|" + "---|" * len(BATCH)]
    for H in HIDDEN:
        cells = [entry(dtype, H, N, backward=backward) for N in BATCH]
        lines.append(f"| {H} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of forward and backward passes."""
    for title, dtype, backward in (
        ("Forward, bfloat16 and float16", "bfloat16", False),
        ("Forward, tf32", "tf32", False),
        ("Backward, bfloat16", "bfloat16", True),
        ("Backward, tf32 and float16", "tf32", True),
    ):
        print(f"### {title}: modeled µs a step\n\n{table(dtype, backward=backward)}\n")


if __name__ == "__main__":
    main()
