"""Values in a pickle that are no tensors: which keys hold them, and how to save the weights alone.

Nothing of them is made. PyTorch itself can load them, which runs what the file names; a hint has
the line of Python that does so and saves the state dict without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch.allowed_globals import RefusedObject, UnknownGlobal
from lstm_cli.formats.torch.state_dict import StateDict, state_dicts
from lstm_cli.formats.torch.tensors import printable

STATE_DICT = "save the weights alone: torch.save(model.state_dict(), path)"
REFUSED = ", which is refused: nothing was executed"
MAX_PLACES = 20
DEEPEST = 32

Key = str | int
Trail = tuple[Key, ...]

_UNQUANTIZED = (
    "save the state dict of the model before it is quantized; or of each quantized LSTM or GRU m, "
    "whose weights are rounded: torch.save({**{k: w.dequantize() for k, w in "
    "m.get_weight().items()}, **m.get_bias()}, path)"
)
_PLAIN_CLASS = "save the state dict of the model before its tensors become those of another class"
_TENSORS = {
    "_rebuild_qtensor": ("a quantized tensor", _UNQUANTIZED),
    "_rebuild_sparse_tensor": ("a sparse tensor", "save tensor.to_dense()"),
    "_rebuild_sparse_csr_tensor": ("a sparse tensor", "save tensor.to_dense()"),
    "_get_layout": ("a sparse tensor", "save tensor.to_dense()"),
    "_rebuild_nested_tensor": ("a nested tensor", "save plain tensors"),
    "_rebuild_meta_tensor_no_storage": ("a tensor without values", "save it from a real device"),
    "_rebuild_from_type_v2": ("a tensor of a class of its own", _PLAIN_CLASS),
    "_rebuild_wrapper_subclass": ("a tensor of a class of its own", _PLAIN_CLASS),
    "ScriptObject": ("the packed weights of a quantized module", _UNQUANTIZED),
}
"""Tensors that are none here: in words, and what to do."""
_KINDS = (
    (r"numpy\b.*\.scalar", "a NumPy number"),
    (r"numpy\b.*\._reconstruct", "a NumPy array"),
    (r"numpy\.dtypes?\b.*", "a NumPy dtype"),
    (r"numpy\..*", "a NumPy object"),
    (r"pathlib\b.*", "a path"),
    (r"datetime\..*", "a date or time"),
    (r"argparse\.Namespace", "the options of a program"),
    (r"omegaconf\..*", "a config of OmegaConf"),
    (r"collections\..*|types\.SimpleNamespace", "a container of a class of its own"),
    (r"torch\.torch_version\..*", "a version of PyTorch"),
    (r"torch\.optim\..*", "an optimizer or a schedule"),
)
"""Classes and functions that checkpoints often name, in words."""

_POWERFUL = {
    "os", "posix", "nt", "subprocess", "builtins", "__builtin__", "sys", "shutil", "socket", "code",
    "importlib", "runpy", "pty", "ctypes", "commands", "webbrowser", "pickle", "torch.hub",
    "multiprocessing",
}  # fmt: skip
"""Modules whose functions could do anything: a file that names one is not to be loaded at all."""

_PLAIN = {
    "list", "dict", "set", "frozenset", "tuple", "int", "float", "complex", "bool", "str", "bytes",
    "bytearray", "range", "slice", "object",
}  # fmt: skip
"""Names in these modules that are nothing but types."""


def refusal(
    root: Any, foreign: Sequence[UnknownGlobal], source: str, path: Path | str = "path"
) -> WeightsError:
    """The error for a pickle that names something foreign, by the keys that hold it.

    Parameters
    ----------
    root
        What the pickle holds, an `RefusedObject` in each place of what was not made.
    foreign
        All that it names, in order; not empty.
    source, path
        What it was read from, and the file as a hint's Python names it.
    """
    found = list(_places(root))
    if not found:
        name = printable(str(foreign[0]))
        return WeightsError(
            f"{source} names {name}{REFUSED}",
            expected="tensors, storages and plain containers only",
            hint=STATE_DICT,
        )
    tensors = [one for one in found if _is_tensor(one[1])]
    trail, value = (tensors or found)[0]
    whole = not trail and _is_module(value)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    places = "; ".join(f"{_where(t)}: {_words(v)}" for t, v in found[:8])
    return WeightsError(
        f"{source} holds {_words(value)}"
        + (f" under {_where(trail)}{more}" if trail else "")
        + REFUSED,
        expected="tensors, storages and plain containers only",
        found=places + (f" and {len(found) - 8} more" if len(found) > 8 else "") if more else None,
        hint=_tensor_hint(value) if tensors else _hint(root, found, foreign, path, whole=whole),
    )


def _places(root: Any) -> Iterator[tuple[Trail, RefusedObject | UnknownGlobal]]:
    """Keys that lead to what was not made, the first few in stored order."""
    pending: list[tuple[Trail, Any]] = [((), root)]
    seen: set[int] = set()
    count = 0
    while pending and count < MAX_PLACES:
        trail, value = pending.pop()
        if isinstance(value, RefusedObject | UnknownGlobal):
            count += 1
            yield trail, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if len(trail) < DEEPEST:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                pending += [((*trail, key), child) for key, child in reversed(list(pairs))]


def _where(trail: Trail) -> str:
    """Keys as one path: ``hyper_parameters.folders[0]``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in trail)
    return printable(text.removeprefix(".")) if text else "(the file itself)"


