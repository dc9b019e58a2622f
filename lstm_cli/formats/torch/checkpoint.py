"""The state dict in what a file holds: often one entry of a checkpoint among others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch.admitted import TensorView
from lstm_cli.formats.torch.tensors import listed, shown

DEEPEST = 8
_WEIGHT = re.compile(r"(^|\.)weight(_ih|_hh)?(_l\d+(_reverse)?)?$")


@dataclass(frozen=True)
class StateDict:
    """One state dict of a file.

    Attributes
    ----------
    path
        Keys that lead to it, joined by dots; empty for the file's own.
    tensors
        By name, in stored order.
    notes
        What else the file holds.
    """

    path: str
    tensors: Mapping[str, TensorView]
    notes: tuple[str, ...] = ()

    def below(self, prefix: str) -> StateDict:
        """Only the names below a prefix, which may begin with this state dict's own path."""
        start = prefix.rstrip(".") + "."
        own = f"{self.path}." if self.path else ""
        kept = {
            name: view
            for name, view in self.tensors.items()
            if name.startswith(start) or (own + name).startswith(start)
        }
        return StateDict(self.path, kept, self.notes)


def find_state_dict(root: Any, prefix: str | None, path: Path) -> StateDict:
    """The one state dict below `root`, or the one below `prefix`.

    Raises
    ------
    WeightsError
        None, or several of them.
    """
    found = list(_state_dicts(root))
    if prefix:
        # A state dict that stands there wins over names in others that happen to begin so.
        there = [one for one in found if _begins(one.path, prefix) or _begins(prefix, one.path)]
        found = [part for part in (one.below(prefix) for one in there or found) if part.tensors]
    if not found:
        raise _none(root, prefix, path)
    if len(found) > 1:
        names = [one.path or "(the file itself)" for one in found]
        raise WeightsError(
            f"{path} holds {len(found)} state dicts",
            expected="one",
            found=listed(names),
            hint=f"--prefix {found[-1].path} takes that one" if found[-1].path else None,
        )
    return found[0]


def _begins(path: str, start: str) -> bool:
    """Whether a path of keys begins with another one, which is not empty."""
    return bool(start) and f"{path}.".startswith(f"{start.rstrip('.')}.")


def _none(root: Any, prefix: str | None, path: Path) -> WeightsError:
    below = f" below {shown(prefix)}" if prefix else ""
    names = [str(key) for key in root] if isinstance(root, dict) else [_word(root)]
    return WeightsError(
        f"{path} holds no state dict{below}",
        expected="tensors named weight, weight_ih_l0, ... in a dict",
        found=listed(names) or "an empty dict",
        hint="torch.save(model.state_dict(), path) writes one",
    )


def _word(value: Any) -> str:
    return "one tensor" if isinstance(value, TensorView) else f"a {type(value).__name__}"


def _state_dicts(root: Any) -> Iterator[StateDict]:
    """Every mapping that holds weights itself; what lies below one is not searched."""
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while pending:
        keys, value = pending.pop()
        if id(value) in seen or len(keys) > DEEPEST:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if _holds_weights(value):
                yield _state_dict(keys, value, root)
                continue
            if _is_optimiser(value):
                continue
        children = _children(value)
        pending += [((*keys, key), child) for key, child in reversed(children)]


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        pairs = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(str(k), child) for k, child in enumerate(value)]
    else:
        pairs = []
    return [pair for pair in pairs if isinstance(pair[1], dict | list | tuple)]


def _holds_weights(mapping: dict[Any, Any]) -> bool:
    return any(
        isinstance(value, TensorView) and isinstance(name, str) and _WEIGHT.search(name)
        for name, value in mapping.items()
    )


def _is_optimiser(mapping: dict[Any, Any]) -> bool:
    return "state" in mapping and "param_groups" in mapping


def _state_dict(keys: tuple[str, ...], mapping: dict[Any, Any], root: Any) -> StateDict:
    tensors = {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, TensorView)
    }
    notes = []
    other = [str(name) for name in mapping if name not in tensors]
    if other:
        notes.append(f"left out, as they are no tensors: {listed(other)}")
    if keys and isinstance(root, dict):
        beside = [str(name) for name in root if str(name) != keys[0]]
        if beside:
            notes.append(f"left out of the checkpoint, beside {shown(keys[0])}: {listed(beside)}")
    return StateDict(".".join(keys), tensors, tuple(notes))
