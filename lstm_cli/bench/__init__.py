"""Benchmarks: timings over sizes, side by side with other frameworks and with a baseline."""

from lstm_cli.bench.baseline import Baseline, Change, Comparison, compare
from lstm_cli.bench.baseline_file import BaselineError, load_baseline, save_baseline
from lstm_cli.bench.explanations import LayerExplanation, SizeExplanation, explain
from lstm_cli.bench.gates import GateCost, by_gate
from lstm_cli.bench.harness import measure
from lstm_cli.bench.host import (
    Machine,
    Memory,
    OtherWork,
    machine,
    memory,
    peak_memory,
    watch_others,
)
from lstm_cli.bench.peers import PEERS, Lesson, Peer, Run, Setting, Trainee, Unsupported, peer
from lstm_cli.bench.residence import Accelerated
from lstm_cli.bench.results import (
    MODES,
    WORK,
    Agreement,
    Padded,
    Shares,
    SizeResult,
    Timing,
    geometric_mean,
)
from lstm_cli.bench.sizes import DEFAULT_SIZES, Size, grid, one_lstm
from lstm_cli.bench.training import without_dropout

__all__ = [
    "DEFAULT_SIZES",
    "MODES",
    "PEERS",
    "WORK",
    "Accelerated",
    "Agreement",
    "Baseline",
    "BaselineError",
    "Change",
    "Comparison",
    "GateCost",
    "LayerExplanation",
    "Lesson",
    "Machine",
    "Memory",
    "OtherWork",
    "Padded",
    "Peer",
    "Run",
    "Setting",
    "Shares",
    "Size",
    "SizeExplanation",
    "SizeResult",
    "Timing",
    "Trainee",
    "Unsupported",
    "by_gate",
    "compare",
    "explain",
    "geometric_mean",
    "grid",
    "load_baseline",
    "machine",
    "measure",
    "memory",
    "one_lstm",
    "peak_memory",
    "peer",
    "save_baseline",
    "watch_others",
    "without_dropout",
]
