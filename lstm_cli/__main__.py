"""Entry point of ``python -m lstm_cli``."""

import sys

from lstm_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
