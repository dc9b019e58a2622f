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
from cuda_gate import CompileError, compiled, problem
from cuda_sources import sources
from strategies_cuda import LARGE

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
"""By the name of a device that has them; what some devices alone need is compiled for theirs.

Plain 90 is missing: no device is compiled for it, see `lstm_cli.engines.cuda.runtime.kernel.compile_target`.
"""
ALL = sum(ARCHITECTURES.values(), ())
DOUBLE = ("float64", "cross_entropy")
FRAME = 32
"""Bytes, in what computes in double precision: beside a call of its division or exp, ptxas saves
a few registers."""


def shared_out(architecture, cells):
    """What is compiled for an architecture: name, source, and the largest frame."""
    (kind,) = (kind for kind, alike in ARCHITECTURES.items() if architecture in alike)
    alike = ARCHITECTURES[kind]
    wanted = sorted((s for s in sources() if kind in s.devices and cells(s)), key=group_of)
    for k, (group, same) in enumerate(groupby(wanted, group_of)):
        fit = list(same)
        others = ALL if all(len(s.devices) == len(ARCHITECTURES) for s in fit) else alike
        turn, turns = others.index(architecture) + k, len(others)
        if MODE != "all":
            own = fit[turn % turns :: turns]
            fit = own or ([fit[turn % len(fit)]] if MODE == "every" else [])
        for source in fit:
            yield group, source.text, FRAME if any(d in group for d in DOUBLE) else 0


def group_of(source):
    return source.group


def large(source):
    """Whether it is of a cell that only fast kernels are compiled for."""
    return source.group.split()[0] in {name for name, *_ in LARGE}


def small(source):
    return not large(source)


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as made:
        yield made


@functools.cache
def problems(pool, architecture, cells):
    made = [
        pool.submit(problem, name, text, architecture, most)
        for name, text, most in shared_out(architecture, cells)
    ]
    assert made
    return [found for one in made if (found := one.result())]


@pytest.mark.parametrize("architecture", ALL)
def test_every_kernel_compiles(architecture, pool):
    found = problems(pool, architecture, small)
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("architecture", ALL)
def test_large_cells_stay_in_registers(architecture, pool):
    found = problems(pool, architecture, large)
    assert not found, "\n\n".join(found)


def test_every_source_is_compiled_for_some_architecture():
    taken = {text for a in ALL for cells in (small, large) for _, text, _ in shared_out(a, cells)}
    assert taken == {source.text for source in sources()}


def test_gate_sees_an_error():
    with pytest.raises(CompileError, match="unknown"):
        compiled('extern "C" __global__ void f() { unknown(); }', "90")


def test_gate_sees_an_array_that_is_not_in_registers():
    body = "float a[64]; for (int k = 0; k < 64; k++) a[k] = x[k] * x[k + 1]; x[0] = a[(int)x[1]];"
    source = f'{PRELUDE}extern "C" __global__ void f(float* x) {{ {body} }}'
    found = problem("f", source, "90", 0)
    assert found is not None
    assert "bytes stack frame" in found


def test_clusters_need_their_architecture():
    body = 'extern "C" __global__ void CLUSTER(2) f() { cluster_arrive(); cluster_wait(); }'
    assert problem("f", PRELUDE + body, "90", 0) is None
    with pytest.raises(CompileError, match="cluster"):
        compiled(PRELUDE + body, "80")
