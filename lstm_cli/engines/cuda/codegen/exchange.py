"""How the blocks of a persistent kernel hand over what each has computed, once a step.

The vectors of a group stand in two buffers: a step reads the one that the step before wrote. Three
kinds differ in where they stand:

``block``
    One block has all units. The buffers are in its shared memory, and ``__syncthreads`` orders
    everything.
``cluster``
    Every block of a thread-block cluster has the whole vectors in its own shared memory. It
    writes its units to its own buffer, waits for its own threads, and copies them 16 bytes at a
    time to the others' (``st.shared::cluster``). Then all threads of all blocks arrive with
    release and wait with acquire, so whatever was stored before an arrival is seen behind a wait.
``grid``
    The buffers are in global memory. Threads write them with ordinary stores and meet at
    ``__syncthreads``; one thread then adds to the group's counter with release at the device's
    scope, which, by cumulativity, covers what the block's other threads wrote before that
    barrier. One thread of each block waits for the count with acquire, and the barrier behind
    passes that on to its block. The vectors are read past the L1 cache (``ld.global.cg``), which
    no other block's stores reach. All blocks of a launch have to be resident.

One meeting a step is enough. What step s writes is the buffer that step s - 1 read; a block gets
to step s only behind the meeting at the end of step s - 1, to which every block came after its
last read: the products' operands are in registers, and the sums have gone through
``__syncthreads``, before a block writes anything or arrives. Nothing is handed over in the last
step, so no block stores into one that has ended; and no block stores into another before all of
a cluster have met once, for one might not have begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID, PersistentPlan

COUNTER_WORDS = 32
"""Counters are a cache line apart."""


@dataclass(frozen=True)
class ExchangeCode:
    """Code of one kind; the names in it are the kernel's.

    Attributes
    ----------
    buffers
        Declares ``element* exchange``, the group's two buffers.
    first, stride
        Which of a buffer's numbers a thread fills at the start.
    load
        A `Quad` of a vector at the address ``from``.
    arrive, wait
        After a step's values are written; before they are read.
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
        "element* exchange = (element*)exchanged\n"
        "    + (long long)(blockIdx.y * groups + group) * 2 * SEQUENCES * ROW;\n"
        "  unsigned* counter = counters + (blockIdx.y * groups + group) * COUNTER_WORDS;\n"
        "  unsigned met = 0;",
        "block * THREADS + thread",
        "BLOCKS * THREADS",
        "load_global((const Quad*)from)",
        "__syncthreads(); if (thread == 0) grid_arrive(counter);",
        "met += BLOCKS; if (thread == 0) grid_wait(counter, met); __syncthreads();",
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
"""The copies of `CLUSTER`; ``OWN`` is how many stretches of columns a block has in a vector."""


def cluster_copy_code(plan: PersistentPlan) -> str:
    """The device function that a kind needs."""
    return CLUSTER_COPY_CODE if plan.kind == CLUSTER else ""


def counter_words(plan: PersistentPlan, groups: int, directions: int) -> int:
    """Words of counters that a launch needs."""
    return groups * directions * COUNTER_WORDS if plan.kind == GRID else 0
