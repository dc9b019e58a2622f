"""The ways to run a recurrent layer, by name."""

from __future__ import annotations

from lstm_cli.engines.cuda.device import Device
from lstm_cli.engines.cuda.general import GeneralWay
from lstm_cli.engines.cuda.persistent_way import PersistentWay
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.recurrence import Way

WAYS = ("auto", "general", "persistent")
"""``auto`` takes persistent kernels where there is a plan, and the general ones elsewhere;
``persistent`` has nothing else."""


def make_way(name: str, device: Device, precision: Precision) -> Way:
    """What runs recurrent layers: a name of `WAYS`."""
    if name == "persistent":
        return PersistentWay(device, precision)
    general = GeneralWay(device, precision)
    return general if name == "general" else PersistentWay(device, precision, general)
