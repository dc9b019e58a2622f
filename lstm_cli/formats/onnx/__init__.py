"""ONNX: reads and writes models with a codec of its own."""

from lstm_cli.formats.onnx.reader import read
from lstm_cli.formats.onnx.writer import write

__all__ = ["read", "write"]
