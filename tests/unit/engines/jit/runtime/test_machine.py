"""Machines described from the names of processors and their features."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lstm_cli.engines.jit.codegen.ir import VectorType
from lstm_cli.engines.jit.runtime.machine import (
    Machine,
    UnusableMachine,
    machine_from_features,
    this_machine,
)

LINUX = "x86_64-unknown-linux-gnu"
AVX2 = {"sse2", "avx", "avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512vl", "avx512dq", "avx512bw"}


def test_avx2() -> None:
    machine = machine_from_features(LINUX, "haswell", AVX2)
    assert (machine.vector_bits, machine.registers) == (256, 16)
    assert machine.x86
    assert not machine.dot_bfloat16
    assert machine.vector("float") == VectorType("float", 8)
    assert machine.vector("double") == VectorType("double", 4)


def test_avx512() -> None:
    machine = machine_from_features(LINUX, "skylake-avx512", AVX512)
    assert (machine.vector_bits, machine.registers) == (512, 32)
    assert not machine.dot_bfloat16
    assert machine.vector("float") == VectorType("float", 16)
    assert machine_from_features(LINUX, "znver4", AVX512 | {"avx512bf16"}).dot_bfloat16


@pytest.mark.parametrize("missing", ["avx512f", "avx512vl", "avx512dq", "avx512bw"])
def test_half_of_avx512_is_avx2(missing: str) -> None:
    machine = machine_from_features(LINUX, "knl", (AVX512 | {"avx512bf16"}) - {missing})
    assert (machine.vector_bits, machine.registers, machine.dot_bfloat16) == (256, 16, False)


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin24.1.0"])
def test_arm(triple: str) -> None:
    machine = machine_from_features(triple, "apple-m1", {"neon", "fullfp16"})
    assert (machine.vector_bits, machine.registers) == (128, 32)
    assert not machine.x86
    assert machine.vector("double") == VectorType("double", 2)


@pytest.mark.parametrize("present", [set(), {"sse2"}, AVX2 - {"fma"}, AVX2 - {"avx2"}])
def test_an_old_processor(present: set[str]) -> None:
    with pytest.raises(UnusableMachine, match=r"\(nehalem\) has neither AVX2 with FMA nor AVX-512"):
        machine_from_features(LINUX, "nehalem", present)


@pytest.mark.parametrize(
    "triple", ["riscv64-unknown-linux-gnu", "powerpc64le-linux-gnu", "i686-pc-windows-msvc"]
)
def test_another_architecture(triple: str) -> None:
    with pytest.raises(UnusableMachine, match=f"no kernels are made for {triple.split('-')[0]}"):
        machine_from_features(triple, "generic", AVX2)


def test_features_are_those_given_or_those_present() -> None:
    assert machine_from_features(LINUX, "haswell", AVX2).features == "+avx,+avx2,+fma,+sse2"
    assert (
        machine_from_features(LINUX, "haswell", AVX2, "+avx2,-avx512f").features == "+avx2,-avx512f"
    )


def test_the_cache_is_no_part_of_what_a_machine_is() -> None:
    machine = machine_from_features(LINUX, "haswell", AVX2)
    assert machine.cache >= 1 << 17
    assert replace(machine, cache=1) == machine
    assert replace(machine, cpu="skylake") != machine


# This machine


@pytest.fixture
def llvm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A stand-in for llvmlite's binding, of a machine with AVX2."""

    class Features(dict[str, bool]):
        def flatten(self) -> str:
            return ",".join(f"{'+' if v else '-'}{k}" for k, v in sorted(self.items()))

    binding = SimpleNamespace(
        llvm_version_info=(20, 1, 8),
        check_jit_execution=lambda: None,
        get_host_cpu_features=lambda: Features(dict.fromkeys(AVX2, True), avx512f=False),
        get_process_triple=lambda: LINUX,
        get_host_cpu_name=lambda: "haswell",
    )
    package: Any = SimpleNamespace(binding=binding, __version__="0.44.0")
    monkeypatch.setitem(sys.modules, "llvmlite", package)
    this_machine.cache_clear()
    yield binding
    this_machine.cache_clear()


def test_host(llvm: SimpleNamespace) -> None:
    machine = this_machine()
    assert machine == Machine(LINUX, "haswell", "+avx,+avx2,-avx512f,+fma,+sse2", 256, 16)
    assert this_machine() is machine


@pytest.mark.usefixtures("llvm")
def test_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(UnusableMachine, match="the package llvmlite cannot be loaded"):
        this_machine()


def test_an_old_llvmlite(llvm: SimpleNamespace) -> None:
    llvm.llvm_version_info = (15, 0, 7)
    with pytest.raises(UnusableMachine, match=r"llvmlite 0\.44\.0 is too old: 0\.45 or newer"):
        this_machine()


def test_a_system_that_forbids_to_make_code(llvm: SimpleNamespace) -> None:
    def refuse() -> None:
        raise OSError("mprotect failed")

    llvm.check_jit_execution = refuse
    with pytest.raises(
        UnusableMachine, match=r"does not let programs make code \(mprotect failed\)"
    ):
        this_machine()


def test_an_old_processor_as_host(llvm: SimpleNamespace) -> None:
    llvm.get_host_cpu_features = lambda: type("Features", (dict,), {"flatten": lambda self: ""})(
        sse2=True, avx2=False, fma=False
    )
    with pytest.raises(UnusableMachine, match="neither AVX2"):
        this_machine()
