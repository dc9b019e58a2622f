"""The command line: read arguments, call `lstm_cli.workflows`, print results.

`lstm_cli.cli.main` has the group of commands; each command has a module of its name.
"""

try:
    from lstm_cli.cli.main import main
except KeyboardInterrupt:  # no work has started
    raise SystemExit(130) from None

__all__ = ["main"]
