"""Calls to CuPy and the driver, without a GPU: names, arguments, products, copies, launches."""

from __future__ import annotations

import ctypes
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from lstm_cli.engines.cuda.runtime import gpu
from lstm_cli.engines.cuda.runtime import kernel as kernels
from lstm_cli.engines.cuda.runtime.cublas import Blas, gemm_arguments
from lstm_cli.engines.cuda.runtime.device import Launch
from lstm_cli.engines.cuda.runtime.kernel import Arguments, GpuKernel, compile_target
from lstm_cli.engines.cuda.runtime.memory import row_layout
from lstm_cli.errors import DeviceError


def with_address(array: np.ndarray):
    """A NumPy array whose address is where CuPy's arrays have it."""
    return SimpleNamespace(
        shape=array.shape, strides=array.strides, dtype=array.dtype, ndim=array.ndim,
        data=SimpleNamespace(ptr=array.ctypes.data),
    )  # fmt: skip


def test_names_of_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    from cupy_backends.cuda.api import driver, runtime
    from cupy_backends.cuda.libs import nvrtc

    names_of = {
        driver: "launchKernel launchCooperativeKernel funcSetAttribute get_build_version "
        "occupancyMaxActiveBlocksPerMultiprocessor CUDADriverError",
        runtime: "memcpyAsync memcpy2DAsync memsetAsync memGetInfo getDevice setDevice "
        "getDeviceProperties deviceGetAttribute driverGetVersion runtimeGetVersion "
        "CUDARuntimeError",
        nvrtc: "createProgram compileProgram getProgramLog getCUBIN getPTX destroyProgram "
        "getVersion getSupportedArchs NVRTCError",
        cupy.cuda: "Device Stream Event get_elapsed_time get_current_stream alloc_pinned_memory",
        cupy.cuda.memory: "OutOfMemoryError",
        cupy.cuda.function.Module: "load get_function",
        cupy.get_default_memory_pool(): "free_all_blocks free_bytes",
    }
    missing = [n for o, names in names_of.items() for n in names.split() if not hasattr(o, n)]
    assert missing == []


def test_arguments() -> None:
    array = np.zeros(3)
    arguments = Arguments((with_address(array), None, -7, 2.5))
    addresses = (ctypes.c_void_p * 4).from_address(arguments.address)
    read = [ctypes.string_at(address, 8) for address in addresses]
    packed = struct.pack("=qd", -7, 2.5)
    assert read == [
        struct.pack("=Q", array.ctypes.data), bytes(8), packed[:8], packed[8:]
    ]  # fmt: skip


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_products_of_row_major_matrices(ta: bool, tb: bool) -> None:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    a = np.zeros((4, 9) if ta else (3, 9))[:, 2 : 5 if ta else 6]
    b = np.zeros((5, 7) if tb else (4, 7))[:, 1 : 5 if tb else 6]
    a[...], b[...] = A.T if ta else A, B.T if tb else B
    c = np.zeros((3, 8))[:, :5]
    p = gemm_arguments(
        with_address(a), with_address(b), with_address(c), transpose_a=ta, transpose_b=tb
    )

    def column_major(address: int, rows: int, columns: int, leading: int) -> np.ndarray:
        flat = np.ctypeslib.as_array((ctypes.c_double * (leading * columns)).from_address(address))
        return flat.reshape(columns, leading).T[:rows]

    first = column_major(p.first, *((p.k, p.m) if p.transpose_first else (p.m, p.k)), p.ld_first)
    second = column_major(
        p.second, *((p.n, p.k) if p.transpose_second else (p.k, p.n)), p.ld_second
    )
    out = (first.T if p.transpose_first else first) @ (second.T if p.transpose_second else second)
    assert np.allclose(out.T, A @ B)
    assert (p.out, p.ld_out) == (c.ctypes.data, 8)


def test_stacks_of_products() -> None:
    rows, out = np.zeros((3, 7, 4), np.float32), np.zeros((3, 9, 6), np.float32)
    b = np.zeros((6, 4), np.float32)
    chunk = with_address(rows[:, 2:5]), with_address(b), with_address(out[:, 2:5])
    p = gemm_arguments(*chunk, transpose_a=False, transpose_b=True)
    assert (p.count, p.stride_second, p.stride_out) == (3, 28, 54)
    assert (p.m, p.n, p.k, p.ld_first, p.ld_second, p.ld_out) == (6, 3, 4, 4, 4, 6)
    assert (p.second, p.out) == (rows[:, 2:].ctypes.data, out[:, 2:].ctypes.data)
    one = (with_address(rows[:, 2:3]), with_address(b), with_address(out[:, 2:3]))
    assert gemm_arguments(*one, transpose_a=False, transpose_b=True).stride_second == 28
    with pytest.raises(ValueError, match="no product"):
        gemm_arguments(*chunk, transpose_a=True, transpose_b=True)


