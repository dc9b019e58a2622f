"""Device functions that all kernels share, as the host device emulates them."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from cuda_host.device import HostDevice, rounded_tf32

from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.runtime.device import Launch

pytestmark = pytest.mark.skipif(build.COMPILER is None, reason="g++ is not installed")

BLOCKS, THREADS = 4, 64
ONE = Launch((1, 1, 1), 32)


def kernel(body, parameters, device=None, cluster=1):
    """Compile a kernel with this body; its argument `n`, if any, counts arrivals."""
    clusters = f"CLUSTER({cluster}) " if cluster > 1 else ""
    source = f'{PRELUDE}extern "C" __global__ void {clusters}k({parameters}) {{\n{body}\n}}\n'
    return (device or HostDevice()).compile(source, ["k"])["k"]


def converted(name, values, result):
    """Values after a conversion."""
    device = HostDevice()
    types = {"uint16": "unsigned short", "float32": "float"}
    body = f"const long long k = (long long)blockIdx.x * 256 + threadIdx.x; y[k] = {name}(x[k]);"
    run = kernel(body, f"const {types[values.dtype.name]}* x, {types[result]}* y", device)
    padded = np.resize(values, -(-len(values) // 256) * 256)
    y = device.empty(padded.shape, result)
    run(Launch((len(padded) // 256, 1, 1), 256), device.upload(padded), y)
    return device.download(y)[: len(values)]


def floats():
    """float32 of every kind: each exponent, halfway between neighbors, special values."""
    rng = np.random.default_rng(3)
    any_bits = rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        between = (halves[:-1] + halves[1:]) / 2
        near = np.concatenate([np.nextafter(between, s * np.inf) for s in np.float32([-1, 1])])
    ties = (np.arange(2**16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    tf32 = (np.arange(2**18, dtype=np.uint32) << 14 | 0x1000).view(np.float32)
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-45, 3e38])
    return np.concatenate([any_bits, halves, between, near, ties, tf32, special])


def test_widen():
    halves = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(
        converted("widen_f16", halves, "float32"), halves.view(np.float16).astype(np.float32)
    )
    wide = converted("widen_bf16", halves, "float32")
    np.testing.assert_array_equal(wide.view(np.uint32), halves.astype(np.uint32) << 16)


def test_narrow_f16():
    x = floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    actual = converted("narrow_f16", x, "uint16").view(np.float16)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual)[~np.isnan(x)], np.signbit(x)[~np.isnan(x)])


def test_narrow_bf16():
    """Compare distances in float64: the nearest is right, the even one of two equally near."""
    x = floats()
    actual = converted("narrow_bf16", x, "uint16")
    wide = (actual.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(x))
    fine = np.isfinite(x) & np.isfinite(wide)
    below = ((actual - 1).astype(np.uint32) << 16).view(np.float32)
    above = ((actual + 1).astype(np.uint32) << 16).view(np.float32)
    exact = np.where(fine, x, 0).astype(float)
    off = np.abs(exact - np.where(fine, wide, 0))
    for other in (below, above):
        distance = np.abs(exact - np.where(np.isfinite(other), other, 0))
        comparable = fine & np.isfinite(other)
        assert (off[comparable] <= distance[comparable]).all()
        tie = comparable & (off == distance) & (off > 0)
        assert tie.any()
        assert (actual[tie] % 2 == 0).all()
    limit = float(2**128 - 2**119)  # halfway between the largest bfloat16 and 2^128
    large = np.abs(np.where(np.isnan(x), 0, x).astype(float)) >= limit
    np.testing.assert_array_equal(np.isinf(wide), large)


def test_round_tf32():
    x = floats()
    actual = converted("round_tf32", x, "float32")
    with np.errstate(over="ignore"):
        expected = rounded_tf32(x)
    np.testing.assert_array_equal(actual, expected)
    bits = actual.view(np.uint32)
    assert (bits & 0x1FFF == 0).all()
    fine = np.isfinite(x) & np.isfinite(actual)
    step = np.ldexp(1.0, np.maximum(np.frexp(x[fine])[1], -125) - 11)
    off = np.abs(actual[fine].astype(float) - x[fine])
    assert (off <= step / 2).all()
    tie = off == step / 2
    assert tie.any()
    assert (np.abs(actual[fine][tie]) > np.abs(x[fine][tie])).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["mma_f16", "mma_bf16", "mma_tf32"])
def test_mma(name, seed):
    rng = np.random.default_rng(seed)
    device, K = HostDevice(seed=seed), 8 if name == "mma_tf32" else 16
    a, b = rng.normal(size=(16, K)).astype("f4"), rng.normal(size=(K, 8)).astype("f4")
    d = rng.normal(size=(16, 8)).astype("f4")
    # Fragments as the PTX ISA places them: https://docs.nvidia.com/cuda/parallel-thread-execution
    if K == 16:
        narrow = name.removeprefix("mma_")
        fragments = f"""
  unsigned A[4], B[2];
  for (int r = 0; r < 4; r++) {{
    const float* at = a + (g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8;
    A[r] = narrow_{narrow}(at[0]) | (unsigned)narrow_{narrow}(at[1]) << 16;
  }}
  for (int r = 0; r < 2; r++) {{
    const float* at = b + (2 * t + r * 8) * 8 + g;
    B[r] = narrow_{narrow}(at[0]) | (unsigned)narrow_{narrow}(at[8]) << 16;
  }}"""
    else:
        fragments = """
  unsigned A[4], B[2];
  for (int r = 0; r < 4; r++)
    A[r] = __float_as_uint(round_tf32(a[(g + r % 2 * 8) * 8 + t + r / 2 * 4]));
  for (int r = 0; r < 2; r++) B[r] = __float_as_uint(round_tf32(b[(t + r * 4) * 8 + g]));"""
    body = f"""
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, w = threadIdx.x / 32;
  {fragments}
  float* own = d + w * 128;
  float D[4] = {{own[g * 8 + 2 * t], own[g * 8 + 2 * t + 1],
                own[(g + 8) * 8 + 2 * t], own[(g + 8) * 8 + 2 * t + 1]}};
  for (int k = 0; k <= w; k++) {name}(D, A, B);
  for (int r = 0; r < 4; r++) own[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = D[r];"""
    both = device.upload(np.stack([d, d]))
    kernel(body, "const float* a, const float* b, float* d", device)(
        Launch((1, 1, 1), 64), device.upload(a), device.upload(b), both
    )
    if name == "mma_f16":
        left, right = a.astype(np.float16), b.astype(np.float16)
    elif name == "mma_bf16":
        left, right = (
            (converted("narrow_bf16", m.ravel(), "uint16").astype("u4") << 16).view("f4")
            for m in (a, b)
        )
    else:
        left, right = rounded_tf32(a), rounded_tf32(b)
    product = left.reshape(a.shape).astype(float) @ right.reshape(b.shape).astype(float)
    for w in range(2):
        np.testing.assert_allclose(both.values[w], d + (w + 1) * product, rtol=1e-5, atol=1e-5)


def test_mma_tf32_reads_only_the_upper_bits():
    device = HostDevice()
    body = """
  unsigned A[4] = {0x3f801fffu, 0, 0, 0}, B[2] = {0x3f800000u, 0};
  float D[4] = {0, 0, 0, 0};
  mma_tf32(D, A, B);
  if (threadIdx.x == 0) d[0] = D[0];"""
    d = device.empty((1,), "float32")
    kernel(body, "float* d", device)(ONE, d)
    assert d.values[0] == 4.0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("c_type", "dtype"), [("float", "f4"), ("double", "f8"), ("unsigned", "u4")]
)
def test_shuffle(c_type, dtype, seed):
    device = HostDevice(seed=seed)
    x = np.random.default_rng(1).normal(size=64).view("u8").astype("u4").astype(dtype)
    y = device.empty((64,), x.dtype.name)
    body = f"""
  {c_type} sum = x[threadIdx.x];
  for (int lanes = 16; lanes; lanes /= 2) sum += shuffle_xor(sum, lanes);
  y[threadIdx.x] = sum - shuffle_xor(x[threadIdx.x], 3);"""
    kernel(body, f"const {c_type}* x, {c_type}* y", device)(
        Launch((1, 1, 1), 64), device.upload(x), y
    )
    sums = x.reshape(2, 32).astype(dtype)
    expected = np.repeat(sums.sum(axis=1, dtype=dtype), 32) - x[np.arange(64) ^ 3]
    np.testing.assert_allclose(y.values, expected, rtol=1e-6, atol=1e4 if dtype == "f4" else 0)


BARRIER = """
  __syncthreads();
  if (threadIdx.x == 0) {
    grid_arrive(n);
    arrivals += gridDim.x;
    grid_wait(n, arrivals);
  }
  __syncthreads();"""


def rounds(barrier, seed, first=0):
    """Values after rounds in which blocks add their neighbors' values, and the expected ones."""
    device, T = HostDevice(seed=seed), 30
    body = f"""
  unsigned arrivals = n[0];
  __syncthreads();
  if (threadIdx.x == 0) {{ grid_arrive(n + 1); grid_wait(n + 1, gridDim.x); }}
  __syncthreads();
  const unsigned all = gridDim.x * blockDim.x, me = blockIdx.x * blockDim.x + threadIdx.x;
  for (long long t = 0; t < T; t++) {{
    const unsigned* from = x + t % 2 * all;
    x[(t + 1) % 2 * all + me] = 3u * load_global(from + (me + 77) % all) + load_global(from + me);
    {barrier}
  }}"""
    run = kernel(body, "unsigned* x, unsigned* n, long long T", device)
    start = np.random.default_rng(2).integers(0, 2**32, BLOCKS * THREADS, np.uint32)
    x = device.zeros((2, BLOCKS * THREADS), "uint32")
    x.values[0] = expected = start
    n = device.upload(np.array([first, 0], np.uint32))
    run(Launch((BLOCKS, 1, 1), THREADS, cooperative=True), x, n, T)
    for _ in range(T):
        expected = np.uint32(3) * np.roll(expected, -77) + expected
    return x.values[T % 2], expected


@pytest.mark.parametrize("first", [0, 2**31 - 50, 2**32 - 50])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grid_barrier(seed, first):
    np.testing.assert_array_equal(*rounds(BARRIER, seed, first))


@pytest.mark.parametrize(
    "barrier",
    ["__syncthreads();", BARRIER.replace("__syncthreads();", "", 1), BARRIER.rpartition("__")[0]],
    ids=["no grid barrier", "none before it", "none behind it"],
)
def test_missing_barrier_shows(barrier):
    results = [rounds(barrier, seed) for seed in range(6)]
    assert not all((actual == expected).all() for actual, expected in results)


def reversed_in_block(barrier, seed):
    """True if rounds of reversing through shared memory give the expected values."""
    device = HostDevice(seed=seed)
    body = f"""
  DYNAMIC_SHARED(memory);
  unsigned* shared = (unsigned*)memory;
  unsigned own = threadIdx.x + 1;
  for (int t = 0; t < 5; t++) {{
    shared[threadIdx.x] = own;
    {barrier}
    own = own * 5u + shared[blockDim.x - 1 - threadIdx.x];
    {barrier}
  }}
  y[threadIdx.x] = own;"""
    y = device.empty((96,), "uint32")
    kernel(body, "unsigned* y", device)(Launch((1, 1, 1), 96, shared=4 * 96), y)
    expected = np.arange(1, 97, dtype=np.uint32)
    for _ in range(5):
        expected = expected * np.uint32(5) + expected[::-1]
    return (y.values == expected).all()


def test_block_barrier():
    assert all(reversed_in_block("__syncthreads();", seed) for seed in range(4))
    assert not all(reversed_in_block("", seed) for seed in range(4))
    assert not all(reversed_in_block("__syncwarp();", seed) for seed in range(4))


CLUSTER_ROUNDS = """
  DYNAMIC_SHARED(memory);
  unsigned* shared = (unsigned*)memory;
  const unsigned me = threadIdx.x, rank = cluster_rank();
  unsigned own = (blockIdx.x * blockDim.x + me) * 7u;
  cluster_arrive();
  cluster_wait();
  for (int t = 0; t < 6; t++) {
    store_cluster(shared + t % 2 * blockDim.x + me, (rank + 1) % 4, own);
    cluster_arrive();
    cluster_wait();
    own = own * 3u + shared[t % 2 * blockDim.x + (me ^ 1)];
  }
  y[blockIdx.x * blockDim.x + me] = own;"""


def in_clusters(body, seed):
    """True if rounds in two clusters of four blocks give the expected values."""
    device = HostDevice(seed=seed)
    y = device.empty((8, 32), "uint32")
    kernel(body, "unsigned* y", device, 4)(Launch((8, 1, 1), 32, 256, 4), y)
    expected = np.arange(256, dtype=np.uint32).reshape(2, 4, 32) * np.uint32(7)
    for _ in range(6):
        expected = expected * np.uint32(3) + np.roll(expected, 1, 1)[..., np.arange(32) ^ 1]
    return (y.values == expected.reshape(8, 32)).all()


def test_clusters():
    assert all(in_clusters(CLUSTER_ROUNDS, seed) for seed in range(4))
    late = CLUSTER_ROUNDS.replace("cluster_wait();\n    own", "__syncthreads();\n    own")
    late = late.replace("(me ^ 1)];", "(me ^ 1)];\n    cluster_wait();")
    assert not all(in_clusters(late, seed) for seed in range(4))


@pytest.mark.parametrize(
    ("c_type", "value"),
    [
        ("float", "1.5f"),
        ("double", "1.5"),
        ("unsigned short", "(unsigned short)9"),
        ("Pair", "Pair{1, 2}"),
        ("Quad", "Quad{1, 2, 3, 4}"),
    ],
)
def test_store_and_load_of_every_type(c_type, value):
    device = HostDevice()
    body = f"""
  DYNAMIC_SHARED(memory);
  const {c_type} value = {value};
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 5) store_cluster(({c_type}*)memory + 3, 1 - cluster_rank(), value);
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {{
    y[2 * blockIdx.x] = (({c_type}*)memory)[3];
    y[2 * blockIdx.x + 1] = load_global(x);
  }}"""
    x, y = device.zeros((16,), "uint8"), device.zeros((64,), "uint8")
    run = kernel(body, f"const {c_type}* x, {c_type}* y", device, 2)
    run(Launch((2, 1, 1), 32, 64, 2), x, y)
    size = {"float": 4, "double": 8, "unsigned short": 2, "Pair": 8, "Quad": 16}[c_type]
    actual = y.values[: 4 * size].reshape(2, 2, size)
    assert actual[0, 0].any()
    assert not actual[:, 1].any()
    np.testing.assert_array_equal(actual[0, 0], actual[1, 0])
