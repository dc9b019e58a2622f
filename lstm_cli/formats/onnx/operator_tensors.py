"""The tensors of ONNX's recurrent operators, in native order, with where they stood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE_GATES, gate_sources, reorder_gates
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.onnx.orders import PEEPHOLES
from lstm_cli.formats.onnx.values import (
    Constant,
)


class OperatorTensors:
    """Native tensors of one direction, with where they stood."""

    def __init__(self, kind: str, gates: Sequence[str], direction: int, hidden: int) -> None:
        self.kind, self.gates, self.d, self.H = kind, gates, direction, hidden
        self.native = NATIVE_GATES[kind]
        self.found: dict[str, Array] = {}
        self.stored: list[TensorSource] = []

    def take(self, slot: str, value: Constant | None) -> None:
        """One of the operator's tensors; without B there are no biases."""
        if slot in ("W", "R") and value is not None:
            name = "weight_ih" if slot == "W" else "weight_hh"
            self.found[name] = self._plain(value.array[self.d], self.gates, self.native)
            self._note(value, name, self.gates)
        elif slot == "B" and value is not None:
            self._biases(value)
        elif slot == "P" and value is not None:
            wanted = ("i", "f", "o")
            self.found["peephole"] = self._plain(value.array[self.d], PEEPHOLES, wanted)
            self._note(value, "peephole", PEEPHOLES)

    def _plain(self, array: Array, order: Sequence[str], wanted: Sequence[str]) -> Array:
        return reorder_gates(array, order, wanted)

    def _biases(self, value: Constant) -> None:
        size = len(self.gates) * self.H
        whole = value.array[self.d]
        pair = [
            reorder_gates(half, self.gates, self.native) for half in (whole[:size], whole[size:])
        ]
        if self.kind == "gru":
            self.found |= {"bias_ih": pair[0], "bias_hh": pair[1]}
        else:
            total = pair[0].astype(np.float64) + pair[1]
            self.found["bias"] = total.astype(whole.dtype)
        names = ("bias_ih", "bias_hh") if self.kind == "gru" else ("bias", "bias")
        added = "" if self.kind == "gru" else "Wb and Rb added"
        self._note(value, names[0], self.gates, 0, added)
        self._note(value, names[1], self.gates, size, added)

    def _note(
        self,
        value: Constant,
        native: str,
        order: Sequence[str],
        offset: int = 0,
        change: str = "",
    ) -> None:
        for origin in value.origins:
            if value.change or origin.shape != value.array.shape:
                how = value.change or "reshaped"
                self.stored.append(
                    TensorSource(origin.name, origin.shape, origin.dtype, "", native, "", how)
                )
                continue
            blocks = gate_sources(
                origin.name,
                value.array,
                native,
                order,
                leading=(self.d,),
                offset=offset,
                size=self.H,
                change=change,
            )
            self.stored += [
                TensorSource(b.name, b.shape, origin.dtype, b.part, b.native, b.block, b.change)
                for b in blocks
            ]
