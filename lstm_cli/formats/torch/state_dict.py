"""The state dict of a file, often one entry of a checkpoint, and the selection of its tensors."""

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
"""Number of tensor names that are searched for one like a wrong pattern."""
_WEIGHT = re.compile(r"(^|\.)weight(_ih|_hh)?(_l\d+(_reverse)?)?(_(g|v|orig|raw)|\.original\d?)?$")


@dataclass(frozen=True)
class StateDict:
    """State dict in a file.

    Attributes
    ----------
    keys
        Keys that lead to it in the file; empty if the file itself is the state dict.
    tensors
        Tensors by name, in stored order.
    notes
        Notes on other content of the file, and on tensors that options leave out.
    plain
        Whether it is a plain dict, not one of a user-defined class.
    """

    keys: tuple[str | int, ...]
    tensors: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    plain: bool = True

    @property
    def path(self) -> str:
        """Keys joined by dots."""
        return ".".join(map(str, self.keys))

    def full(self, name: str) -> str:
        """Name of a tensor with the keys before it."""
        return f"{self.path}.{name}" if self.keys else name

    def below(self, prefix: str) -> StateDict:
        """Copy with the names below a prefix only; the prefix may start with `path`."""
        start = prefix.rstrip(".") + "."
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start) or self.full(name).startswith(start)
        }
        return replace(self, tensors=tensors)

    def matched(self, pattern: re.Pattern[str]) -> set[str]:
        """Names that a pattern matches, with or without the keys before them."""
        return {n for n in self.tensors if pattern.match(n) or pattern.match(self.full(n))}


def find_state_dict(root: Any, options: ReadOptions, path: Path) -> StateDict:
    """Find the only state dict below `root` from which the options select tensors.

    Raises
    ------
    WeightsError
        There is none, or there are several.
    """
    all_dicts, prefix = state_dicts(root), options.prefix
    if prefix:
        # A state dict at the prefix wins over others whose names happen to start with it.
        at_prefix = [
            state
            for state in all_dicts
            if _starts_with(state.path, prefix) or _starts_with(prefix, state.path)
        ]
        candidates = [
            part
            for part in (state.below(prefix) for state in at_prefix or all_dicts)
            if part.tensors
        ]
    else:
        candidates = all_dicts
    if not candidates:
        raise _no_state_dict(root, prefix, path)
    if options.only or options.ignore:
        candidates = select_tensors(candidates, options, path, all_dicts)
    if len(candidates) > 1:
        names = [state.path or "(the file itself)" for state in candidates]
        raise WeightsError(
            f"{path} holds {len(candidates)} state dicts",
            expected="one",
            found=list_names(names),
            hint=f"--prefix {candidates[-1].path} reads that one" if candidates[-1].path else None,
        )
    return candidates[0]


def select_tensors(
    candidates: Sequence[StateDict],
    options: ReadOptions,
    path: Path,
    all_dicts: Sequence[StateDict] = (),
) -> list[StateDict]:
    """Select tensors by ``--only`` and ``--ignore``; state dicts without any are left out.

    Parameters
    ----------
    all_dicts
        State dicts before the selection by prefix; patterns may match their names as well.

    Raises
    ------
    WeightsError
        A pattern matches no name, no tensor is left, or only a part of a layer is left.
    """
    only, ignore = (
        [_compile_pattern(pattern, name, all_dicts or candidates, path) for pattern in patterns]
        for name, patterns in (("only", options.only), ("ignore", options.ignore))
    )
    selection = []
    for state in candidates:
        names = set(state.tensors)
        matched = set[str]().union(*map(state.matched, only)) if only else names
        ignored = matched.intersection(*[set[str]().union(*map(state.matched, ignore))])
        tensors = {name: t for name, t in state.tensors.items() if name in matched - ignored}
        notes = [
            f"left out, as {option} says: {list_names([n for n in state.tensors if n in out])}"
            for option, out in (("--only", names - matched), ("--ignore", ignored))
            if out
        ]
        if tensors:
            _check_layers(state, tensors, path)
            selection.append(replace(state, tensors=tensors, notes=(*state.notes, *notes)))
    if not selection:
        option_texts = [f"--{n} {','.join(p)}" for n, p in _selection_options(options)]
        raise WeightsError(
            f"the options select no tensor of {path}",
            expected="at least one tensor",
            found=" ".join(option_texts),
            hint=f"the names are {list_names(_module_patterns(candidates))}",
        )
    return selection


