"""The general GPU kernel's own source, run on the host, against the reference engine."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from strategies_cuda import CELLS

from lstm_cli.engines.cuda import forward
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.schedule import inference, inspected, inspection
from lstm_cli.engines.steps import DirectionWeights
from lstm_cli.engines.types import RecurrentSpec

SHIM = Path(__file__).parent.parent / "cuda_host"
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

LENGTHS = np.array([5, 4, 4, 1, 0])  # the kernel's rows: longest first
N, T, D = 5, 5, 3


def built(source: str, folder: Path):
    """The kernel as a function of blocks, threads and arguments."""
    (folder / "kernel.cpp").write_text(
        f'#include "threads.h"\n{source}\nextern "C" void start(unsigned blocks, unsigned threads,'
        f" void** given) {{ launch({forward.NAME}, blocks, threads, given); }}\n"
    )
    library = folder / f"kernel-{len(list(folder.iterdir()))}.so"  # one that is loaded stays
    command = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
    subprocess.run(
        [*command, f"-I{SHIM}", str(folder / "kernel.cpp"), "-o", str(library)], check=True
    )
    start = ctypes.CDLL(str(library)).start

    def call(blocks, threads, arguments):
        held = [
            ctypes.c_longlong(a)
            if isinstance(a, int)
            else ctypes.c_void_p(None if a is None else a.ctypes.data)
            for a in arguments
        ]
        start(blocks, threads, (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held)))

    return call


def arguments_of(cell, schedule, weights, x, states, dtype):
    """What the kernel takes, and the arrays it fills."""
    H, P = cell.hidden_size, cell.output_size
    counts = np.array([(t < LENGTHS).sum() for t in range(T)], np.int64)
    begins = np.cumsum(counts) - counts
    packed = np.concatenate([x[:n, t] for t, n in enumerate(counts)])
    own = DirectionWeights.of(cell, weights)
    Q = len(packed)
    z = np.ascontiguousarray(packed @ own.weight_ih.T + own.bias)
    given = {"z": z, "p": weights.get("peephole"), "m": None}
    for k, phase in enumerate(schedule.phases):
        if phase.projects:
            given |= {f"w_{k}": np.ascontiguousarray(own.weight_hr.T), f"b_{k}": None}
            continue
        rows = own.rows(phase.stage.gates)
        given[f"w_{k}"] = np.ascontiguousarray(own.weight_hh[rows].T)
        bias = own.bias_hh
        given[f"b_{k}"] = None if bias is None else np.ascontiguousarray(bias[rows])
    given |= {"h_first": states[0], "c_first": states[1] if len(states) > 1 else None}
    given |= {"h": np.full((Q, P), np.nan, dtype), "c": np.full((Q, H), np.nan, dtype)}
    given["record"] = np.full((Q, max(1, len(schedule.slots)), H), np.nan, dtype)
    given |= {f"reads_{k}": np.full((N, H), np.nan, dtype) for k in range(1, len(schedule.phases))}
    given |= {"counts": counts, "begins": begins, "meeting": np.zeros(1, np.uint32), "T": T}
    names = [p.split()[-1].lstrip("*") for p in forward.parameters(schedule)]
    return given, [given[name] for name in names]


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_same_as_reference(cell, element, tmp_path):
    dtype = "float32" if element == "float" else "float64"
    close = {"rtol": 2e-5, "atol": 2e-6} if element == "float" else {"rtol": 1e-11, "atol": 1e-12}
    rng = np.random.default_rng(len(str(cell)))
    spec = RecurrentSpec(0, D, (cell,))
    weights = {p.name: rng.normal(0, 0.6, p.shape).astype(dtype) for p in cell.parameters(D)}
    x = rng.normal(size=(N, T, D)).astype(dtype)
    states = [rng.normal(size=(N, size)).astype(dtype) for size in cell.state_sizes]
    engine = ReferenceEngine(dtype)
    prepared = engine.prepare(spec, {f"layers.0.{name}": w for name, w in weights.items()})
    h, c = [*(s[:, None] for s in states), None][:2]
    wanted = engine.forward(spec, prepared, x, LENGTHS, (h, c), keep=True)
    for schedule in (inference(cell), inspection(cell)):
        given, arguments = arguments_of(cell, schedule, weights, x, states, dtype)
        built(forward.source(cell, schedule, element), tmp_path)(3, 5, arguments)
        for t, (n, q) in enumerate(zip(given["counts"], given["begins"], strict=True)):
            np.testing.assert_allclose(given["h"][q : q + n], wanted.output[:n, t], **close)
    kept = wanted.kept["forward"]
    for slot, name in enumerate(inspected(cell)):
        for t, (n, q) in enumerate(zip(given["counts"], given["begins"], strict=True)):
            found = given["record"][q : q + n, slot]
            np.testing.assert_allclose(found, kept[name][:n, t], **close, err_msg=name)
