"""PyTorch's files: torch.save's archive and safetensors, read and written without PyTorch."""

from lstm_cli.formats.torch.reader import read as read
from lstm_cli.formats.torch.writer import write as write

__all__ = ["read", "write"]
