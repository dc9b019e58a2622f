"""The Python interface, and the work behind each command; modules load at first use.

`model` has `Model`, `build` and `load`, and the folder `train` has `Trainer`. The commands `run`
and `inspect-shapes` have a file of their name, the others a folder. `shape_check` has the messages
for wrong dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_cli.workflows.model import Model, build, load
    from lstm_cli.workflows.train.trainer import Trainer

__all__ = ["Model", "Trainer", "build", "load"]

_MODULES = {
    **dict.fromkeys(("Model", "build", "load"), "lstm_cli.workflows.model"),
    "Trainer": "lstm_cli.workflows.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
