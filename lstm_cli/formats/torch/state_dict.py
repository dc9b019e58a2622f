"""The state dict in what a file holds, often one entry of a checkpoint, and what is taken of it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError, nearest
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.formats.torch.allowed_globals import RefusedObject, TensorView
from lstm_cli.formats.torch.modules import weight_place
from lstm_cli.formats.torch.tensors import list_names, printable

DEEPEST = 8
MAX_NAMES = 1000
"""Names of tensors among which one like a wrong pattern is looked for."""
_WEIGHT = re.compile(r"(^|\.)weight(_ih|_hh)?(_l\d+(_reverse)?)?(_(g|v|orig|raw)|\.original\d?)?$")


@dataclass(frozen=True)
class StateDict:
    """One state dict of a file.

    Attributes
    ----------
    keys
        That lead to it in the file; none for the file's own.
    tensors
        By name, in stored order.
    notes
        What else the file holds, and what options leave out.
    plain
        Whether it is a dict, not one of a class of its own.
    """

    keys: tuple[str | int, ...]
    tensors: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    plain: bool = True

    @property
    def path(self) -> str:
        """The keys, joined by dots."""
        return ".".join(map(str, self.keys))

    def full(self, name: str) -> str:
        """A tensor's name with the keys in front."""
        return f"{self.path}.{name}" if self.keys else name

    def below(self, prefix: str) -> StateDict:
        """Only the names below a prefix, which may begin with this state dict's own path."""
        start = prefix.rstrip(".") + "."
        kept = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start) or self.full(name).startswith(start)
        }
        return replace(self, tensors=kept)

    def matched(self, pattern: re.Pattern[str]) -> set[str]:
        """Names that a pattern matches, with the keys in front or without them."""
        return {n for n in self.tensors if pattern.match(n) or pattern.match(self.full(n))}


def find_state_dict(root: Any, options: ReadOptions, path: Path) -> StateDict:
    """The one state dict below `root` from which the options take something.

    Raises
    ------
    WeightsError
        None, or several of them.
    """
    found, prefix = state_dicts(root), options.prefix
    if prefix:
        # A state dict that stands there wins over names in others that happen to begin so.
        there = [one for one in found if _begins(one.path, prefix) or _begins(prefix, one.path)]
        taken = [part for part in (one.below(prefix) for one in there or found) if part.tensors]
    else:
        taken = found
    if not taken:
        raise _none(root, prefix, path)
    if options.only or options.ignore:
        taken = select_tensors(taken, options, path, found)
    if len(taken) > 1:
        names = [one.path or "(the file itself)" for one in taken]
        raise WeightsError(
            f"{path} holds {len(taken)} state dicts",
            expected="one",
            found=list_names(names),
            hint=f"--prefix {taken[-1].path} takes that one" if taken[-1].path else None,
        )
    return taken[0]


def select_tensors(
    found: Sequence[StateDict], options: ReadOptions, path: Path, whole: Sequence[StateDict] = ()
) -> list[StateDict]:
    """What ``--only`` and ``--ignore`` take of the state dicts, those that lose all left out.

    Parameters
    ----------
    whole
        The state dicts before a prefix, whose names a pattern may match as well.

    Raises
    ------
    WeightsError
        A pattern matches no name, nothing is left, or only a part of a layer is.
    """
    only, ignore = (
        [_compiled(pattern, name, whole or found, path) for pattern in patterns]
        for name, patterns in (("only", options.only), ("ignore", options.ignore))
    )
    kept = []
    for state in found:
        names = set(state.tensors)
        taken = set[str]().union(*map(state.matched, only)) if only else names
        ignored = taken.intersection(*[set[str]().union(*map(state.matched, ignore))])
        left = {name: t for name, t in state.tensors.items() if name in taken - ignored}
        notes = [
            f"left out, as {option} says: {list_names([n for n in state.tensors if n in out])}"
            for option, out in (("--only", names - taken), ("--ignore", ignored))
            if out
        ]
        if left:
            _check_layers(state, left, path)
            kept.append(replace(state, tensors=left, notes=(*state.notes, *notes)))
    if not kept:
        given = [f"--{n} {','.join(p)}" for n, p in _given(options)]
        raise WeightsError(
            f"no tensor of {path} is left",
            expected="at least one that the options take",
            found=" ".join(given),
            hint=f"the names are {list_names(_modules(found))}",
        )
    return kept


def _given(options: ReadOptions) -> list[tuple[str, tuple[str, ...]]]:
    prefix = (options.prefix,) if options.prefix else ()
    named = (("prefix", prefix), ("only", options.only), ("ignore", options.ignore))
    return [(name, given) for name, given in named if given]


