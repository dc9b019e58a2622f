"""Recurrent layers as ONNX's operators, and what stands around them: layouts and states."""

from __future__ import annotations

from collections.abc import Mapping

from lstm_cli.engines.types import Array, RecurrentSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.builder import GraphBuilder, Size
from lstm_cli.formats.onnx.masks import Masks
from lstm_cli.formats.onnx.operands import attributes, operands, projection


def swapped(builder: GraphBuilder, value: str) -> str:
    """A value of three axes with its first two exchanged; its name."""
    return builder.add("Transpose", value, perm=[1, 0, 2])


class Recurrence:
    """Adds recurrent layers to a graph.

    Parameters
    ----------
    tensors
        By native name.
    masks
        Of the input ``lengths``; None without it.
    states
        Whether every layer's states are inputs and outputs of the graph.

    Attributes
    ----------
    finals
        Outputs (N, dirs, H) of the layers added, as name, value and sizes.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        tensors: Mapping[str, Array],
        masks: Masks | None,
        states: bool,
    ) -> None:
        self.builder, self.tensors, self.masks, self.states = builder, tensors, masks, states
        self.finals: list[tuple[str, str, tuple[Size, ...]]] = []

    def add(self, spec: RecurrentSpec, value: str) -> str:
        """Add a layer that reads (T, N, D); the name of its (T, N, F) or (N, F)."""
        start = self._initial_states(spec) if self.states else {}
        given = {n: self.builder.constant(n, v) for n, v in operands(spec, self.tensors).items()}
        inputs = [value, given["W"], given["R"], given.get("B", "")]
        inputs.append("" if self.masks is None else self.masks.lengths)
        inputs += [swapped(self.builder, name) for name in start.values()] or ["", ""]
        if "P" in given:
            inputs.append(given["P"])
        made = self._operator(spec, inputs)
        for (state, initial), final in zip(start.items(), made[1:], strict=False):
            self._final_state(spec, state, initial, final)
        return self._output(spec, made[0] if spec.return_sequences else made[1])

    def _operator(self, spec: RecurrentSpec, inputs: list[str]) -> list[str]:
        """Add the operator; the names of Y, Y_h and Y_c, empty where nothing reads them."""
        wanted = {
            "Y": spec.return_sequences,
            "Y_h": self.states or not spec.return_sequences,
            "Y_c": self.states and "c" in spec.cells[0].states,
        }
        outputs = [name if want else None for name, want in wanted.items()]
        return self.builder.add_node(spec.kind.upper(), inputs, outputs, attributes(spec))

    def _output(self, spec: RecurrentSpec, value: str) -> str:
        """Directions side by side, projected if the layer projects."""
        value = self._side_by_side(spec, value)
        if not spec.cells[0].projects:
            return value
        matrix = self.builder.constant("projection", projection(spec, self.tensors))
        return self.builder.add("MatMul", value, matrix)

    def _side_by_side(self, spec: RecurrentSpec, value: str) -> str:
        """Y (T, dirs, N, H) as (T, N, dirs*H), or Y_h (dirs, N, H) as (N, dirs*H)."""
        add, integers = self.builder.add, self.builder.integers
        kept = (0, 0) if spec.return_sequences else (0,)  # sizes that stay
        if spec.directions == 1:
            return add("Squeeze", value, integers(len(kept) - 1))
        perm = [0, 2, 1, 3] if spec.return_sequences else [1, 0, 2]
        value = add("Transpose", value, perm=perm)
        return add("Reshape", value, integers(*kept, spec.directions * spec.hidden_size))

    def _initial_states(self, spec: RecurrentSpec) -> dict[str, str]:
        """Add an input (N, dirs, H) for each state; their names, by the state's."""
        if spec.cells[0].projects:
            raise WeightsError(
                f"layer {spec.index} ({spec.kind}): ONNX has no initial state of a projected layer",
                expected="no projection_size where states are inputs of the model",
                found=f"projection_size {spec.cells[0].output_size}",
                hint="write it without states",
            )
        dims = ("N", spec.directions, spec.hidden_size)
        return {
            state: self.builder.input(f"initial_{state}.{spec.index}", dims)
            for state in spec.cells[0].states
        }

    def _final_state(self, spec: RecurrentSpec, state: str, initial: str, final: str) -> None:
        """Note an output; a sequence of length 0 ends as it began."""
        value = swapped(self.builder, final)
        if self.masks is not None:
            value = self.builder.add("Where", self.masks.filled(3), value, initial)
        dims = ("N", spec.directions, spec.hidden_size)
        self.finals.append((f"final_{state}.{spec.index}", value, dims))
