"""The GPU kernels of every cell compile, without a GPU.

``LSTM_COMPILE_GATE`` says how much is compiled:

one
    Every source for one architecture: the default.
every
    Every kernel of every cell for every architecture; those that differ in their tiles alone take
    turns. Continuous integration does this.
all
    Every source for every architecture.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context

import pytest
from cuda_cells import LARGE
from cuda_gate import CompileError, compile_log, compile_problem
from cuda_sources import sources

from lstm_cli.engines.cuda.codegen.primitives import PRELUDE

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
try:
    usable = nvrtc.nvrtcVersion()[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
except RuntimeError:  # the library is not there
    usable = False
if not usable:
    pytest.skip("NVRTC is not installed", allow_module_level=True)

MODE = os.environ.get("LSTM_COMPILE_GATE", "one")
ARCHITECTURES = {
    "no clusters": ("80",),
    "less memory": ("86", "89"),
    "clusters": ("90a", "100"),
    "small clusters": ("120",),
}
"""Architectures by device name; a source that only some devices need is compiled for theirs.

Plain 90 is missing, since no device is compiled for it: see `compile_target`.
"""
ALL = sum(ARCHITECTURES.values(), ())
DOUBLE = ("float64", "cross_entropy")
FRAME = 32
"""Largest stack frame in bytes in double precision: ptxas saves registers around calls of exp."""


def sources_for(architecture, cells):
    """Name, source and largest frame of each source to compile for an architecture."""
    (kind,) = (kind for kind, names in ARCHITECTURES.items() if architecture in names)
    alike = ARCHITECTURES[kind]
    needed = sorted((s for s in sources() if kind in s.devices and cells(s)), key=group_of)
    for k, (group, members) in enumerate(groupby(needed, group_of)):
        fit = list(members)
        others = ALL if all(len(s.devices) == len(ARCHITECTURES) for s in fit) else alike
        index, count = others.index(architecture) + k, len(others)
        if MODE != "all":
            shard = fit[index % count :: count]
            fit = shard or ([fit[index % len(fit)]] if MODE == "every" else [])
        for source in fit:
            yield group, source.text, FRAME if any(d in group for d in DOUBLE) else 0


def group_of(source):
    return source.group


def large(source):
    """True for a cell that is compiled for persistent kernels only."""
    return source.group.split()[0] in {name for name, *_ in LARGE}


def small(source):
    return not large(source)


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as workers:
        yield workers


@functools.cache
def problems(pool, architecture, cells):
    jobs = [
        pool.submit(compile_problem, name, text, architecture, max_frame)
        for name, text, max_frame in sources_for(architecture, cells)
    ]
    assert jobs
    return [problem for job in jobs if (problem := job.result())]


@pytest.mark.parametrize("architecture", ALL)
def test_every_kernel_compiles(architecture, pool):
    failures = problems(pool, architecture, small)
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("architecture", ALL)
def test_large_cells_stay_in_registers(architecture, pool):
    failures = problems(pool, architecture, large)
    assert not failures, "\n\n".join(failures)


def test_every_source_is_compiled_for_some_architecture():
    compiled = {
        text for a in ALL for cells in (small, large) for _, text, _ in sources_for(a, cells)
    }
    assert compiled == {source.text for source in sources()}


def test_gate_sees_an_error():
    with pytest.raises(CompileError, match="unknown"):
        compile_log('extern "C" __global__ void f() { unknown(); }', "90")


def test_gate_sees_an_array_that_is_not_in_registers():
    body = "float a[64]; for (int k = 0; k < 64; k++) a[k] = x[k] * x[k + 1]; x[0] = a[(int)x[1]];"
    source = f'{PRELUDE}extern "C" __global__ void f(float* x) {{ {body} }}'
    failure = compile_problem("f", source, "90", 0)
    assert failure is not None
    assert "bytes stack frame" in failure


def test_clusters_need_their_architecture():
    body = 'extern "C" __global__ void CLUSTER(2) f() { cluster_arrive(); cluster_wait(); }'
    assert compile_problem("f", PRELUDE + body, "90", 0) is None
    with pytest.raises(CompileError, match="cluster"):
        compile_log(PRELUDE + body, "80")
