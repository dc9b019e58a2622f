"""From emitted IR to functions that can be called: LLVM's passes, object code, the linker."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lstm_cli import cells
from lstm_cli.engines import kernel_cache
from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.machine import Machine, host
from lstm_cli.engines.kernel_cache import Compiled
from lstm_cli.engines.setup import COMPILING, setting_up


@dataclass(frozen=True)
class Kernels:
    """Compiled functions: ``kernels["name"]`` is the address of one.

    The code is never removed from memory, for a thread may be in it to the process's very end.
    """

    addresses: Mapping[str, int]

    def __getitem__(self, function: str) -> int:
        return self.addresses[function]


_made: dict[tuple[str, Machine, int], Kernels] = {}
_making = threading.RLock()


def kernels(name: str, build: Callable[[], Module], machine: Machine | None = None) -> Kernels:
    """The kernels of that name: made once a process, and compiled once a machine and user.

    Parameters
    ----------
    name
        Says all that the emitted code depends on, beside the machine and the sources of this
        package: the cell's equations, the dtype, what is exported. Equal names get the same
        kernels, so nothing that holds for one process only, such as an address, may be in them.
    build
        Emits them; called only if they are nowhere to be found.
    machine
        What they are made for; this machine unless a test narrows it.

    Raises
    ------
    RuntimeError
        What was emitted is not valid IR, which is a mistake in an emitter.
    """
    machine = host() if machine is None else machine
    asked = (name, machine, machine.cache)
    found = _made.get(asked)
    if found is None:
        # LLVM works for one thread at a time, so nothing is lost by one lock for all.
        with _making, setting_up(COMPILING):
            found = _made.get(asked)
            if found is None:
                found = _made[asked] = _linked(_compiled(name, build, machine), machine)
    return found


def compile_object(module: Module, machine: Machine) -> bytes:
    """Object code of a module, for this or another machine.

    Raises
    ------
    RuntimeError
        What was emitted is not valid IR.
    """
    from llvmlite import binding as llvm

    target = _target(machine)
    head = f'target datalayout = "{target.target_data}"\ntarget triple = "{target.triple}"\n'
    text = head + str(module)
    with llvm.create_context() as context, llvm.parse_assembly(text, context) as parsed:
        parsed.verify()
        _simplify(parsed, target)
        return bytes(target.emit_object(parsed))


def _compiled(name: str, build: Callable[[], Module], machine: Machine) -> Compiled:
    """From disk, or made and kept there."""
    try:
        key = key_of(name, machine)
    except OSError:
        return _emitted(build, machine)
    found = kernel_cache.load(key)
    if found is None:
        found = _emitted(build, machine)
        kernel_cache.store(key, found)
    return found


def _emitted(build: Callable[[], Module], machine: Machine) -> Compiled:
    module = build()
    return Compiled(module.exported, compile_object(module, machine))


def _simplify(parsed: Any, target: Any) -> None:
    """The two passes that pay: with more of them the kernels were found to be no faster."""
    from llvmlite import binding as llvm

    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    for function in parsed.functions:
        if not function.is_declaration:
            passes.run(function, builder)


def _linked(compiled: Compiled, machine: Machine) -> Kernels:
    """Object code, made executable."""
    from llvmlite import binding as llvm

    # llvmlite's own memory manager puts code and constants side by side, as the small code model
    # asks. An engine for each, for names to be free; it wants a module, if an empty one.
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
    # On Windows the linker in memory knows ELF only.
    triple = machine.triple + ("-elf" if "windows" in machine.triple else "")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=1, reloc="pic", codemodel="small"
    )


def key_of(name: str, machine: Machine) -> str:
    """What a file is found by: a hash of all that its contents depend on.

    Raises
    ------
    OSError
        The package's sources cannot be read, so nothing says what made the contents.
    """
    import llvmlite
    from llvmlite import binding as llvm

    parts = (llvmlite.__version__, llvm.llvm_version_info, machine, sources(), name)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@lru_cache(maxsize=1)
def sources() -> str:
    """A hash of the code that emits and compiles the kernels.

    Raises
    ------
    OSError
        It cannot be read, as in a zip archive.
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
