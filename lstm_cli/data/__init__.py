"""Sequences from HDF5 files, and results into them. HDF5 itself is loaded with the first file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_cli.data.dataset import Dataset, open_data
    from lstm_cli.data.gates import GateWriter
    from lstm_cli.data.inspection import describe, holds_data, holds_network
    from lstm_cli.data.moments import (
        FeatureStatistics,
        class_counts,
        feature_statistics,
        target_statistics,
    )
    from lstm_cli.data.not_hdf5 import is_config_or_weights
    from lstm_cli.data.report import FileReport, GroupReport, StoredReport
    from lstm_cli.data.results import ResultWriter
    from lstm_cli.data.sampling import Sampler
    from lstm_cli.data.split import hold_out, need_same_form
    from lstm_cli.data.states import StateReader
    from lstm_cli.data.storage import AS_CLASSES
    from lstm_cli.data.types import Batch, DataOptions, Room, TargetInfo, Window
    from lstm_cli.data.windows import targets_beyond

__all__ = [
    "AS_CLASSES",
    "Batch",
    "DataOptions",
    "Dataset",
    "FeatureStatistics",
    "FileReport",
    "GateWriter",
    "GroupReport",
    "ResultWriter",
    "Room",
    "Sampler",
    "StateReader",
    "StoredReport",
    "TargetInfo",
    "Window",
    "class_counts",
    "describe",
    "feature_statistics",
    "hold_out",
    "holds_data",
    "holds_network",
    "is_config_or_weights",
    "need_same_form",
    "open_data",
    "target_statistics",
    "targets_beyond",
]

_MODULES = {
    "dataset": ("Dataset", "open_data"),
    "gates": ("GateWriter",),
    "inspection": ("describe", "holds_data", "holds_network"),
    "not_hdf5": ("is_config_or_weights",),
    "moments": ("FeatureStatistics", "class_counts", "feature_statistics", "target_statistics"),
    "report": ("FileReport", "GroupReport", "StoredReport"),
    "results": ("ResultWriter",),
    "sampling": ("Sampler",),
    "split": ("hold_out", "need_same_form"),
    "states": ("StateReader",),
    "storage": ("AS_CLASSES",),
    "types": ("Batch", "DataOptions", "Room", "TargetInfo", "Window"),
    "windows": ("targets_beyond",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
