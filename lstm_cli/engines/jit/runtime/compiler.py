"""Compilation of emitted IR to callable functions: LLVM passes, object code, cache, linker.

Start at `load_kernels`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lstm_cli import cells
from lstm_cli.engines import kernel_cache
from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.kernel_cache import CompiledKernels
from lstm_cli.engines.setup_time import COMPILING, setup_timer


@dataclass(frozen=True)
class Kernels:
    """Addresses of compiled functions: ``kernels["name"]`` is the address of one.

    The code stays in memory until the process ends, since a thread may run it until then.
    """

    addresses: Mapping[str, int]

    def __getitem__(self, function: str) -> int:
        return self.addresses[function]


_loaded: dict[tuple[str, Machine, int], Kernels] = {}
_loading = threading.RLock()

if hasattr(os, "register_at_fork"):
    # A fork waits until no thread compiles. Otherwise the child would inherit locks, this one and
    # LLVM's, that no thread of the child can release.
    os.register_at_fork(
        before=_loading.acquire,
        after_in_parent=_loading.release,
        after_in_child=_loading.release,
    )


def load_kernels(name: str, build: Callable[[], Module], machine: Machine | None = None) -> Kernels:
    """The kernels called `name`: linked once per process, compiled once per machine and user.

    Parameters
    ----------
    name
        Text of all that the emitted code depends on, besides the machine and this package's
        sources: the cell's equations, the dtype, the exported functions. Equal names share kernels,
        even between processes. So a name must not contain an address.
    build
        Emitter of the module; called only if the kernels are neither in memory nor on disk.
    machine
        Machine that the kernels are made for; this machine by default.

    Raises
    ------
    RuntimeError
        The emitted IR is not valid, which is a bug in an emitter.
    """
    machine = this_machine() if machine is None else machine
    key = (name, machine, machine.cache)
    kernels = _loaded.get(key)
    if kernels is None:
        # LLVM works for one thread at a time, so one lock for all kernels costs nothing.
        with _loading, setup_timer(COMPILING):
            kernels = _loaded.get(key)
            if kernels is None:
                kernels = _loaded[key] = _linked(_compiled(name, build, machine), machine)
    return kernels


def compile_object(module: Module, machine: Machine) -> bytes:
    """Object code of a module, for this or another machine.

    Raises
    ------
    RuntimeError
        The emitted IR is not valid.
    """
    from llvmlite import binding as llvm

    target = _target(machine)
    head = f'target datalayout = "{target.target_data}"\ntarget triple = "{target.triple}"\n'
    text = head + str(module)
    with llvm.create_context() as context, llvm.parse_assembly(text, context) as parsed:
        parsed.verify()
        _simplify(parsed, target)
        return bytes(target.emit_object(parsed))


def _compiled(name: str, build: Callable[[], Module], machine: Machine) -> CompiledKernels:
    """Object code from disk, or compiled and stored there."""
    try:
        key = cache_key(name, machine)
    except OSError:
        return _emitted(build, machine)
    compiled = kernel_cache.load(key)
    if compiled is None:
        compiled = _emitted(build, machine)
        kernel_cache.store(key, compiled)
    return compiled


def _emitted(build: Callable[[], Module], machine: Machine) -> CompiledKernels:
    module = build()
    return CompiledKernels(module.exported, compile_object(module, machine))


def _simplify(parsed: Any, target: Any) -> None:
    """Run only two passes, since further passes do not make the kernels faster."""
    from llvmlite import binding as llvm

    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    for function in parsed.functions:
        if not function.is_declaration:
            passes.run(function, builder)


def _linked(compiled: CompiledKernels, machine: Machine) -> Kernels:
    """Link object code into executable memory."""
    from llvmlite import binding as llvm

    # llvmlite's own memory manager puts code and constants side by side, as the small code model
    # needs. One engine per module lets names repeat; an engine starts from an empty module.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(machine), use_lmm=True)
    engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.code))
    addresses = {name: engine.get_function_address(name) for name in compiled.exported}
    engine.detach()
    return Kernels(addresses)


def _target(machine: Machine) -> Any:
    """LLVM's code generator for a machine."""
    from llvmlite import binding as llvm

    if machine.triple == llvm.get_process_triple():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    # LLVM's in-memory linker needs ELF, on Windows too.
    triple = machine.triple + ("-elf" if "windows" in machine.triple else "")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=1, reloc="pic", codemodel="small"
    )


def cache_key(name: str, machine: Machine) -> str:
    """Key of a file of kernels: a hash of all that its contents depend on.

    Raises
    ------
    OSError
        The package's sources cannot be read, so their hash is unknown.
    """
    import llvmlite
    from llvmlite import binding as llvm

    parts = (llvmlite.__version__, llvm.llvm_version_info, machine, source_hash(), name)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of the code that emits and compiles the kernels.

    Raises
    ------
    OSError
        The sources cannot be read, as in a zip archive.
    """
    jit = Path(__file__).parents[1]
    files = {*jit.rglob("*.py"), *jit.parent.glob("*.py")}
    for folder in cells.__path__:
        files.update(Path(folder).glob("*.py"))
    if Path(__file__) not in files:
        raise OSError("the package's sources are no files")
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.parent.name}/{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
