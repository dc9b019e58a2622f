"""Time of one step of a stream, and of one call of a small network, against other frameworks.

    python scripts/benchmark_stream.py --output benchmarks/streaming.md

It needs torch, onnx and onnxruntime. Each contestant computes one step of an LSTM with a dense
layer, batch 1, and carries the states. Outputs of 50 steps are compared before anything is timed.
The page is written only if other programs used at most 0.05 cores.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

import lstm_cli
from lstm_cli.workflows.bench.host import machine, watch_other_programs

SIZES, UNITS, ROUNDS, CALLS = (16, 32, 64, 128, 256), 4, 9, 2000
SLEEP = 0.1
"""Seconds before each contestant, in which the threads of the one before go to sleep."""
MOST_OTHERS = 0.05
"""Cores that other programs may use."""
COMPARED = 50

Step = Callable[[np.ndarray], np.ndarray]


def network(H: int) -> lstm_cli.Model:
    """An LSTM of H units that reads H features, and a dense layer."""
    layers = [{"type": "lstm", "hidden_size": H}, {"type": "dense", "units": UNITS}]
    config = {"model": {"input_size": H, "layers": layers}}
    return lstm_cli.build(config, device="cpu", engine="jit", threads=1, seed=1)


def by_stream(net: lstm_cli.Model) -> Step:
    """Steps of `net.stream`."""
    return net.stream().step


def by_calls(net: lstm_cli.Model) -> Step:
    """Steps of `net.run` with the states of the step before."""
    state: list[Any] = [None]

    def step(x: np.ndarray) -> np.ndarray:
        result = net.run(x[None, None], state=state[0])
        state[0] = result.state
        return result.outputs[0, 0]

    return step


def by_onnxruntime(net: lstm_cli.Model) -> Step:
    """Steps of an ONNX model with states as inputs and outputs."""
    weights = net.weights
    H = weights["layers.0.weight_hh"].shape[1]
    order = [0, 3, 1, 2]  # ONNX has i, o, f, g

    def gates(name: str) -> np.ndarray:
        blocks = np.split(weights[name], 4)
        return np.concatenate([blocks[k] for k in order])[None]

    tensors = {
        "W": gates("layers.0.weight_ih"),
        "R": gates("layers.0.weight_hh"),
        "B": np.concatenate([gates("layers.0.bias"), np.zeros((1, 4 * H), np.float32)], axis=1),
        "M": np.ascontiguousarray(weights["layers.1.weight"].T),
        "b": weights["layers.1.bias"],
    }
    nodes = [
        helper.make_node(
            "LSTM", ["x", "W", "R", "B", "", "h", "c"], ["", "h_new", "c_new"], hidden_size=H
        ),
        helper.make_node("MatMul", ["h_new", "M"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]

    def value(name: str, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "step",
        [value("x", [1, 1, H]), value("h", [1, 1, H]), value("c", [1, 1, H])],
        [value("y", [1, 1, UNITS]), value("h_new", [1, 1, H]), value("c_new", [1, 1, H])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    state = [np.zeros((1, 1, H), np.float32)] * 2

    def step(x: np.ndarray) -> np.ndarray:
        y, *state[:] = session.run(None, {"x": x[None, None], "h": state[0], "c": state[1]})
        return y[0, 0]

    return step


def by_torch(net: lstm_cli.Model) -> Step:
    """Steps of `torch.nn.LSTM` with the states of the step before, without gradients."""
    weights = {name: torch.tensor(np.array(value)) for name, value in net.weights.items()}
    H = weights["layers.0.weight_hh"].shape[1]
    lstm, head = torch.nn.LSTM(H, H), torch.nn.Linear(H, UNITS)
    lstm.load_state_dict(
        {
            "weight_ih_l0": weights["layers.0.weight_ih"],
            "weight_hh_l0": weights["layers.0.weight_hh"],
            "bias_ih_l0": weights["layers.0.bias"],
            "bias_hh_l0": torch.zeros(4 * H),
        }
    )
    head.load_state_dict({"weight": weights["layers.1.weight"], "bias": weights["layers.1.bias"]})
    state: list[Any] = [None]

    @torch.inference_mode()
    def step(x: np.ndarray) -> np.ndarray:
        y, state[0] = lstm(torch.from_numpy(x)[None, None], state[0])
        return head(y)[0, 0].numpy()

    return step


CONTESTANTS = {
    "net.stream": by_stream,
    "net.run with states": by_calls,
    "ONNX Runtime": by_onnxruntime,
    "PyTorch": by_torch,
}


def compared(H: int) -> dict[str, Step]:
    """All contestants, after their outputs of the same steps were compared."""
    net = network(H)
    inputs = np.random.default_rng(H).standard_normal((COMPARED, H)).astype(np.float32)
    expected = net.run(inputs[None]).outputs[0]
    for name, make in CONTESTANTS.items():
        step = make(net)
        outputs = np.stack([step(x) for x in inputs])
        np.testing.assert_allclose(outputs, expected, atol=2e-5, err_msg=name)
    return {name: make(net) for name, make in CONTESTANTS.items()}


def timed(step: Step, H: int) -> float:
    """Seconds of one step: the mean of many, after the threads of others went to sleep."""
    x = np.random.default_rng(1).standard_normal(H).astype(np.float32)
    sleep(SLEEP)
    for _ in range(100):
        step(x)
    start = perf_counter()
    for _ in range(CALLS):
        step(x)
    return (perf_counter() - start) / CALLS


def measure(H: int) -> dict[str, float]:
    """Median microseconds of each contestant."""
    steps = compared(H)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            seconds[name].append(timed(step, H))
    return {name: float(np.median(values)) * 1e6 for name, values in seconds.items()}


def main() -> None:
    """Measure, and write the page if the machine was quiet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    with watch_other_programs() as others:
        rows = {H: measure(H) for H in SIZES}
    info = machine(1)
    lines = [
        "# One step at a time",
        "",
        "An LSTM of H units that reads H features, with a dense layer of 4 units, batch 1,",
        "float32, one thread. Each step carries the states of the one before. Median of",
        f"{ROUNDS} rounds of {CALLS:,} steps, in which the contestants take turns, each after a",
        "pause of 0.1 s. Outputs of 50 steps are compared first. Made by",
        "`python scripts/benchmark_stream.py --output benchmarks/streaming.md`.",
        "",
        f"{info.processor}, {platform.system()}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__},",
        f"ONNX Runtime {onnxruntime.__version__}. Other programs used {others.cores:.2f} cores.",
        "",
        "| H | " + " | ".join(f"{name}, µs" for name in CONTESTANTS) + " | ONNX Runtime / stream |",
        "|" + "---|" * (len(CONTESTANTS) + 2),
    ]
    for H, row in rows.items():
        cells = [f"{row[name]:.2f}" for name in CONTESTANTS]
        cells.append(f"{row['ONNX Runtime'] / row['net.stream']:.2f}")
        lines.append(f"| {H} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if output is not None and others.cores is not None and others.cores <= MOST_OTHERS:
        output.write_text(text, encoding="utf-8")
    elif output is not None:
        print(f"not written: other programs used {others.cores:.2f} cores")


if __name__ == "__main__":
    main()
