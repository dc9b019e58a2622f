"""ONNX models: reader and writer, without the onnx package."""

from lstm_cli.formats.onnx.reader import read
from lstm_cli.formats.onnx.writer import write

__all__ = ["read", "write"]
