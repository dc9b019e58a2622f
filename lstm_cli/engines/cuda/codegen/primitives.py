"""Prelude of every kernel source: device functions in inline PTX. The tests emulate them.

NVRTC compiles without headers. So instructions without a built-in function of CUDA C++ are inline
assembly here. The PTX ISA documents them under these names:

==================  ==========================================================================
``widen_f16``       ``cvt.f32.f16``; bfloat16 is the upper half of a float32
``narrow_...``      ``cvt.rn.f16.f32``, ``cvt.rn.bf16.f32``: to nearest, ties to even; too large
                    numbers become infinity
``round_tf32``      ``cvt.rna.tf32.f32``: to nearest, ties away from zero
``load_global``     ``ld.global.cg``: from the L2 cache, which all blocks share
``grid_arrive``     ``red.release.gpu``: a thread that acquires the count sees earlier writes
``grid_wait``       ``ld.acquire.gpu``
``mma_...``         ``mma.sync.aligned.m16n8k16``, for tf32 ``m16n8k8``; ``row.col``, sums in f32
``cluster_arrive``  ``barrier.cluster.arrive.release``
``cluster_wait``    ``barrier.cluster.wait.acquire``
``store_cluster``   ``mapa.shared::cluster``, ``st.shared::cluster``
==================  ==========================================================================

All of them exist from compute capability 8.0, those for clusters from 9.0. A source that uses
clusters does not compile for less. Barriers between blocks:

- In a grid: ``__syncthreads(); if (threadIdx.x == 0) { grid_arrive(n); grid_wait(n, target); }
  __syncthreads();``. One thread calls these functions for its block. The barrier before them
  extends its release to the writes of the block's other threads; the barrier after them passes on
  what it acquired. Counters may wrap: a count up to 2^31 past the target has reached it.
- In a cluster: every thread of every block calls ``cluster_arrive`` and then ``cluster_wait``. One
  such barrier must precede the first ``store_cluster``, since a block may not have started yet. One
  must follow the last, since a block that has ended has no memory.
"""

from __future__ import annotations

_COMMON = """
struct alignas(8) Pair { unsigned x, y; };
struct alignas(16) Quad { unsigned x, y, z, w; };
"""

_CONVERSIONS = """
#define DEVICE __device__ __forceinline__
#define CLUSTER(n) __cluster_dims__(n, 1, 1)
#define DYNAMIC_SHARED(name) \\
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \\
  unsigned char* name = dynamic_shared

DEVICE float widen_f16(unsigned short x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
  return wide;
}
DEVICE unsigned short narrow_f16(float x) {
  unsigned short narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
  return narrow;
}
DEVICE float widen_bf16(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
DEVICE unsigned short narrow_bf16(float x) {
  unsigned short narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
  return narrow;
}
DEVICE float round_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits & 0xffffe000u);  // the instruction does not promise zeros there
}
"""

_MEMORY = """
template <class T> struct Global;
#define GLOBAL(type, letter, suffix) \\
  template <> struct Global<type> { \\
    static DEVICE type load(const type* p) { \\
      type value; \\
      asm volatile("ld.global.cg." suffix " %0, [%1];" : letter(value) : "l"(p) : "memory"); \\
      return value; \\
    } \\
  };
GLOBAL(float, "=f", "f32")
GLOBAL(double, "=d", "f64")
GLOBAL(unsigned, "=r", "u32")
GLOBAL(unsigned short, "=h", "u16")
#undef GLOBAL
template <> struct Global<Pair> {
  static DEVICE Pair load(const Pair* p) {
    Pair v;
    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
  }
};
template <> struct Global<Quad> {
  static DEVICE Quad load(const Quad* p) {
    Quad v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
  }
};
template <class T> DEVICE T load_global(const T* p) { return Global<T>::load(p); }

DEVICE void grid_arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}
DEVICE void grid_wait(const unsigned* counter, unsigned target) {
  for (unsigned tries = 0;; tries++) {
    unsigned seen;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if ((int)(seen - target) >= 0) return;
    if (tries >> 27) __trap();  // minutes: an error is better than a device that hangs
  }
}
"""

_WARPS = """
#define MMA(name, shape) \\
  DEVICE void name(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \\
    asm volatile("mma.sync.aligned." shape \\
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \\
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \\
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \\
  }
MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MMA

DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE double shuffle_xor(double x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE unsigned shuffle_xor(unsigned x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
"""

_CLUSTERS = """
#if __CUDA_ARCH__ >= 900
DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

template <class T> struct Shared;
#define SHARED(type, letter, suffix) \\
  template <> struct Shared<type> { \\
    static DEVICE void store(unsigned at, type value) { \\
      asm volatile("st.shared::cluster." suffix " [%0], %1;" \\
                   :: "r"(at), letter(value) : "memory"); \\
    } \\
  };
SHARED(float, "f", "f32")
SHARED(double, "d", "f64")
SHARED(unsigned, "r", "u32")
SHARED(unsigned short, "h", "u16")
#undef SHARED
template <> struct Shared<Pair> {
  static DEVICE void store(unsigned at, Pair v) {
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};"
                 :: "r"(at), "r"(v.x), "r"(v.y) : "memory");
  }
};
template <> struct Shared<Quad> {
  static DEVICE void store(unsigned at, Quad v) {
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  }
};
template <class T> DEVICE void store_cluster(T* own, unsigned rank, T value) {
  unsigned at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(at) : "r"((unsigned)__cvta_generic_to_shared(own)), "r"(rank));
  Shared<T>::store(at, value);
}
#endif
"""

PRELUDE = _COMMON + "#ifndef LSTM_HOST\n" + _CONVERSIONS + _MEMORY + _WARPS + _CLUSTERS + "#endif\n"
"""CUDA C++ before every kernel source. The tests' shim defines ``LSTM_HOST`` and the same functions
for the host."""

GRID_STRIDE_LOOP = """for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < size;
       k += (long long)gridDim.x * blockDim.x)"""
"""CUDA C++ of the loop over the elements k, of ``size``, that a thread computes."""