def _is_tensor(value: RefusedObject | UnknownGlobal) -> bool:
    source = value.source if isinstance(value, RefusedObject) else value
    return source.module.split(".")[0] == "torch" and source.name in _TENSORS


def _is_module(value: RefusedObject | UnknownGlobal) -> bool:
    if isinstance(value, UnknownGlobal):
        return False
    return value.is_module or value.source.module.startswith("torch.nn.")


def _tensor_hint(value: RefusedObject | UnknownGlobal) -> str:
    source = value.source if isinstance(value, RefusedObject) else value
    return _TENSORS[source.name][1]


def _words(value: RefusedObject | UnknownGlobal) -> str:
    """What the value is, and which class or function makes it."""
    source = value.source if isinstance(value, RefusedObject) else value
    name = printable(str(source))
    if _is_tensor(value):
        return f"{_TENSORS[source.name][0]} ({name})"
    if _is_module(value):
        return f"a whole module, an object of the class {name}"
    kind = next((words for pattern, words in _KINDS if re.fullmatch(pattern, str(source))), None)
    if kind is not None:
        return f"{kind} ({name})"
    return (
        f"the function or class {name}"
        if isinstance(value, UnknownGlobal)
        else f"what {name} makes"
    )


def _hint(
    root: Any,
    found: Sequence[tuple[Trail, Any]],
    foreign: Sequence[UnknownGlobal],
    path: Path | str,
    *,
    whole: bool,
) -> str:
    """The line of Python that loads all of it and saves the state dict."""
    modules = [trail for trail, value in found if _is_module(value)]
    dicts = state_dicts(root)
    if any(one.module in _POWERFUL and one.name not in _PLAIN for one in foreign):
        return STATE_DICT
    if whole or (modules and not dicts):
        where = "" if whole else _index(modules[0])
        taken = f"{loading(path, foreign)}{where}.state_dict()"
    elif len(dicts) == 1:
        taken = _taken(loading(path, foreign), dicts[0], found)
    else:
        return STATE_DICT
    return (
        f"{_before(foreign)}torch.save({taken}, {renamed(path)!r}) saves the state dict alone; "
        "it runs what the file names: only for a file you trust, where its classes can be imported"
    )


def loading(path: Path | str, foreign: Sequence[UnknownGlobal] = ()) -> str:
    """The call that loads a file, of whatever device it was saved on."""
    return f"torch.load({str(path)!r}, map_location='cpu', weights_only={not foreign})"


def renamed(path: Path | str) -> str:
    """A name beside the file for what is saved of it."""
    return str(Path(path).with_suffix("")) + "-weights.pt"


def _before(foreign: Sequence[UnknownGlobal]) -> str:
    """Paths of Windows can be made on Windows only; pure ones anywhere."""
    module = next((one.module for one in foreign if one.name == "WindowsPath"), None)
    return "" if module is None else f"import {module} as p; p.WindowsPath = p.PurePath; "


def _taken(load: str, state: StateDict, found: Sequence[tuple[Trail, Any]]) -> str:
    """The state dict as Python takes it from the loaded file, without what is no tensor in it."""
    inside = any(trail[: len(state.keys)] == state.keys for trail, _ in found)
    taken = load + _index(state.keys)
    plain = state.plain and not inside
    return taken if plain else f"{{k: v for k, v in {taken}.items() if torch.is_tensor(v)}}"


def _index(trail: Trail) -> str:
    return "".join(f"[{key!r}]" for key in trail)
