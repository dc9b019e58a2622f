"""Benchmarks: timings over sizes, side by side with other frameworks and with a baseline."""

from lstm_cli.bench.baseline import Baseline, Change, Comparison, compare
from lstm_cli.bench.baseline_file import BaselineError, load_baseline, save_baseline
from lstm_cli.bench.gates import GateCost, by_gate
from lstm_cli.bench.harness import measure
from lstm_cli.bench.host import Machine, OtherWork, machine, watch_others
from lstm_cli.bench.peers import PEERS, Peer, Unsupported, peer
from lstm_cli.bench.results import Agreement, SizeResult, Timing, geometric_mean
from lstm_cli.bench.sizes import DEFAULT_SIZES, Size, grid, one_lstm

__all__ = [
    "DEFAULT_SIZES",
    "PEERS",
    "Agreement",
    "Baseline",
    "BaselineError",
    "Change",
    "Comparison",
    "GateCost",
    "Machine",
    "OtherWork",
    "Peer",
    "Size",
    "SizeResult",
    "Timing",
    "Unsupported",
    "by_gate",
    "compare",
    "geometric_mean",
    "grid",
    "load_baseline",
    "machine",
    "measure",
    "one_lstm",
    "peer",
    "save_baseline",
    "watch_others",
]
