"""Names, docstrings and files of the package, and paths in the pages about it.

Each rule lists the places that break it as ``path:line: what``; a rule holds where the list is
empty. No rule has a list of exceptions, but for the tables that say which files may be small.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick import SLOW

from lstm_cli.cells import CELLS
from lstm_cli.cli.main import COMMANDS
from lstm_cli.formats.registry import FORMATS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lstm_cli"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MIRRORS = tuple(PACKAGE / "engines" / name for name in ("reference", "jit", "cuda"))
"""Folders of the engines, whose classes of one role share a name."""

SMALL = 100
"""Lines below which a file with one importer is a fragment of that importer."""

DANGLING = re.compile(r"(Of|The same|As|Whose|That|What)\b|None:")
"""How a first line begins that nobody understands without the line before it."""

UNNAMED = re.compile(r"\b(nobody|somebody|whoever|whatever|wherever)\b", re.IGNORECASE)
BRITISH = re.compile(
    r"(?:final|general|initial|linear|local|maxim|minim|normal|optim|organ|parallel|quant|real"
    r"|recogn|regular|serial|special|stabil|standard|summar|symbol|synchron|util|vector|visual)"
    r"is(?:e|ing|ation)|behaviour|cancelled|catalogue|centre|colour|favour|labelled"
    r"|modelled|neighbour",
    re.IGNORECASE,
)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The syntax tree of every file of the package."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()}


def place(path: Path, line: int, what: str) -> str:
    """One offence, as an editor's list of places has it."""
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def docstrings() -> Iterator[tuple[Path, int, str]]:
    """Path, line and text of every docstring: modules, classes, functions, constants, fields."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            body = getattr(node, "body", ())
            for statement in body if isinstance(body, list) else ():
                text = getattr(getattr(statement, "value", None), "value", None)
                if isinstance(statement, ast.Expr) and isinstance(text, str):
                    yield path, statement.lineno, text.strip()


def importers() -> dict[Path, set[Path]]:
    """For each file, the files that import it; a module's name in a string counts."""
    result: dict[Path, set[Path]] = defaultdict(set)
    for path, tree in trees().items():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in MODULES else node.module for name in inner]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value]
            for name in names:
                if name in MODULES and MODULES[name] != path:
                    result[MODULES[name]].add(path)
    return result


def may_be_small() -> set[Path]:
    """Files that a table asks for: commands, cells, readers, writers, one role in two engines."""
    cells = {MODULES[cell.__module__] for cell in CELLS.values()}
    commands = {PACKAGE / "cli" / f"{name.replace('-', '_')}.py" for name in COMMANDS}
    codecs = {
        MODULES[function.partition(":")[0]].parent / f"{role}.py"
        for format in FORMATS.values()
        for role, function in (("reader", format.reader), ("writer", format.writer))
    }
    roles = Counter(path.name for folder in MIRRORS for path in folder.glob("*.py"))
    mirrors = {folder / name for folder in MIRRORS for name, count in roles.items() if count > 1}
    packages = {path for path in MODULES.values() if path.name in ("__init__.py", "__main__.py")}
    return cells | commands | codecs | mirrors | packages


def twin_classes() -> Iterator[str]:
    """Public classes of one name in two places; the engines' folders count as one."""
    places = defaultdict(list)
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                engine = next((mirror for mirror in MIRRORS if mirror in path.parents), None)
                places[node.name].append((path, node.lineno, engine))
    for name, found in places.items():
        engines = [engine for _, _, engine in found]
        if len(found) > 1 and (None in engines or len(set(engines)) < len(engines)):
            yield from (place(path, line, f"class {name}") for path, line, _ in found)


def dangling_docstrings() -> Iterator[str]:
    """Docstrings whose first line leans on another line."""
    for path, line, text in docstrings():
        if DANGLING.match(text):
            yield place(path, line, text.splitlines()[0])


def unnamed_persons() -> Iterator[str]:
    """Sentences about nobody, where the thing that acts has a name."""
    for path, line, text in docstrings():
        if found := UNNAMED.search(text):
            yield place(path, line, found.group())


def small_rooms() -> Iterator[str]:
    """Files of fewer than `SMALL` lines that one file alone imports."""
    readers = importers()
    for path in set(MODULES.values()) - may_be_small():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines < SMALL and len(readers[path]) <= 1:
            yield place(path, 1, f"{lines} lines, {len(readers[path])} importers")


def packed_arguments() -> Iterator[str]:
    """Calls ``f(*pack)`` of a function with named parameters: which argument is which?"""
    fixed: dict[str, bool] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                fixed[node.name] = fixed.get(node.name, True) and node.args.vararg is None
    for path, tree in trees().items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                packs = _tuples(function)
                for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                    callee = getattr(call.func, "attr", getattr(call.func, "id", ""))
                    for argument in call.args if fixed.get(callee) else ():
                        name = getattr(getattr(argument, "value", None), "id", None)
                        if isinstance(argument, ast.Starred) and name in packs:
                            yield place(path, argument.lineno, f"{callee}(*{name})")


def _tuples(function: ast.FunctionDef) -> set[str]:
    """Variables to which a function assigns a tuple."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def british_names() -> Iterator[str]:
    """British spelling in names of modules, classes, functions, variables, and in docstrings."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            names = (getattr(node, field, None) for field in ("name", "id", "attr", "arg"))
            for name in names:
                if isinstance(name, str) and BRITISH.search(name):
                    yield place(path, node.lineno, name)
    for path, line, text in docstrings():
        if found := BRITISH.search(text):
            yield place(path, line, found.group())


RULES = (
    twin_classes,
    dangling_docstrings,
    unnamed_persons,
    small_rooms,
    packed_arguments,
    british_names,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_place_breaks(rule) -> None:
    offences = sorted(rule())
    assert not offences, "\n".join([f"{len(offences)} places: {rule.__doc__}", *offences])


PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "docs/thread-pool.md", "tests/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_a_page_exists(page: str) -> None:
    """A path stands in backticks; its first folders may be left out, and NAME is any name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|yaml|sh)))`", text))
    assert paths
    bases = [ROOT, *(folder for top in (PACKAGE, ROOT / "tests") for folder in folders(top))]
    missing = [
        path
        for path in paths
        if not any((base / path.replace("NAME.py", "")).exists() for base in bases)
    ]
    assert not missing


def folders(top: Path) -> list[Path]:
    """A folder and all folders below it."""
    return [top, *(path for path in top.rglob("*") if path.is_dir() and path.name[0] not in "._")]


def test_what_is_slow_exists() -> None:
    """Each entry of the list that keeps tests out of the quick ones names a file or a folder."""
    missing = [entry for entry in SLOW if not [*ROOT.glob(f"{entry.partition('::')[0]}*")]]
    assert not missing
