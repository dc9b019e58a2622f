"""Compiling kernels once, storing them under a key, and running them from many threads."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from compiled_ir import usable_machine
from jit_kernels import CountedBuild, affine, computed
from repository import ROOT

from lstm_cli.engines import kernel_cache
from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime import compiler
from lstm_cli.engines.jit.runtime.compiler import compile_object, load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine

AVX2 = Machine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma", 256, 16)
NEON = Machine("aarch64-unknown-linux-gnu", "neoverse-n1", "", 128, 32)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Machine:
    return usable_machine()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has compiled nothing yet."""
    monkeypatch.setenv(kernel_cache.ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_loaded", {})
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def x() -> np.ndarray:
    values = np.random.default_rng(3).normal(size=37)
    values[5:8] = np.nan, np.inf, -0.0
    return values


def test_kernels_compute(machine: Machine, x: np.ndarray) -> None:
    made = load_kernels("affine", CountedBuild(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors_compute_the_same(machine: Machine, x: np.ndarray, bits: int) -> None:
    narrow = Machine(machine.triple, machine.cpu, machine.features, bits, 16)
    made = load_kernels("affine", CountedBuild(narrow), narrow)
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


def test_only_what_is_exported_is_known(machine: Machine) -> None:
    made = load_kernels("affine", CountedBuild(machine))
    assert list(made.addresses) == ["affine"]
    with pytest.raises(KeyError):
        made["one"]


def test_one_name_is_compiled_once(machine: Machine) -> None:
    build = CountedBuild(machine)
    assert load_kernels("affine", build) is load_kernels("affine", build, machine)
    assert build.calls == 1


def test_names_are_kept_apart(machine: Machine, x: np.ndarray) -> None:
    first = load_kernels("first", CountedBuild(machine, 2.5, 1.0))
    second = load_kernels("second", CountedBuild(machine, -4.0, 0.25))
    np.testing.assert_array_equal(computed(first["affine"], x), 2.5 * x + 1.0)
    np.testing.assert_array_equal(computed(second["affine"], x), -4.0 * x + 0.25)


def test_machines_are_kept_apart(machine: Machine) -> None:
    narrow = Machine(machine.triple, machine.cpu, machine.features, 128, 16)
    smaller = Machine(machine.triple, machine.cpu, machine.features, 128, 16, cache=1 << 18)
    builds = [CountedBuild(narrow) for _ in range(2)]
    load_kernels("affine", CountedBuild(machine))
    load_kernels("affine", builds[0], narrow)
    load_kernels("affine", builds[1], smaller)
    assert [build.calls for build in builds] == [1, 1]


def test_threads_that_ask_at_once_get_the_same(machine: Machine) -> None:
    builds = [CountedBuild(machine, 1.5 + number) for number in range(3)]
    barrier = Barrier(9)

    def ask(index: int) -> object:
        barrier.wait()
        return load_kernels(f"kernels {index % 3}", builds[index % 3])

    with ThreadPoolExecutor(9) as pool:
        made = list(pool.map(ask, range(9)))
    assert [build.calls for build in builds] == [1, 1, 1]
    assert len({id(one) for one in made}) == 3


def test_code_outlives_everything(machine: Machine, x: np.ndarray) -> None:
    address = load_kernels("affine", CountedBuild(machine))["affine"]
    compiler._loaded.clear()
    gc.collect()
    for number in range(5):  # what was freed would be written over
        load_kernels(f"another {number}", CountedBuild(machine, float(number)))
    np.testing.assert_array_equal(computed(address, x), 1.7 * x - 0.3)


# The cache on disk


def test_the_next_process_finds_them(
    machine: Machine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_kernels("affine", CountedBuild(machine))
    monkeypatch.setattr(compiler, "_loaded", {})
    again = CountedBuild(machine)
    made = load_kernels("affine", again)
    assert again.calls == 0
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)


def test_a_damaged_file_is_compiled_anew(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_kernels("affine", CountedBuild(machine))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    monkeypatch.setattr(compiler, "_loaded", {})
    made = load_kernels("affine", CountedBuild(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert file.read_bytes() == content


def test_without_a_cache(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_cache.ENVIRONMENT_VARIABLE, "")
    made = load_kernels("affine", CountedBuild(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert not folder.exists()


def test_without_sources(
    machine: Machine, x: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise OSError("no files")

    monkeypatch.setattr(compiler, "source_hash", refuse)
    made = load_kernels("affine", CountedBuild(machine))
    np.testing.assert_array_equal(computed(made["affine"], x), 1.7 * x - 0.3)
    assert not folder.exists()


_PROCESSES = """
import os, sys

sys.path.insert(0, {folder!r})
from jit_kernels import CountedBuild, computed, load_kernels, this_machine
import numpy as np

def work(start, result):
    build = CountedBuild(this_machine())
    x = np.arange(23.0)
    os.read(start, 1)
    y = computed(load_kernels("affine", build)["affine"], x)
    os.write(result, f"{{build.calls}} {{bool((y == 1.7 * x - 0.3).all())}}\\n".encode())

start, release = os.pipe()
for _ in range({count}):
    if not os.fork():
        work(start, sys.stdout.fileno())
        os._exit(0)
os.write(release, b"." * {count})
sys.exit(sum(os.wait()[1] != 0 for _ in range({count})))
"""


def _in_processes(count: int) -> list[list[str]]:
    """Report of each process: calls of its emitter, and whether the kernel computed correctly."""
    code = _PROCESSES.format(folder=str(ROOT / "tests/support"), count=count)
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_process_that_is_forked_while_a_thread_compiles_compiles_too(folder: Path) -> None:
    code = f"""
import os, sys, threading, time
sys.path.insert(0, {str(ROOT / "tests/support")!r})
from jit_kernels import CountedBuild
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import this_machine

compiling = threading.Event()

def slow():
    compiling.set()
    time.sleep(0.5)
    return CountedBuild(this_machine())()

thread = threading.Thread(target=load_kernels, args=["slow", slow])
thread.start()
compiling.wait()
child = os.fork()
if not child:
    load_kernels("affine", CountedBuild(this_machine()))
    os._exit(0)
thread.join()
sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_a_thread_in_a_kernel_does_not_disturb_the_end() -> None:
    code = """
import ctypes, threading, time
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.codegen.ir import Module

def build():
    module = Module()
    f = module.function("stay", {"flag": "ptr"}, exported=True)
    with f.while_():
        f.store(1, f.args["flag"], 8)
        f.line('call void asm sideeffect "", "~{memory}"()')
    f.ret()
    return module

flag = ctypes.c_int64()
stay = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(load_kernels("stay", build)["stay"])
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
        load_kernels("affine", wrong)
    assert not folder.exists()
    assert load_kernels("affine", CountedBuild(machine))["affine"]
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
        "import sys, lstm_cli.engines.jit.runtime.compiler; "
        "import lstm_cli.engines.kernel_cache as cache; "
        "cache.state(); sys.exit('llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The key of a file of kernels

MACHINE = Machine("x86_64-unknown-linux-gnu", "znver4", "+avx512f", 512, 32)


@pytest.fixture
def key() -> str:
    pytest.importorskip("llvmlite")
    return compiler.cache_key("cell", MACHINE)


def test_equal_things_have_equal_keys(key: str) -> None:
    assert compiler.cache_key("cell", replace(MACHINE)) == key
    assert len(key) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"triple": "x86_64-apple-darwin"},
        {"cpu": "haswell"},
        {"features": "+avx2"},
        {"vector_bits": 256},
        {"registers": 16},
        {"dot_bfloat16": True},
        {"cache": 1 << 21},
    ],
)
def test_another_machine_has_another_key(key: str, change: dict[str, object]) -> None:
    assert compiler.cache_key("cell", replace(MACHINE, **change)) != key


def test_another_name_has_another_key(key: str) -> None:
    assert compiler.cache_key("cells", MACHINE) != key


def test_another_llvm_has_another_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite
    from llvmlite import binding

    with monkeypatch.context() as patch:
        patch.setattr(binding, "llvm_version_info", (19, 1, 7))
        assert compiler.cache_key("cell", MACHINE) != key
    monkeypatch.setattr(llvmlite, "__version__", "0.1")
    assert compiler.cache_key("cell", MACHINE) != key


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that can be changed."""
    for name in ("jit/runtime/compiler.py", "cells/another.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "jit/runtime/compiler.py"))
    monkeypatch.setattr(compiler.cells, "__path__", [str(tmp_path / "cells")])
    return tmp_path


def _sources() -> str:
    return compiler.source_hash.__wrapped__()


CHANGED = ["jit/runtime/compiler.py", "cells/another.py", "jit/new.py", "jit/codegen/new.py"]


@pytest.mark.parametrize("path", [*CHANGED, "cells/new.py"])
def test_other_sources_have_another_hash(copied: Path, path: str) -> None:
    before = _sources()
    assert _sources() == before
    (copied / path).parent.mkdir(exist_ok=True)
    (copied / path).write_text("changed = True")
    assert _sources() != before


def test_sources_that_move_are_noticed(copied: Path) -> None:
    (copied / "cells" / "b.py").write_text("b = 1")
    before = _sources()
    (copied / "cells" / "b.py").rename(copied / "jit" / "b.py")
    assert _sources() != before


def test_sources_that_cannot_be_read(copied: Path) -> None:
    (copied / "jit/runtime/compiler.py").unlink()
    with pytest.raises(OSError, match="no files"):
        _sources()


def test_the_hash_is_of_this_packages_emitters_and_cells(key: str) -> None:
    assert Path(compiler.__file__).is_file()
    assert compiler.source_hash() == _sources()
