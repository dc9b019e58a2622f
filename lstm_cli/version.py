"""The version, for whatever writes it into a file; the package's own name for it is above all."""

__version__ = "0.1.0"