def _selection_options(options: ReadOptions) -> list[tuple[str, tuple[str, ...]]]:
    prefix = (options.prefix,) if options.prefix else ()
    option_values = (("prefix", prefix), ("only", options.only), ("ignore", options.ignore))
    return [(name, values) for name, values in option_values if values]


def _compile_pattern(
    pattern: str, option: str, candidates: Sequence[StateDict], path: Path
) -> re.Pattern[str]:
    """Compile a pattern, which must match a name."""
    compiled = re.compile(fnmatch.translate(pattern))
    if any(state.matched(compiled) for state in candidates):
        return compiled
    modules = _module_patterns(candidates)
    below = f"{pattern.rstrip('.')}.*"
    names = islice((n for state in candidates for n in state.tensors if len(n) < 200), MAX_NAMES)
    near = below if below in modules else nearest(pattern, [*modules, *names])
    raise WeightsError(
        f"no tensor of {path} has a name that --{option} {printable(pattern)} matches",
        expected="a pattern of whole names, in which * stands for anything",
        found=list_names(modules),
        hint=f"--{option} '{near}'" if near is not None else None,
    )


def _module_patterns(candidates: Sequence[StateDict]) -> list[str]:
    """Patterns for one module each, the outermost first: ``lstm.*``, ``net.fc.*``."""
    names = islice((name for state in candidates for name in state.tensors), MAX_NAMES)
    parts = [name.split(".") for name in names if len(name) < 200]
    depth = max((len(one) for one in parts), default=0)
    starts = [
        ".".join(one[:k]) + (".*" if k < len(one) else "")
        for k in range(1, min(depth, 6) + 1)
        for one in parts
        if k <= len(one)
    ]
    return list(dict.fromkeys(starts))


def _check_layers(state: StateDict, tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse a selection of only some tensors of a layer, which would be another layer."""
    kept_places = {weight_place(name) for name in tensors}
    lost = next(
        (n for n in state.tensors if n not in tensors and weight_place(n) in kept_places - {None}),
        None,
    )
    if lost is not None:
        module = lost.rpartition(".")[0]
        raise WeightsError(
            f"--only and --ignore select a part of one layer's tensors, without {printable(lost)}",
            expected="all tensors of a layer, or none",
            where=str(path),
            hint=f"'{module}.*' matches all of the module" if module else None,
        )


def _starts_with(path: str, start: str) -> bool:
    # An empty start matches nothing.
    return bool(start) and f"{path}.".startswith(f"{start.rstrip('.')}.")


def _no_state_dict(root: Any, prefix: str | None, path: Path) -> WeightsError:
    below = f" below {printable(prefix)}" if prefix else ""
    names = [str(key) for key in root] if isinstance(root, dict) else [_in_words(root)]
    return WeightsError(
        f"{path} holds no state dict{below}",
        expected="tensors named weight, weight_ih_l0, ... in a dict",
        found=list_names(names) or "an empty dict",
        hint="torch.save(model.state_dict(), path) writes one",
    )


def _in_words(value: Any) -> str:
    return "one tensor" if isinstance(value, TensorView) else f"a {type(value).__name__}"


def state_dicts(root: Any) -> list[StateDict]:
    """All mappings that hold weights themselves, in stored order."""
    return list(_state_dicts(root))


def _state_dicts(root: Any) -> Iterator[StateDict]:
    """All mappings that hold weights themselves; the search stops at each of them."""
    visited: set[int] = set()
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), root)]
    while pending:
        keys, value = pending.pop()
        plain = not isinstance(value, RefusedObject)
        value = value.entries if isinstance(value, RefusedObject) else value
        if id(value) in visited or len(keys) > DEEPEST:
            continue
        visited.add(id(value))
        if isinstance(value, dict):
            if _holds_weights(value):
                yield _state_dict(keys, value, root, plain=plain)
                continue
            if _is_optimizer(value):
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


def _is_optimizer(mapping: dict[Any, Any]) -> bool:
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
        notes.append(f"left out, as they are not tensors: {list_names(other)}")
    if keys and isinstance(root, dict):
        other_entries = [str(name) for name in root if name != keys[0]]
        if other_entries:
            first = printable(str(keys[0]))
            notes.append(
                f"left out of the checkpoint, which holds more than {first}: "
                f"{list_names(other_entries)}"
            )
    return StateDict(keys, tensors, tuple(notes), plain)
