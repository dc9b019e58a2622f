"""The command line: reads arguments, calls `lstm_cli.api`, prints."""

from lstm_cli.cli.main import main

__all__ = ["main"]
