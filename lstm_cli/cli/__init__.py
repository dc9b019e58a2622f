"""The command line: reads arguments, calls `lstm_cli.api`, prints."""

try:
    from lstm_cli.cli.main import main
except KeyboardInterrupt:  # before there is anything to stop
    raise SystemExit(130) from None

__all__ = ["main"]
