"""What a kernel is found by: another key for whatever makes another kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lstm_cli.engines.jit.runtime import compiler
from lstm_cli.engines.jit.runtime.machine import Machine

MACHINE = Machine("x86_64-unknown-linux-gnu", "znver4", "+avx512f", 512, 32)


@pytest.fixture
def key() -> str:
    pytest.importorskip("llvmlite")
    return compiler.key_of("cell", MACHINE)


def test_equal_things_have_equal_keys(key: str) -> None:
    assert compiler.key_of("cell", replace(MACHINE)) == key
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
    assert compiler.key_of("cell", replace(MACHINE, **change)) != key


def test_another_name_has_another_key(key: str) -> None:
    assert compiler.key_of("cells", MACHINE) != key


def test_another_llvm_has_another_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite
    from llvmlite import binding

    with monkeypatch.context() as patch:
        patch.setattr(binding, "llvm_version_info", (19, 1, 7))
        assert compiler.key_of("cell", MACHINE) != key
    monkeypatch.setattr(llvmlite, "__version__", "0.1")
    assert compiler.key_of("cell", MACHINE) != key


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
    return compiler.sources.__wrapped__()


@pytest.mark.parametrize(
    "path",
    [
        "jit/runtime/compiler.py",
        "cells/another.py",
        "jit/new.py",
        "jit/codegen/new.py",
        "cells/new.py",
    ],
)
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
    assert compiler.sources() == _sources()
