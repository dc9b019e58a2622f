"""CUDA C++ to machine code by NVRTC, kept on disk; and what comes of it as kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lstm_cli.engines import kernel_cache
from lstm_cli.engines.cuda.architectures import OPTIONS, target
from lstm_cli.engines.kernel_cache import CompiledKernels
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.gpu import Gpu
    from lstm_cli.engines.cuda.kernel import GpuKernel


def architecture(capability: tuple[int, int]) -> str:
    """What NVRTC is to compile for; see `lstm_cli.engines.cuda.architectures.target`.

    Raises
    ------
    DeviceError
        It does not know the device.
    """
    from cupy_backends.cuda.libs import nvrtc

    try:
        return target(capability, nvrtc.getSupportedArchs())
    except ValueError as why:
        raise DeviceError(
            f"kernels cannot be compiled: {why}", hint="a newer CUDA toolkit may know it"
        ) from None


def compile_source(source: str, names: Sequence[str], architecture: str) -> CompiledKernels:
    """Machine code of a source, from disk if it was made before.

    Parameters
    ----------
    source
        Defines every one of `names` as an ``extern "C"`` kernel.
    architecture
        Of `architecture`.

    Raises
    ------
    DeviceError
        NVRTC refuses the source.
    """
    from cupy_backends.cuda.libs import nvrtc

    key = key_of(source, architecture, nvrtc.getVersion())
    found = kernel_cache.load(key)
    if found is None:
        found = CompiledKernels(tuple(names), _compiled(source, architecture))
        kernel_cache.store(key, found)
    return found


def key_of(source: str, architecture: str, version: tuple[int, int]) -> str:
    """What machine code is found by: a hash of all that it depends on."""
    parts = ("cuda", version, architecture, OPTIONS, source)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _compiled(source: str, architecture: str) -> bytes:
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source, "lstm_cli.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *OPTIONS))
        except nvrtc.NVRTCError as error:
            raise DeviceError(
                f"NVRTC does not compile a kernel for {architecture}",
                found=f"{error}\n{nvrtc.getProgramLog(program)}",
            ) from None
        machine_code = architecture.startswith("sm_")
        return bytes(nvrtc.getCUBIN(program) if machine_code else nvrtc.getPTX(program))
    finally:
        nvrtc.destroyProgram(program)


def load_kernels(
    gpu: Gpu, compiled: CompiledKernels, names: Sequence[str]
) -> Mapping[str, GpuKernel]:
    """Machine code as kernels. The GPU must be the current device."""
    from cupy.cuda.function import Module

    from lstm_cli.engines.cuda.kernel import GpuKernel

    module = Module()
    module.load(compiled.code)
    return {name: GpuKernel(gpu, name, module) for name in names}
