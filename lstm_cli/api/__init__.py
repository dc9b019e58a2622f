"""The Python interface, and the work behind each command; modules load at first use.

`model` has `Model`, `build` and `load`; `trainer` has `Trainer`. The commands begin at `run`,
`training_run`, `conversion`, `shapes` and `comparison`. `shape_check` has the messages for wrong
dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_cli.api.model import Model, build, load
    from lstm_cli.api.trainer import Trainer

__all__ = ["Model", "Trainer", "build", "load"]

_MODULES = {"build": "model", "load": "model", "Model": "model", "Trainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
