"""Exchange of values between the blocks of a persistent kernel, once per step; speed unmeasured.

The vectors of a group are in two buffers: a step reads the buffer that the step before wrote. The
three kinds of exchange differ in the memory of these buffers:

``block``
    One block has all units. The buffers are in its shared memory, and ``__syncthreads`` orders all
    accesses.
``cluster``
    Every block of a thread-block cluster has the whole vectors in its own shared memory. A block
    writes its units to its own buffer and synchronizes its threads. Then it copies the units, 16
    bytes at a time, to the other blocks (``st.shared::cluster``). Finally all threads of all blocks
    arrive with release and wait with acquire. So stores before an arrival are visible after a wait.
``grid``
    The buffers are in global memory. Threads write them with ordinary stores, then synchronize
    (``__syncthreads``). One thread adds to the group's counter with release at device scope. By
    cumulativity, this covers the writes of the block's other threads before the barrier. One thread
    of each block waits for the count with acquire, and a barrier passes that on to its block. Loads
    bypass the L1 cache (``ld.global.cg``), which other blocks' stores do not reach. All
    blocks of a launch have to be resident.

One barrier per step is enough. Step s writes the buffer that step s - 1 read. A block reaches step
s only after the barrier at the end of step s - 1. Every block arrives there after its last read:
the products' operands are in registers, and the sums have passed ``__syncthreads``, before a block
writes or arrives. The last step exchanges nothing, so no block stores into a block that has ended.
Another block may not have started before the cluster's first barrier, so no block stores into it
earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID, PersistentPlan

COUNTER_WORDS = 32
"""32-bit words per counter: each has its own cache line."""


@dataclass(frozen=True)
class ExchangeCode:
    """CUDA C++ of one kind of exchange, which uses variables of the kernel.

    Attributes
    ----------
    buffers
        Declaration of ``element* exchange``, the group's two buffers.
    first, stride
        Index of the first number of the buffers that a thread initializes, and the step to the
        thread's next number.
    load
        Load of a `Quad` of a vector at the address ``from``.
    arrive, wait
        Statements to run after a step's values are written, and before the values are read.
    """

    buffers: str
    first: str
    stride: str
    load: str
    arrive: str
    wait: str


EXCHANGES: Mapping[str, ExchangeCode] = {
    BLOCK: ExchangeCode(
        "element* exchange = (element*)next_memory;\n"
        "  next_memory += 2 * SEQUENCES * ROW * (int)sizeof(element);",
        "thread",
        "THREADS",
        "*(const Quad*)from",
        "",
        "__syncthreads();",
    ),
    CLUSTER: ExchangeCode(
        "element* exchange = (element*)next_memory;\n"
        "  next_memory += 2 * SEQUENCES * ROW * (int)sizeof(element);",
        "thread",
        "THREADS",
        "*(const Quad*)from",
        "__syncthreads(); spread(after, block, now); cluster_arrive();",
        "cluster_wait();",
    ),
    GRID: ExchangeCode(
        "element* exchange = (element*)exchange_buffer\n"
        "    + (long long)(blockIdx.y * groups + group) * 2 * SEQUENCES * ROW;\n"
        "  unsigned* counter = counters + (blockIdx.y * groups + group) * COUNTER_WORDS;\n"
        "  unsigned arrivals = 0;",
        "block * THREADS + thread",
        "BLOCKS * THREADS",
        "load_global((const Quad*)from)",
        "__syncthreads(); if (thread == 0) grid_arrive(counter);",
        "arrivals += BLOCKS; if (thread == 0) grid_wait(counter, arrivals); __syncthreads();",
    ),
}

CLUSTER_COPY_CODE = """
// A block's own columns of the first `now` vectors, copied to all other blocks of its cluster.
__device__ __forceinline__ void spread(element* after, int block, int now) {
  constexpr int WIDE = sizeof(Quad) / sizeof(element), QUADS = UNITS / WIDE;
  for (int i = threadIdx.x; i < now * OWN * QUADS * (BLOCKS - 1); i += THREADS) {
    const int quad = i % QUADS, own = i / QUADS % OWN, n = i / (QUADS * OWN) % now;
    const int other = i / (QUADS * OWN) / now;
    Quad* at = (Quad*)(after + n * ROW + own * (BLOCKS * UNITS) + block * UNITS + quad * WIDE);
    store_cluster(at, (unsigned)(other + (other >= block)), *at);
  }
}
"""
"""CUDA C++ of the copies within a cluster; a block has ``OWN`` ranges of columns in a vector."""


def cluster_copy_code(plan: PersistentPlan) -> str:
    """CUDA C++ of the device function that copies within a cluster; empty for other kinds."""
    return CLUSTER_COPY_CODE if plan.kind == CLUSTER else ""


def counter_words(plan: PersistentPlan, groups: int, directions: int) -> int:
    """Number of 32-bit words of counters per launch; 0 without exchange through global memory."""
    return groups * directions * COUNTER_WORDS if plan.kind == GRID else 0
