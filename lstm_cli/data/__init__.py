"""Sequences from HDF5 files, and results into them. HDF5 itself is loaded with the first file.

Start at `sequence_data`. `layouts` reads each form of a file, `batches` and `windows` cut the
sequences, `lengths` pads them, and `result_files` writes what a run computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_cli.data.dataset_roles import AS_CLASSES
    from lstm_cli.data.inspection import (
        DatasetReport,
        FileReport,
        GroupReport,
        describe,
        holds_data,
        holds_network,
    )
    from lstm_cli.data.result_files import GateWriter, ResultWriter, StateReader
    from lstm_cli.data.sampling import Sampler, hold_out, require_same_form
    from lstm_cli.data.sequence_data import SequenceData, open_data
    from lstm_cli.data.statistics import (
        FeatureStatistics,
        class_counts,
        feature_statistics,
        target_statistics,
    )
    from lstm_cli.data.types import Allocator, Batch, DataOptions, TargetInfo, Window
    from lstm_cli.data.windows import targets_beyond_error
    from lstm_cli.hdf5.file import is_config_or_weights

__all__ = [
    "AS_CLASSES",
    "Allocator",
    "Batch",
    "DataOptions",
    "DatasetReport",
    "FeatureStatistics",
    "FileReport",
    "GateWriter",
    "GroupReport",
    "ResultWriter",
    "Sampler",
    "SequenceData",
    "StateReader",
    "TargetInfo",
    "Window",
    "class_counts",
    "describe",
    "feature_statistics",
    "hold_out",
    "holds_data",
    "holds_network",
    "is_config_or_weights",
    "open_data",
    "require_same_form",
    "target_statistics",
    "targets_beyond_error",
]

_MODULES = {
    "dataset_roles": ("AS_CLASSES",),
    "inspection": (
        "FileReport",
        "GroupReport",
        "DatasetReport",
        "describe",
        "holds_data",
        "holds_network",
    ),
    "result_files": ("GateWriter", "ResultWriter", "StateReader"),
    "sampling": ("Sampler", "hold_out", "require_same_form"),
    "sequence_data": ("SequenceData", "open_data"),
    "statistics": ("FeatureStatistics", "class_counts", "feature_statistics", "target_statistics"),
    "types": ("Batch", "DataOptions", "Allocator", "TargetInfo", "Window"),
    "windows": ("targets_beyond_error",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
_HOME["is_config_or_weights"] = "lstm_cli.hdf5.file"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
