"""The ways to run a recurrent layer, by name."""

from __future__ import annotations

from lstm_cli.engines.cuda.device import Device
from lstm_cli.engines.cuda.general import GeneralWay
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.recurrence import Way

WAYS = ("auto", "general")


def make_way(name: str, device: Device, precision: Precision) -> Way:
    """What runs recurrent layers: a name of `WAYS`."""
    return GeneralWay(device, precision)
