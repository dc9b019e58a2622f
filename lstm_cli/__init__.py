"""Train and run LSTM, GRU and simple recurrent networks, and see every gate.

The public names are loaded at first use, so importing the package is fast.
"""

from __future__ import annotations

from lstm_cli.version import __version__

# Not from `typing`: Ctrl-C during that import would show a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from lstm_cli.errors import LstmCliError
    from lstm_cli.workflows import Model, Trainer, build, load


__all__ = ["LstmCliError", "Model", "Trainer", "__version__", "build", "load"]


def __getattr__(name: str) -> object:
    if name in ("Model", "Trainer", "build", "load"):
        from lstm_cli import workflows

        return getattr(workflows, name)
    if name == "LstmCliError":
        from lstm_cli.errors import LstmCliError

        return LstmCliError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
