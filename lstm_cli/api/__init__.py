"""What composes the parts, for Python users and for the commands; loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_cli.api.assembly import build, load
    from lstm_cli.api.model import Model
    from lstm_cli.api.trainer import Trainer

__all__ = ["Model", "Trainer", "build", "load"]

_HOME = {"build": "assembly", "load": "assembly", "Model": "model", "Trainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
