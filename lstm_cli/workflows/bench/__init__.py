"""Benchmarks: timings over sizes, side by side with other frameworks and with a baseline.

Start at `measurement`, which times a `workload` at each of the `sizes` by the rules in `protocol`.
`results` has what it returns, and `peers` the other frameworks.
"""

from lstm_cli.workflows.bench.baseline import (
    Baseline,
    BaselineComparison,
    BaselineError,
    TimingChange,
    compare,
    load_baseline,
    save_baseline,
)
from lstm_cli.workflows.bench.gates import GateCost, by_gate
from lstm_cli.workflows.bench.host import (
    MachineInfo,
    MemoryUse,
    OtherPrograms,
    machine,
    memory,
    peak_memory,
    watch_other_programs,
)
from lstm_cli.workflows.bench.measurement import LayerExplanation, SizeExplanation, explain, measure
from lstm_cli.workflows.bench.peers import (
    PEERS,
    ComputeSetting,
    Peer,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    Unsupported,
    peer,
)
from lstm_cli.workflows.bench.results import (
    MODES,
    WORK,
    PaddedTiming,
    PeerAgreement,
    RooflineShares,
    SizeResult,
    Timing,
    geometric_mean,
)
from lstm_cli.workflows.bench.sizes import DEFAULT_SIZES, GridSize, grid, one_lstm
from lstm_cli.workflows.bench.workload import without_dropout

__all__ = [
    "DEFAULT_SIZES",
    "MODES",
    "PEERS",
    "WORK",
    "Baseline",
    "BaselineComparison",
    "BaselineError",
    "ComputeSetting",
    "GateCost",
    "GridSize",
    "LayerExplanation",
    "MachineInfo",
    "MemoryUse",
    "OtherPrograms",
    "PaddedTiming",
    "Peer",
    "PeerAgreement",
    "PeerNetwork",
    "RooflineShares",
    "SizeExplanation",
    "SizeResult",
    "Timing",
    "TimingChange",
    "TrainableNetwork",
    "TrainingTask",
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
    "watch_other_programs",
    "without_dropout",
]
