"""Status of the cuda engine without a usable GPU: each missing part, and its cure."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from lstm_cli.engines import selection
from lstm_cli.engines.cuda.runtime import kernel, status
from lstm_cli.engines.cuda.runtime.device import Launch
from lstm_cli.engines.cuda.runtime.status import DriverGpu, DriverInfo, DriverUnavailable
from lstm_cli.errors import DeviceError

H200 = DriverGpu(0, "NVIDIA H200", (9, 0), 150 << 30)
T4 = DriverGpu(1, "Tesla T4", (7, 5), 16 << 30)


@pytest.fixture
def machine(monkeypatch):
    """Returns the status on a machine with this driver, these GPUs, and CuPy or not."""

    def make(version=(13, 0), gpus=(H200, T4), *, cupy=True, problem=None):
        monkeypatch.setattr(status, "read_driver", lambda: DriverInfo(version, tuple(gpus)))
        monkeypatch.setattr(status, "find_spec", lambda name: object() if cupy else None)
        if cupy and problem is None:
            monkeypatch.setattr(status, "_cupy_versions", lambda driver: {"cupy": "14.2.0"})
            known = {0: status._gpu_status(H200, 140 << 30, "")}
            query = status._query_gpu
            monkeypatch.setattr(
                status, "_query_gpu", lambda gpu: known.get(gpu.ordinal) or query(gpu)
            )
        return status.cuda_status()

    return make


def test_no_driver(monkeypatch) -> None:
    def fail():
        raise DriverUnavailable("no NVIDIA driver is installed (libcuda.so.1 is not found)")

    monkeypatch.setattr(status, "read_driver", fail)
    result = status.cuda_status()
    assert (result.problem, result.gpus) == (str(DriverUnavailable(result.problem)), ())
    assert result.hint == status.DRIVER_HINT


def test_no_gpu(machine) -> None:
    assert machine(gpus=()).problem == "the NVIDIA driver finds no GPU"


def test_an_old_driver(machine) -> None:
    result = machine(version=(11, 8))
    assert result.problem == "the NVIDIA driver runs CUDA 11.8 only, 12.0 or later is needed"
    assert [gpu.usable for gpu in result.gpus] == [False, False]


@pytest.mark.parametrize(("version", "extra"), [((13, 1), "cuda13"), ((12, 8), "cuda12")])
def test_no_cupy(machine, version, extra) -> None:
    result = machine(version=version, cupy=False)
    assert (result.problem, result.hint) == (
        "CuPy is not installed", f"pip install 'lstm-cli[{extra}]'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "build", "problem", "hint"),
    [
        ("13.2.0", 12000, "CuPy 13.2.0 is too old, 13.4 or later is needed", "--upgrade"),
        ("14.2.0", 13000, "made for CUDA 13, the NVIDIA driver runs CUDA 12.4", "lstm-cli[cuda12]"),
    ],
)
def test_an_unsupported_cupy(version, build, problem, hint) -> None:
    with pytest.raises(status._MissingPart, match=problem) as missing:
        status._check_cupy(version, build, DriverInfo((12, 4), (H200,)))
    assert hint in missing.value.hint


def test_a_supported_cupy(machine) -> None:
    status._check_cupy("13.4.1", 12000, DriverInfo((13, 0), (H200,)))
    status._check_cupy("14.0.0rc1", 13020, DriverInfo((13, 0), (H200,)))


def test_a_missing_library(monkeypatch) -> None:
    def fail():
        raise ImportError("\nlibcublas.so.13: cannot open\nmore")

    monkeypatch.setattr(status, "_cublas", fail)
    monkeypatch.setattr(status, "_runtime", lambda: "13.0")
    monkeypatch.setattr(status, "_nvrtc", lambda: "13.0")
    with pytest.raises(
        status._MissingPart, match=r"cannot load cublas: libcublas.so.13: cannot open$"
    ):
        status._library_versions("pip")


def test_usable_and_unusable_gpus(machine) -> None:
    result = machine()
    assert result.problem is None
    assert [gpu.usable for gpu in result.gpus] == [True, False]
    assert result.gpus[1].detail == "compute capability 7.5 is below 8.0 (Tesla T4)"
    only_t4 = machine(gpus=(T4,))
    assert only_t4.problem == "compute capability 7.5 is below 8.0 (Tesla T4)"


def test_devices_by_number(machine) -> None:
    gpus = machine().gpus
    assert selection._ordinal("cuda", gpus) == selection._ordinal("cuda:0", gpus) == 0
    with pytest.raises(DeviceError, match="no cuda:2 here") as error:
        selection._ordinal("cuda:2", gpus)
    assert "expected cuda:0" in str(error.value)
    with pytest.raises(DeviceError, match="cuda:1 cannot be used here"):
        selection._ordinal("cuda:1", gpus)


def test_the_reason_against_a_gpu_is_reported(machine) -> None:
    machine(cupy=False)
    choice = selection.choose_engine()
    assert choice.passed_over["cuda"] == "CuPy is not installed"
    assert "cuda" not in selection.choose_engine(device="cpu").passed_over


def test_gpus_that_the_driver_lists(monkeypatch) -> None:
    def put(pointer, value):
        pointer._obj.value = value
        return 0

    def named(text, size, device):
        text.value = b"NVIDIA H200"
        return 0

    cuda = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDriverGetVersion=lambda p: put(p, 12040),
        cuDeviceGetCount=lambda p: put(p, 1),
        cuDeviceGet=lambda p, k: put(p, k),
        cuDeviceGetName=named,
        cuDeviceTotalMem_v2=lambda p, d: put(p, 1 << 37),
        cuDeviceGetAttribute=lambda p, a, d: put(p, {75: 9, 76: 0}[a]),
    )
    monkeypatch.setattr(status, "driver_library", lambda: cuda)
    driver = status.read_driver.__wrapped__()
    assert driver == DriverInfo((12, 4), (DriverGpu(0, "NVIDIA H200", (9, 0), 1 << 37),))


@pytest.mark.parametrize(("code", "clusters"), [(0, 8), (912, 0)])
def test_clusters_that_fit(monkeypatch, code, clusters) -> None:
    def query(count, function, config):
        record = config._obj
        assert list(record.grid) == [128, 1, 1]
        assert list(record.attributes[0].cluster) == [16, 1, 1]
        count._obj.value = 8
        return code

    cuda = SimpleNamespace(cuOccupancyMaxActiveClusters=query)
    monkeypatch.setattr(kernel, "driver_library", lambda: cuda)
    launch = Launch((128, 1, 1), 256, shared=1 << 16, cluster=16)
    assert kernel.active_clusters(5, launch, 7) == clusters
    cuda.cuOccupancyMaxActiveClusters = lambda *_: 1
    with pytest.raises(DeviceError, match="clusters of 16 blocks"):
        kernel.active_clusters(5, launch, 7)


def test_records_are_those_of_the_header() -> None:
    cuda = pytest.importorskip("cuda.bindings.driver")
    theirs = cuda.CUlaunchConfig()
    theirs.gridDimX, theirs.blockDimX, theirs.sharedMemBytes = 128, 256, 4096
    theirs.hStream = 77
    raw = ctypes.string_at(theirs.getPtr(), ctypes.sizeof(kernel._LaunchConfig))
    ours = kernel._LaunchConfig.from_buffer_copy(raw)
    assert (ours.grid[0], ours.block[0], ours.shared, ours.stream) == (128, 256, 4096, 77)


def test_a_source_is_compiled_once_and_kept_on_disk(tmp_path, monkeypatch) -> None:
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
    try:
        nvrtc.getVersion()
    except Exception:
        pytest.skip("NVRTC is not installed")
    from lstm_cli.engines.cuda.runtime.kernel import compile_source, gpu_architecture

    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", str(tmp_path))
    source = 'extern "C" __global__ void f(float* x) { x[threadIdx.x] = 1.0f; }'
    assert gpu_architecture((9, 0)) == "sm_90a"
    compiled = compile_source(source, ["f"], "sm_90a")
    assert compiled.code[:4] == b"\x7fELF"
    assert compile_source(source, ["f"], "sm_90a") == compiled
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    assert b".entry f" in compile_source(source, ["f"], "compute_90").code
    with pytest.raises(DeviceError, match="does not compile") as error:
        compile_source(source.replace("1.0f", "unknown"), ["f"], "sm_90a")
    assert "unknown" in str(error.value)
