"""The machine that kernels are made for: its vectors, registers and caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lstm_cli.engines.jit.codegen.ir import VectorType
from lstm_cli.errors import has_memory


@dataclass(frozen=True)
class Machine:
    """A processor as the emitters see it.

    Attributes
    ----------
    triple, cpu, features
        LLVM's names of the target triple, the processor and its features.
    vector_bits
        Bits of the widest vector with a fused multiply-add.
    registers
        Number of vector registers.
    dot_bfloat16
        True: one instruction multiplies pairs of bfloat16 and adds the products to float32.
    cache
        Bytes of a core's second-level cache.
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int
    registers: int
    dot_bfloat16: bool = False
    cache: int = field(default=1 << 20, compare=False)

    def vector(self, element: str) -> VectorType:
        """A full vector of ``float`` or ``double``."""
        return VectorType(element, self.vector_bits // (32 if element == "float" else 64))

    @property
    def x86(self) -> bool:
        return self.triple.startswith("x86_64")


class UnusableMachine(Exception):  # noqa: N818 - it names the machine's state
    """No kernels can be made for this machine; the message says why."""


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine that this process runs on.

    Raises
    ------
    UnusableMachine
        llvmlite is missing, or the processor has no vectors with a fused multiply-add.
    MemoryError
        There is too little memory to load llvmlite.
    """
    try:
        from llvmlite import binding as llvm
    except (ImportError, OSError) as error:
        if not has_memory(_LIBRARY_BYTES):
            raise MemoryError("the package llvmlite cannot be loaded") from None
        raise UnusableMachine(f"the package llvmlite cannot be loaded ({error})") from None
    if llvm.llvm_version_info[0] < 20:
        raise UnusableMachine(f"llvmlite {_version()} is too old: 0.45 or newer is needed")
    try:
        llvm.check_jit_execution()
    except OSError as error:
        raise UnusableMachine(f"the system does not let programs make code ({error})") from None
    features = llvm.get_host_cpu_features()
    return machine_from_features(
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        {name for name, present in features.items() if present},
        features.flatten(),
    )


_LIBRARY_BYTES = 192 << 20
"""Bytes of address space needed to load llvmlite, whose library has some 130 MB."""


def machine_from_features(triple: str, cpu: str, present: set[str], flat: str = "") -> Machine:
    """A machine from LLVM's names.

    Parameters
    ----------
    present
        Names of the features that the processor has.
    flat
        LLVM's text of all features; by default that of `present`.

    Raises
    ------
    UnusableMachine
        The processor has no vectors with a fused multiply-add, or another architecture.
    """
    architecture = triple.partition("-")[0]
    flat = flat or ",".join(f"+{name}" for name in sorted(present))
    if architecture in ("aarch64", "arm64"):
        return Machine(triple, cpu, flat, 128, 32, cache=_cache())
    if architecture != "x86_64":
        raise UnusableMachine(f"no kernels are made for {architecture} processors")
    wide = {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= present
    if not wide and not {"avx2", "fma"} <= present:
        raise UnusableMachine(f"the processor ({cpu}) has neither AVX2 with FMA nor AVX-512")
    bits, registers = (512, 32) if wide else (256, 16)
    return Machine(
        triple, cpu, flat, bits, registers, wide and "avx512bf16" in present, cache=_cache()
    )


def _version() -> str:
    import llvmlite

    return str(llvmlite.__version__)


def _cache() -> int:
    """Bytes of the second-level cache; 1 MiB if the system does not report the size."""
    for index in range(8):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if (folder / "level").read_text().strip() != "2":
                continue
            text = (folder / "size").read_text().strip()
        except OSError:
            break
        if text.endswith("K") and text[:-1].isdigit():
            return int(text[:-1]) << 10
    return 1 << 20
