"""Errors for objects in a pickle that lstm-cli never builds: their keys, and a hint.

PyTorch itself can load such objects, which executes code that the file names. A hint has the Python
code that does so and saves the state dict without them.
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

SAVE_WEIGHTS_HINT = "save the weights alone: torch.save(model.state_dict(), path)"
REFUSED = ", which is refused: nothing was executed"
MAX_PLACES = 20
DEEPEST = 32

Key = str | int
KeyPath = tuple[Key, ...]

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
    "_rebuild_from_type_v2": ("a tensor of a subclass", _PLAIN_CLASS),
    "_rebuild_wrapper_subclass": ("a tensor of a subclass", _PLAIN_CLASS),
    "ScriptObject": ("the packed weights of a quantized module", _UNQUANTIZED),
}
"""Functions that build unsupported tensors: the kind in words, and a hint."""
_KINDS = (
    (r"numpy\b.*\.scalar", "a NumPy number"),
    (r"numpy\b.*\._reconstruct", "a NumPy array"),
    (r"numpy\.dtypes?\b.*", "a NumPy dtype"),
    (r"numpy\..*", "a NumPy object"),
    (r"pathlib\b.*", "a path"),
    (r"datetime\..*", "a date or time"),
    (r"argparse\.Namespace", "the options of a program"),
    (r"omegaconf\..*", "an OmegaConf config"),
    (r"collections\..*|types\.SimpleNamespace", "a special container"),
    (r"torch\.torch_version\..*", "a version of PyTorch"),
    (r"torch\.optim\..*", "an optimizer or a schedule"),
)
"""Classes and functions that checkpoints often name, and their kind in words."""

_DANGEROUS_MODULES = {
    "os", "posix", "nt", "subprocess", "builtins", "__builtin__", "sys", "shutil", "socket", "code",
    "importlib", "runpy", "pty", "ctypes", "commands", "webbrowser", "pickle", "torch.hub",
    "multiprocessing",
}  # fmt: skip
"""Modules with dangerous functions; a hint never loads a file that names one of them."""

_PLAIN_TYPES = {
    "list", "dict", "set", "frozenset", "tuple", "int", "float", "complex", "bool", "str", "bytes",
    "bytearray", "range", "slice", "object",
}  # fmt: skip
"""Harmless types in these modules."""


def refusal(
    root: Any, unknown_globals: Sequence[UnknownGlobal], source: str, path: Path | str = "path"
) -> WeightsError:
    """Error for a pickle that names unknown globals, with the keys that hold their values.

    Parameters
    ----------
    root
        Content of the pickle, with a `RefusedObject` for each value that was not built.
    unknown_globals
        Unknown globals in order; not empty.
    source, path
        File and member in words, and the path in the Python code of hints.
    """
    refused = list(_refused_values(root))
    if not refused:
        name = printable(str(unknown_globals[0]))
        return WeightsError(
            f"{source} names {name}{REFUSED}",
            expected="tensors, storages and plain containers only",
            hint=SAVE_WEIGHTS_HINT,
        )
    tensors = [one for one in refused if _is_tensor(one[1])]
    keys, value = (tensors or refused)[0]
    whole = not keys and _is_module(value)
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    descriptions = "; ".join(f"{_key_path(t)}: {_description(v)}" for t, v in refused[:8])
    return WeightsError(
        f"{source} holds {_description(value)}"
        + (f" under {_key_path(keys)}{more}" if keys else "")
        + REFUSED,
        expected="tensors, storages and plain containers only",
        found=descriptions + (f" and {len(refused) - 8} more" if len(refused) > 8 else "")
        if more
        else None,
        hint=_tensor_hint(value)
        if tensors
        else _hint(root, refused, unknown_globals, path, whole=whole),
    )


def _refused_values(root: Any) -> Iterator[tuple[KeyPath, RefusedObject | UnknownGlobal]]:
    """Values that were not built, with their keys; the first `MAX_PLACES` in stored order."""
    pending: list[tuple[KeyPath, Any]] = [((), root)]
    visited: set[int] = set()
    count = 0
    while pending and count < MAX_PLACES:
        keys, value = pending.pop()
        if isinstance(value, RefusedObject | UnknownGlobal):
            count += 1
            yield keys, value
        elif isinstance(value, dict | list | tuple) and id(value) not in visited:
            visited.add(id(value))
            if len(keys) < DEEPEST:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                pending += [((*keys, key), child) for key, child in reversed(list(pairs))]


def _key_path(keys: KeyPath) -> str:
    # Such as hyper_parameters.folders[0].
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
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


def _description(value: RefusedObject | UnknownGlobal) -> str:
    """Kind of a value, and the class or function that would build it."""
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
        else f"a value that {name} makes"
    )


def _hint(
    root: Any,
    refused: Sequence[tuple[KeyPath, Any]],
    unknown_globals: Sequence[UnknownGlobal],
    path: Path | str,
    *,
    whole: bool,
) -> str:
    """Python code that loads the whole file and saves the state dict."""
    modules = [keys for keys, value in refused if _is_module(value)]
    dicts = state_dicts(root)
    if any(
        one.module in _DANGEROUS_MODULES and one.name not in _PLAIN_TYPES for one in unknown_globals
    ):
        return SAVE_WEIGHTS_HINT
    if whole or (modules and not dicts):
        where = "" if whole else _index_code(modules[0])
        expression = f"{load_code(path, unknown_globals)}{where}.state_dict()"
    elif len(dicts) == 1:
        expression = _state_dict_code(load_code(path, unknown_globals), dicts[0], refused)
    else:
        return SAVE_WEIGHTS_HINT
    return (
        f"{_windows_paths_code(unknown_globals)}torch.save({expression}, "
        f"{weights_file_name(path)!r}) saves the state dict alone; "
        "loading runs code that the file names: only for a file you trust, where its classes can "
        "be imported"
    )


def load_code(path: Path | str, unknown_globals: Sequence[UnknownGlobal] = ()) -> str:
    """Python code that loads a file onto the CPU."""
    return f"torch.load({str(path)!r}, map_location='cpu', weights_only={not unknown_globals})"


def weights_file_name(path: Path | str) -> str:
    """Name for a file of weights next to the original."""
    return str(Path(path).with_suffix("")) + "-weights.pt"


def _windows_paths_code(unknown_globals: Sequence[UnknownGlobal]) -> str:
    # Windows paths exist on Windows only, pure ones everywhere.
    module = next((one.module for one in unknown_globals if one.name == "WindowsPath"), None)
    return "" if module is None else f"import {module} as p; p.WindowsPath = p.PurePath; "


def _state_dict_code(load: str, state: StateDict, refused: Sequence[tuple[KeyPath, Any]]) -> str:
    inside = any(keys[: len(state.keys)] == state.keys for keys, _ in refused)
    expression = load + _index_code(state.keys)
    plain = state.plain and not inside
    return (
        expression if plain else f"{{k: v for k, v in {expression}.items() if torch.is_tensor(v)}}"
    )


def _index_code(keys: KeyPath) -> str:
    return "".join(f"[{key!r}]" for key in keys)