def test_products_of_stacks_are_one_cublas_call() -> None:
    blas = object.__new__(Blas)
    blas._library, blas._handle = FakeDriver(), 5
    blas._factors = {"float32": np.array([0, 1], np.float32)}
    rows, b, out = (np.zeros(size, np.float32) for size in ((3, 7, 4), (6, 4), (3, 7, 6)))
    stack = with_address(rows), with_address(b), with_address(out)
    blas.multiply(gemm_arguments(*stack, transpose_a=False, transpose_b=True), "tf32", add=False)
    (name, *arguments), one = blas._library.calls[0], blas._factors["float32"].ctypes.data + 4
    # As in cublas_v2.h, with the leading dimension and the stride after each operand.
    assert name == "gemmStridedBatchedEx"
    assert arguments[:7] == [5, 1, 0, 6, 7, 4, one]
    assert arguments[7:11] == [b.ctypes.data, 0, 4, 0]
    assert arguments[11:15] == [rows.ctypes.data, 0, 4, 28]
    assert arguments[15:20] == [one - 4, out.ctypes.data, 0, 6, 42]
    assert arguments[20:] == [3, 77, -1]


def test_streams_have_cublas_handles_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    non_blocking_flags: list[bool] = []

    def create(*, non_blocking: bool) -> object:
        non_blocking_flags.append(non_blocking)
        return object()

    monkeypatch.setattr(gpu, "Blas", object)
    streams = gpu.Streams(SimpleNamespace(cuda=SimpleNamespace(Stream=create)))
    main, handle = streams.current, streams.blas
    with streams.use(2):
        other = streams.current
        assert streams.blas is not handle
        assert streams.main is main is not other
        with streams.use(0):
            assert streams.current is main
        assert streams.current is other
    with pytest.raises(KeyError), streams.use(2):
        raise KeyError
    assert streams.current is main
    assert streams.blas is handle
    # The main stream is synchronized with the legacy default stream.
    assert non_blocking_flags == [False, True]


def test_each_thread_chooses_its_own_stream() -> None:
    streams = gpu.Streams(
        SimpleNamespace(cuda=SimpleNamespace(Stream=lambda non_blocking: object()))
    )
    with streams.use(2), ThreadPoolExecutor(1) as other:
        assert streams.current is not streams.main
        assert other.submit(lambda: streams.current).result() is streams.main
    assert streams.current is streams.main


def test_rows_of_views() -> None:
    whole = np.zeros((6, 2, 5), np.float32)
    assert row_layout(with_address(whole)) == (1, 240, 240)
    assert row_layout(with_address(whole[:, 1])) == (6, 20, 40)
    assert row_layout(with_address(whole[:, :, 1:3])) == (12, 8, 20)
    assert row_layout(with_address(whole[2:4])) == (1, 80, 80)
    with pytest.raises(ValueError, match="no rows"):
        row_layout(with_address(np.zeros((4, 6, 8))[:, :3, :2]))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120"), ((11, 0), "compute_100")],
)
def test_targets(capability: tuple[int, int], expected: str) -> None:
    assert compile_target(capability, (75, 80, 86, 90, 100, 120)) == expected


def test_no_target() -> None:
    with pytest.raises(ValueError, match=r"7\.5"):
        compile_target((7, 5), (80, 90))


class FakeDriver:
    """Records every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def occupancyMaxActiveBlocksPerMultiprocessor(self, *a: int) -> int:  # noqa: N802
        return 2

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def kernel():
    fake = SimpleNamespace(
        cuda=FakeDriver(), stream_address=77, multiprocessors=3, shared_bytes=200_000,
        largest_cluster=16, make_current=lambda: None,
        failures=lambda message: nullcontext(), errors=(KeyError,),
    )  # fmt: skip
    module = SimpleNamespace(get_function=lambda name: SimpleNamespace(ptr=5))
    return GpuKernel(fake, "step", module)


def test_launches(kernel: GpuKernel) -> None:
    kernel(Launch((6, 2, 1), 64, shared=1000), 1)
    kernel(Launch((6, 1, 1), 64, shared=100_000, cooperative=True), 1)
    kernel(Launch((32, 1, 1), 64, shared=90_000, cluster=16), 1)
    calls = [call[:9] for call in kernel._gpu.cuda.calls]
    assert calls == [
        ("launchKernel", 5, 6, 2, 1, 64, 1, 1, 1000),
        ("funcSetAttribute", 5, 8, 100_000),
        ("launchCooperativeKernel", 5, 6, 1, 1, 64, 1, 1, 100_000),
        ("funcSetAttribute", 5, 14, 1),
        ("launchKernel", 5, 32, 1, 1, 64, 1, 1, 90_000),
    ]


def test_blocks_that_cannot_be_resident(kernel: GpuKernel) -> None:
    with pytest.raises(DeviceError, match="7 blocks of step cannot run at the same time"):
        kernel(Launch((7, 1, 1), 64, cooperative=True), 1)
    assert kernel._gpu.cuda.calls == []


def test_sizes_of_driver_records() -> None:
    assert ctypes.sizeof(kernels._LaunchAttribute) == 72
    assert ctypes.sizeof(kernels._LaunchConfig) == 56
    assert kernels._LaunchConfig.stream.offset == 32
    assert kernels._LaunchAttribute.cluster.offset == 8
