"""Whether there is a GPU that the cuda engine can use, and if not, what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from lstm_cli.engines.cuda.architectures import LEAST
from lstm_cli.engines.cuda.driver import Driver, Listed, NoDriver, driver
from lstm_cli.engines.cuda.precision import PRECISIONS

DTYPES = tuple(PRECISIONS)

OLDEST_DRIVER = (12, 0)
"""The oldest CUDA version for which CuPy is still made."""
OLDEST_CUPY = (13, 4)

DRIVER_HINT = "https://www.nvidia.com/drivers has drivers; --device cpu needs none"


@dataclass(frozen=True)
class GpuStatus:
    """A GPU.

    Attributes
    ----------
    name, title
        Such as ``cuda:0``, and ``NVIDIA H200``.
    compute_capability
        Such as ``9.0``.
    memory_total, memory_free
        Bytes; free is None where nothing here can ask.
    usable, detail
        Whether the cuda engine runs on it, and why not.
    """

    name: str
    title: str
    compute_capability: str
    memory_total: int
    memory_free: int | None
    usable: bool
    detail: str = ""


@dataclass(frozen=True)
class CudaStatus:
    """What the cuda engine finds.

    Attributes
    ----------
    problem, hint
        Why no GPU can be used, and what mends it; None: at least one can.
    gpus
        All that the driver lists.
    versions
        Of driver and packages, by name.
    """

    problem: str | None
    hint: str | None = None
    gpus: tuple[GpuStatus, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


class _Missing(Exception):  # noqa: N818 - no failure, a state
    """What is missing, and what mends it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def cuda_status() -> CudaStatus:
    """What there is. CuPy is imported only where there is a driver with a GPU."""
    try:
        found = driver()
    except NoDriver as why:
        return CudaStatus(str(why), DRIVER_HINT)
    versions = {"driver": _dotted(found.version)}
    try:
        _check_driver(found)
        versions |= _cupy_versions(found)
    except _Missing as missing:
        gpus = tuple(_status(gpu, None, missing.what) for gpu in found.gpus)
        return CudaStatus(missing.what, missing.hint, gpus, versions)
    gpus = tuple(_asked(gpu) for gpu in found.gpus)
    if any(gpu.usable for gpu in gpus):
        return CudaStatus(None, None, gpus, versions)
    return CudaStatus(gpus[0].detail, "--device cpu", gpus, versions)


def _check_driver(found: Driver) -> None:
    if not found.gpus:
        raise _Missing("the NVIDIA driver finds no GPU", "nvidia-smi lists what it finds")
    if found.version < OLDEST_DRIVER:
        raise _Missing(
            f"the NVIDIA driver runs CUDA {_dotted(found.version)} only, "
            f"{_dotted(OLDEST_DRIVER)} or later is needed",
            DRIVER_HINT,
        )


def _cupy_versions(found: Driver) -> dict[str, str]:
    """Versions of CuPy and of the libraries it loads."""
    install = f"pip install 'lstm-cli[{_extra(found)}]'"
    if find_spec("cupy") is None:
        raise _Missing("CuPy is not installed", install)
    try:
        import cupy
        from cupy_backends.cuda.api import driver as cuda
    except Exception as error:
        raise _Missing(f"CuPy does not load: {_line(error)}", install) from error
    _check_cupy(str(cupy.__version__), int(cuda.get_build_version()), found)
    return {"cupy": str(cupy.__version__), **_library_versions(install)}


def _check_cupy(version: str, build: int, found: Driver) -> None:
    """Raise unless this CuPy is one for this driver."""
    if _numbers(version) < OLDEST_CUPY:
        raise _Missing(
            f"CuPy {version} is too old, {_dotted(OLDEST_CUPY)} or later is needed",
            f"pip install --upgrade 'lstm-cli[{_extra(found)}]'",
        )
    if build // 1000 > found.version[0]:
        raise _Missing(
            f"the installed CuPy is made for CUDA {build // 1000}, "
            f"the NVIDIA driver runs CUDA {_dotted(found.version)} only",
            f"pip uninstall cupy-cuda{build // 1000}x, "
            f"then pip install 'lstm-cli[{_extra(found)}]'",
        )


def _library_versions(install: str) -> dict[str, str]:
    """Versions of what CuPy loads late; a wheel of it brings none of them."""
    versions = {}
    for name, ask in {"cuda runtime": _runtime, "nvrtc": _nvrtc, "cublas": _cublas}.items():
        try:
            versions[name] = ask()
        except Exception as error:
            raise _Missing(f"CuPy cannot load {name}: {_line(error)}", install) from error
    return versions


def _runtime() -> str:
    from cupy_backends.cuda.api import runtime

    return _dotted(divmod(int(runtime.runtimeGetVersion()) // 10, 100))


def _nvrtc() -> str:
    from cupy_backends.cuda.libs import nvrtc

    return _dotted(nvrtc.getVersion())


def _cublas() -> str:
    from cupy_backends.cuda.libs import cublas

    return "loaded" if cublas.gemmEx else ""


def _asked(gpu: Listed) -> GpuStatus:
    """A GPU, asked through CuPy for what is free."""
    if gpu.capability < LEAST:
        needed = _dotted(LEAST)
        own = _dotted(gpu.capability)
        return _status(gpu, None, f"compute capability {own} is below {needed} ({gpu.title})")
    try:
        import cupy

        with cupy.cuda.Device(gpu.ordinal):
            free = int(cupy.cuda.runtime.memGetInfo()[0])
    except Exception as error:
        return _status(gpu, None, f"{gpu.title} does not start: {_line(error)}")
    return _status(gpu, free, "")


def _status(gpu: Listed, free: int | None, problem: str) -> GpuStatus:
    capability = _dotted(gpu.capability)
    named = f"cuda:{gpu.ordinal}", gpu.title, capability
    return GpuStatus(*named, gpu.memory, free, not problem, problem)


def _extra(found: Driver) -> str:
    """The extra whose CuPy the driver can run."""
    return "cuda13" if found.version[0] >= 13 else "cuda12"


def _numbers(version: str) -> tuple[int, ...]:
    """``14.2.0rc1`` as (14, 2)."""
    parts = version.split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _line(error: Exception) -> str:
    """An error's first line with something in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
