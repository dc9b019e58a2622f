"""What composes the parts, for Python users and for the commands."""

from lstm_cli.api.assembly import build, load
from lstm_cli.api.model import Model
from lstm_cli.api.trainer import Trainer

__all__ = ["Model", "Trainer", "build", "load"]
