"""Package version, in the lowest-level module so that all layers can import it."""

__version__ = "0.1.0"
