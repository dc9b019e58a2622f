"""The ONNX writer: names, sizes, notes and errors; `oracle` tests the computed values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import recurrent
from onnx_exports import export_of

from lstm_cli.cells import Activation
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, WriteOptions
from lstm_cli.formats.onnx import graph_builder, proto
from lstm_cli.formats.onnx.writer import build_model

D, H = 4, 5
STACK = (
    recurrent("lstm", H, D, index=0, directions=2),
    DropoutSpec(1, 2 * H, 0.25),
    recurrent("gru", 3, 2 * H, index=2),
    DenseSpec(3, 3, 2, None),
)


def graph_of(specs: Sequence[LayerSpec], **options: bool) -> proto.OnnxGraph:
    graph = build_model(export_of(specs), WriteOptions(**options)).graph
    assert graph is not None
    return graph


def notes(folder: Path, specs: Sequence[LayerSpec], dtype: str = "float32", **more: bool) -> str:
    export = export_of(specs, dtype=dtype)
    return "\n".join(registry.write(folder / "m.onnx", "onnx", export, WriteOptions(**more)))


def dims(values: Sequence[proto.OnnxValueInfo]) -> dict[str, list[Any]]:
    return {
        value.name: [size.name or size.value for size in value.type.tensor.shape.dims]
        for value in values
    }


def refused(specs: Sequence[LayerSpec], **options: bool) -> str:
    with pytest.raises(WeightsError) as caught:
        build_model(export_of(specs), WriteOptions(**options))
    return str(caught.value)


def test_the_file_says_who_wrote_it_and_carries_the_config(tmp_path: Path) -> None:
    path, config = tmp_path / "m.onnx", "model:\n  input_size: 4  # σ\n"
    registry.write(path, "onnx", export_of(STACK, config=config))
    model = proto.OnnxModel.decode(memoryview(path.read_bytes()))
    assert (model.ir_version, model.producer_name) == (8, "lstm-cli")
    assert [(s.domain, s.version) for s in model.operator_sets] == [("", 14)]
    assert [(p.key, p.value) for p in model.metadata] == [("lstm-cli.config", config)]
    assert registry.detect_format(path).name == "onnx"


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    export, contents = export_of(STACK), []
    for name in ("a.onnx", "b.onnx"):
        registry.write(tmp_path / name, "onnx", export, WriteOptions(lengths=True, states=True))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_names_and_sizes() -> None:
    graph = graph_of(STACK, lengths=True, states=True)
    assert dims(graph.inputs) == {
        "x": ["N", "T", D],
        "lengths": ["N"],
        "initial_h.0": ["N", 2, H],
        "initial_c.0": ["N", 2, H],
        "initial_h.2": ["N", 1, 3],
    }
    assert dims(graph.outputs) == {
        "y": ["N", "T", 2],
        "final_h.0": ["N", 2, H],
        "final_c.0": ["N", 2, H],
        "final_h.2": ["N", 1, 3],
    }
    weights = {tensor.name: tensor.dims for tensor in graph.initializers}
    assert weights["layers.0.W"] == (2, 4 * H, D)
    assert weights["layers.2.B"] == (1, 18)
    assert weights["layers.3.W"] == (3, 2)
    made = [name for node in graph.nodes for name in node.outputs if name]
    assert len({*made, *weights}) == len(made) + len(weights)


def test_between_layers_time_stays_first() -> None:
    swaps = [
        node
        for node in graph_of(STACK).nodes
        if node.op_type == "Transpose" and node.attributes[0].ints == (1, 0, 2)
    ]
    assert [node.inputs for node in swaps] == [("x",), swaps[1].inputs]
    assert swaps[1].outputs == ("y",)
    dense = [DenseSpec(0, D, 3, None)]
    assert [node.op_type for node in graph_of(dense).nodes] == ["MatMul", "Add", "Softmax"]


def test_flatten_fixes_the_steps() -> None:
    graph = graph_of([recurrent("rnn", H, D), FlattenSpec(1, H, 7)])
    assert dims(graph.inputs) == {"x": ["N", 7, D]}
    assert dims(graph.outputs) == {"y": ["N", 7 * H]}


def test_notes_say_what_a_run_must_know(tmp_path: Path) -> None:
    assert notes(tmp_path, [STACK[0]]) == ""
    specs = [
        recurrent("lstm", H, D, stateful=True, dropout=0.1, projection_size=2),
        DropoutSpec(1, 2, 0.3),
        recurrent("lstm", H, 2, index=2, use_forget_gate=False),
        FlattenSpec(3, H, 7),
    ]
    text = notes(tmp_path, specs, "float64")
    assert "from float64 to float32" in text
    assert "layer 0 (lstm): its dropout is left out" in text
    assert "layer 0 (lstm) is stateful" in text
    assert "--states" in text
    assert "layer 0 (lstm): ONNX has no projection" in text
    assert "layer 1 (dropout) is left out" in text
    assert "layer 2 (lstm): its forget gate" in text
    assert "layer 3 (flatten) fixes sequences at 7 steps: shorter ones need" in text
    with_lengths = notes(tmp_path, specs, lengths=True)
    assert "padded to it, with their length in `lengths`" in with_lengths
    fed = notes(tmp_path, [recurrent("gru", H, D, stateful=True)], states=True)
    assert "feed them from run to run" in fed


@pytest.mark.parametrize("name", ["symmrelu", "gauss"])
def test_activations_that_the_operators_lack(name: str) -> None:
    spec = recurrent("lstm", H, D, index=0, directions=2, cell_activation=Activation(name))
    error = refused([spec])
    assert "layer 0 (lstm, forward)" in error
    assert name in error


def test_a_forget_gate_that_cannot_stay_open() -> None:
    softsign = {"recurrent_activation": Activation("softsign")}
    error = refused([recurrent("lstm", H, D, use_forget_gate=False, **softsign)])
    assert "layer 0 (lstm, forward) has no forget gate" in error
    assert "softsign, which does not" in error
    error = refused([recurrent("lstm", H, D, use_forget_gate=False, clip=3.0)])
    assert "sigmoid, which does not within the clip of 3" in error


def test_states_of_a_projected_layer() -> None:
    error = refused([recurrent("lstm", H, D, projection_size=3)], states=True)
    assert "layer 0 (lstm): ONNX has no initial state of a projected layer" in error


def test_values_beyond_float32() -> None:
    specs = [recurrent("rnn", H, D), DenseSpec(1, H, 3, Activation("elu", 1e39))]
    assert "layers.1.Elu.alpha" in refused(specs)
    export = export_of([recurrent("rnn", H, D)], dtype="float64")
    export.tensors["layers.0.weight_hh"][0, 0] = 1e200  # type: ignore[index]
    with pytest.raises(WeightsError, match=r"layers\.0\.R holds values"):
        build_model(export, WriteOptions())
    assert "its clip is 0" in refused([recurrent("rnn", H, D, clip=1e-60)])
    limitless = graph_of([recurrent("rnn", H, D, clip=1e60)])
    assert "clip" not in {a.name for node in limitless.nodes for a in node.attributes}


def test_more_than_a_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_builder, "MAX_BYTES", 4 * 4 * H * (D + H))
    error = refused([recurrent("lstm", H, D)])
    assert "too large for an ONNX file" in error
    assert "layers.0.B" in error


def test_a_name_of_any_letters(tmp_path: Path) -> None:
    plain, path = export_of(STACK), tmp_path / "m.onnx"
    for name in ("", "Gedächtnis 記憶", "broken \udcff"):
        export = Export(name, D, None, plain.layers, plain.tensors, plain.config)
        registry.write(path, "onnx", export)
        graph = proto.OnnxModel.decode(memoryview(path.read_bytes())).graph
        assert graph is not None
        assert graph.name == {"": "network"}.get(name, name.replace("\udcff", "?"))


def test_float64_is_rounded_once() -> None:
    spec = recurrent("lstm", 2, 3, projection_size=2)
    export = export_of([spec], dtype="float64")
    graph = build_model(export, WriteOptions()).graph
    assert graph is not None
    (R,) = (tensor for tensor in graph.initializers if tensor.name == "layers.0.R")
    own = {name.removeprefix("layers.0."): value for name, value in export.tensors.items()}
    i, f, g, o = np.split(own["weight_hh"] @ own["weight_hr"], 4)
    expected = np.concatenate([i, o, f, g]).astype(np.float32)
    found = np.frombuffer(R.raw_data, "<f4").reshape(R.dims)[0]
    np.testing.assert_array_equal(found, expected)
