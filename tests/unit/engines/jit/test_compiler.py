"""Kernels are compiled once, kept, and computed with by many threads and processes at once."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from lstm_cli.engines import kernel_cache
from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime import compiler
from lstm_cli.engines.jit.runtime.compiler import compile_object, kernels
from lstm_cli.engines.jit.runtime.machine import Machine, Unusable, host

AVX2 = Machine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma", 256, 16)
NEON = Machine("aarch64-unknown-linux-gnu", "neoverse-n1", "", 128, 32)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Machine:
    try:
        return host()
    except Unusable as why:
        pytest.skip(str(why))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has compiled nothing yet."""
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_made", {})
    return tmp_path / "cache" / "kernels"


def affine(machine: Machine, factor: float = 1.7, offset: float = -0.3) -> Module:
    """``affine(x, y, n)``: y = factor x + offset, a vector at a time and then one by one."""
    module = Module()
    lanes = machine.lanes("double")
    one = module.function("one", {"x": "ptr", "y": "ptr", "k": "i64"})
    x = one.load("double", one.at(one.args["x"], one.args["k"], "double"))
    product = one.fmul(x, _number(one.value, factor))
    total = one.fadd(product, _number(one.value, offset))
    one.store(total, one.at(one.args["y"], one.args["k"], "double"))
    one.done()
    f = module.function("affine", {"x": "ptr", "y": "ptr", "n": "i64"}, exported=True)
    x, y, n = f.args.values()
    whole = f.sub(n, f.rem(n, lanes.count))
    with f.loop(0, whole, lanes.count) as k:
        row = f.load(lanes.type, f.at(x, k, "double"), 8)
        total = f.fadd(f.fmul(row, lanes.number(factor)), lanes.number(offset))
        f.store(total, f.at(y, k, "double"), 8)
    with f.loop(whole, n) as k:
        f.call(one, x, y, k)
    f.done()
    return module


def _number(value: Callable[[str, str], object], number: float) -> object:
    return value("double", f"fadd double -0.0, {number!r}")


class Counted:
    """A build that is counted."""

    def __init__(self, machine: Machine, *numbers: float) -> None:
        self.machine, self.numbers, self.calls = machine, numbers, 0

    def __call__(self) -> Module:
        self.calls += 1
        return affine(self.machine, *self.numbers)


def computed(address: int, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, np.nan)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    signature(address)(x.ctypes.data, y.ctypes.data, len(x))
    return y


@pytest.fixture
def x() -> np.ndarray:
    values = np.random.default_rng(3).normal(size=37)
    values[5:8] = np.nan, np.inf, -0.0
    return values