def _compiled(pattern: str, option: str, found: Sequence[StateDict], path: Path) -> re.Pattern[str]:
    """The pattern, which has to match a name."""
    compiled = re.compile(fnmatch.translate(pattern))
    if any(state.matched(compiled) for state in found):
        return compiled
    modules = _modules(found)
    below = f"{pattern.rstrip('.')}.*"
    names = islice((n for state in found for n in state.tensors if len(n) < 200), MAX_NAMES)
    near = below if below in modules else nearest(pattern, [*modules, *names])
    raise WeightsError(
        f"no tensor of {path} has a name that --{option} {printable(pattern)} matches",
        expected="a pattern of whole names, in which * stands for anything",
        found=list_names(modules),
        hint=f"--{option} '{near}'" if near is not None else None,
    )


def _modules(found: Sequence[StateDict]) -> list[str]:
    """Patterns that take one module each, the outermost first: ``lstm.*``, ``net.fc.*``."""
    names = islice((name for state in found for name in state.tensors), MAX_NAMES)
    parts = [name.split(".") for name in names if len(name) < 200]
    depth = max((len(one) for one in parts), default=0)
    starts = [
        ".".join(one[:k]) + (".*" if k < len(one) else "")
        for k in range(1, min(depth, 6) + 1)
        for one in parts
        if k <= len(one)
    ]
    return list(dict.fromkeys(starts))


def _check_layers(state: StateDict, left: Mapping[str, Any], path: Path) -> None:
    """Refuse a layer without its bias, say: it would be another one."""
    kept = {weight_place(name) for name in left}
    lost = next(
        (n for n in state.tensors if n not in left and weight_place(n) in kept - {None}), None
    )
    if lost is not None:
        module = lost.rpartition(".")[0]
        raise WeightsError(
            f"--only and --ignore take a part of one layer's tensors, without {printable(lost)}",
            expected="all of a layer, or nothing of it",
            where=str(path),
            hint=f"'{module}.*' matches all of the module" if module else None,
        )


def _begins(path: str, start: str) -> bool:
    """Whether a path of keys begins with another one, which is not empty."""
    return bool(start) and f"{path}.".startswith(f"{start.rstrip('.')}.")


def _none(root: Any, prefix: str | None, path: Path) -> WeightsError:
    below = f" below {printable(prefix)}" if prefix else ""
    names = [str(key) for key in root] if isinstance(root, dict) else [_word(root)]
    return WeightsError(
        f"{path} holds no state dict{below}",
        expected="tensors named weight, weight_ih_l0, ... in a dict",
        found=list_names(names) or "an empty dict",
        hint="torch.save(model.state_dict(), path) writes one",
    )


def _word(value: Any) -> str:
    return "one tensor" if isinstance(value, TensorView) else f"a {type(value).__name__}"


def state_dicts(root: Any) -> list[StateDict]:
    """Every mapping that holds weights itself, in stored order."""
    return list(_state_dicts(root))


def _state_dicts(root: Any) -> Iterator[StateDict]:
    """Every mapping that holds weights itself; what lies below one is not searched."""
    seen: set[int] = set()
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), root)]
    while pending:
        keys, value = pending.pop()
        plain = not isinstance(value, RefusedObject)
        value = value.entries if isinstance(value, RefusedObject) else value
        if id(value) in seen or len(keys) > DEEPEST:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if _holds_weights(value):
                yield _state_dict(keys, value, root, plain=plain)
                continue
            if _is_optimiser(value):
                continue
        children = _children(value)
        pending += [((*keys, key), child) for key, child in reversed(children)]


def _children(value: Any) -> list[tuple[str | int, Any]]:
    pairs: list[tuple[str | int, Any]] = []
    if isinstance(value, dict | list | tuple):
        pairs = [*(value.items() if isinstance(value, dict) else enumerate(value))]
    return [pair for pair in pairs if isinstance(pair[1], dict | list | tuple | RefusedObject)]


def _holds_weights(mapping: dict[Any, Any]) -> bool:
    return any(
        isinstance(value, TensorView) and isinstance(name, str) and _WEIGHT.search(name)
        for name, value in mapping.items()
    )


def _is_optimiser(mapping: dict[Any, Any]) -> bool:
    return "state" in mapping and "param_groups" in mapping


def _state_dict(
    keys: tuple[str | int, ...], mapping: dict[Any, Any], root: Any, *, plain: bool
) -> StateDict:
    tensors = {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, TensorView)
    }
    notes = []
    other = [str(name) for name in mapping if name not in tensors]
    if other:
        notes.append(f"left out, as they are no tensors: {list_names(other)}")
    if keys and isinstance(root, dict):
        beside = [str(name) for name in root if name != keys[0]]
        if beside:
            first = printable(str(keys[0]))
            notes.append(f"left out of the checkpoint, beside {first}: {list_names(beside)}")
    return StateDict(keys, tensors, tuple(notes), plain)