def test_kernels_compute(machine: Machine, x: np.ndarray) -> None:
    made = kernels("affine", Counted(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors_compute_the_same(machine: Machine, x: np.ndarray, bits: int) -> None:
    narrow = Machine(machine.triple, machine.cpu, machine.features, bits, 16)
    made = kernels("affine", Counted(narrow), narrow)
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


def test_only_what_is_exported_is_known(machine: Machine) -> None:
    made = kernels("affine", Counted(machine))
    assert list(made.addresses) == ["affine"]
    with pytest.raises(KeyError):
        made["one"]


def test_one_name_is_compiled_once(machine: Machine) -> None:
    build = Counted(machine)
    assert kernels("affine", build) is kernels("affine", build, machine)
    assert build.calls == 1


def test_names_are_kept_apart(machine: Machine, x: np.ndarray) -> None:
    first = kernels("first", Counted(machine, 2.5, 1.0))
    second = kernels("second", Counted(machine, -4.0, 0.25))
    np.testing.assert_array_equal(computed(first["affine"], x), 2.5 * x + 1.0)
    np.testing.assert_array_equal(computed(second["affine"], x), -4.0 * x + 0.25)


def test_machines_are_kept_apart(machine: Machine) -> None:
    narrow = Machine(machine.triple, machine.cpu, machine.features, 128, 16)
    smaller = Machine(machine.triple, machine.cpu, machine.features, 128, 16, cache=1 << 18)
    builds = [Counted(narrow) for _ in range(2)]
    kernels("affine", Counted(machine))
    kernels("affine", builds[0], narrow)
    kernels("affine", builds[1], smaller)
    assert [build.calls for build in builds] == [1, 1]


def test_threads_that_ask_at_once_get_the_same(machine: Machine) -> None:
    builds = [Counted(machine, 1.5 + number) for number in range(3)]
    barrier = Barrier(9)

    def ask(index: int) -> object:
        barrier.wait()
        return kernels(f"kernels {index % 3}", builds[index % 3])

    with ThreadPoolExecutor(9) as pool:
        made = list(pool.map(ask, range(9)))
    assert [build.calls for build in builds] == [1, 1, 1]
    assert len({id(one) for one in made}) == 3


def test_code_outlives_everything(machine: Machine, x: np.ndarray) -> None:
    address = kernels("affine", Counted(machine))["affine"]
    compiler._made.clear()
    gc.collect()
    for number in range(5):  # what was freed would be written over
        kernels(f"another {number}", Counted(machine, float(number)))
    np.testing.assert_array_equal(computed(address, x), 1.7 * x - 0.3)


# The cache on disk


def test_the_next_process_finds_them(
    machine: Machine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels("affine", Counted(machine))
    monkeypatch.setattr(compiler, "_made", {})
    again = Counted(machine)
    made = kernels("affine", again)
    assert again.calls == 0
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


def test_a_damaged_file_is_compiled_anew(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels("affine", Counted(machine))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    monkeypatch.setattr(compiler, "_made", {})
    made = kernels("affine", Counted(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert file.read_bytes() == content


def test_without_a_cache(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_cache.VARIABLE, "")
    made = kernels("affine", Counted(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert not folder.exists()


def test_without_sources(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise OSError("no files")

    monkeypatch.setattr(compiler, "sources", refuse)
    made = kernels("affine", Counted(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert not folder.exists()


_PROCESSES = """
import os, sys

sys.path.insert(0, {tests!r})
from test_compiler import Counted, computed, host, kernels
import numpy as np

def work(go, told):
    build = Counted(host())
    x = np.arange(23.0)
    os.read(go, 1)
    y = computed(kernels("affine", build)["affine"], x)
    os.write(told, f"{{build.calls}} {{bool((y == 1.7 * x - 0.3).all())}}\\n".encode())

go, start = os.pipe()
for _ in range({count}):
    if not os.fork():
        work(go, sys.stdout.fileno())
        os._exit(0)
os.write(start, b"." * {count})
sys.exit(sum(os.wait()[1] != 0 for _ in range({count})))
"""


def _in_processes(count: int) -> list[list[str]]:
    """What each has to say: how often it emitted the kernel, and whether that computed right."""
    code = _PROCESSES.format(tests=str(Path(__file__).parent), count=count)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_processes_that_compile_into_one_cold_folder(folder: Path) -> None:
    said = _in_processes(8)
    assert [right for _, right in said] == ["True"] * 8
    assert [path.suffix for path in folder.iterdir()] == [".kernels"]
    assert _in_processes(1) == [["0", "True"]]


def test_a_thread_in_a_kernel_does_not_disturb_the_end() -> None:
    code = """
import ctypes, threading, time
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.codegen.ir import Module

def build():
    module = Module()
    f = module.function("stay", {"flag": "ptr"}, exported=True)
    with f.while_():
        f.store(1, f.args["flag"], 8)
        f.line('call void asm sideeffect "", "~{memory}"()')
    f.done()
    return module

flag = ctypes.c_int64()
stay = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernels("stay", build)["stay"])
threading.Thread(target=stay, args=[ctypes.addressof(flag)], daemon=True).start()
while not flag.value:
    time.sleep(0.01)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


# Compiling


@pytest.mark.parametrize(
    "lines", [["ret i64 1"], ["%a = add i64 %b, 1", "%b = add i64 2, 1", "ret void"]]
)
def test_what_is_no_ir_is_a_mistake_and_not_kept(
    machine: Machine, folder: Path, lines: list[str]
) -> None:
    def wrong() -> Module:
        module = Module()
        f = module.function("affine", {"x": "ptr"}, exported=True)
        for line in lines:
            f.line(line)
        return module

    with pytest.raises(RuntimeError):
        kernels("affine", wrong)
    assert not folder.exists()
    assert kernels("affine", Counted(machine))["affine"]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("other", "start", "number"),
    [
        (AVX2, b"\x7fELF", 0x3E),
        (NEON, b"\x7fELF", 0xB7),
        (Machine("x86_64-pc-windows-msvc", "haswell", "", 256, 16), b"\x7fELF", 0x3E),
        (Machine("arm64-apple-darwin", "apple-m1", "", 128, 32), b"\xcf\xfa\xed\xfe", None),
    ],
    ids=lambda value: value.triple if isinstance(value, Machine) else "",
)
def test_objects_for_other_machines(other: Machine, start: bytes, number: int | None) -> None:
    code = compile_object(affine(other), other)
    assert code.startswith(start)
    if number is not None:
        assert int.from_bytes(code[18:20], "little") == number  # e_machine


def test_equal_modules_give_equal_objects() -> None:
    assert compile_object(affine(AVX2), AVX2) == compile_object(affine(AVX2), AVX2)


def test_llvmlite_is_loaded_only_when_something_is_compiled() -> None:
    code = (
        "import sys, lstm_cli.engines.jit.runtime.compiler, lstm_cli.engines.kernel_cache as cache; "
        "cache.state(); sys.exit('llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
