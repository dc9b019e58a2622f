"""Read an ONNX model: its graph is followed from the input, and layers are told from its output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, memory_error, memory_is_short
from lstm_cli.formats.model import Imported, ReadOptions, Stored
from lstm_cli.formats.onnx.arithmetic import output
from lstm_cli.formats.onnx.calls import Effort
from lstm_cli.formats.onnx.drafts import Draft, guess_notes, state_notes, zero_states
from lstm_cli.formats.onnx.frame import Frame
from lstm_cli.formats.onnx.inputs import Inputs
from lstm_cli.formats.onnx.interpreter import MISTAKES, Interpreter, node_weight, opset
from lstm_cli.formats.onnx.layers import Layering
from lstm_cli.formats.onnx.messages import Model
from lstm_cli.formats.onnx.orders import GATES
from lstm_cli.formats.onnx.rules import Rules
from lstm_cli.formats.onnx.schemas import NEWEST
from lstm_cli.formats.onnx.tensors import beside, quoted
from lstm_cli.formats.onnx.tracing import traced_sizes
from lstm_cli.formats.onnx.values import (
    FEATURES,
    Anything,
    CellState,
    Recurrent,
    RefusedError,
    Side,
    Unknown,
    Value,
)
from lstm_cli.formats.onnx.vectors import pieces
from lstm_cli.formats.onnx.wire import WireError
from lstm_cli.formats.safety import read_whole

LARGEST = 1 << 31
"""Bytes of the largest file; protobuf allows no more."""
OLDEST = 7
"""Opset from which recurrent operators are what they are today."""
SHOWN = {"lstm": "i o f c", "gru": "z r h", "rnn": "i"}


def read(path: Path, options: ReadOptions) -> Imported:
    """Read an ONNX model.

    Raises
    ------
    WeightsError
        Malformed, or not a network that lstm-cli can represent: names the node and what about it.
    """
    data = read_whole(path, "the ONNX model", LARGEST)
    try:
        with np.errstate(all="ignore"):  # weights may hold anything; that is judged later
            return _imported(path, data, Model.decode(memoryview(data)))
    except WireError as error:
        raise WeightsError(f"{path} is no ONNX model, or a damaged one", found=str(error)) from None
    except (MemoryError, RecursionError) as error:
        if isinstance(error, MemoryError) and memory_is_short():
            raise memory_error(str(path)) from error
        raise WeightsError(f"{path} holds a model that is out of proportion") from None


def _imported(path: Path, data: bytes, model: Model) -> Imported:
    version = opset(model) or 1
    if model.graph is None:
        raise WeightsError(f"{path} is no ONNX model, or a damaged one", found="no graph")
    if version < OLDEST:
        raise WeightsError(
            f"{path} uses operators of ONNX's opset {version}",
            expected=f"opset {OLDEST} or newer",
            hint="onnx.version_converter brings a model up to date",
        )
    effort = Effort(_stored_bytes(path, model, data), _nodes(model), path)
    found, drafts = _read_layers(model, effort)
    if version > NEWEST:
        found.notes[
            f"opset {version} is newer than {NEWEST}, the newest that lstm-cli knows: operators "
            "are read as those of that one"
        ] = None
    tensors, stored = _named(drafts)
    kinds = {node.op_type.lower() for node in model.graph.nodes} & GATES.keys()
    return Imported(
        path=path,
        format="onnx",
        title=_title(model, version),
        sha256=hashlib.sha256(data).hexdigest(),
        config=found.config(drafts),
        tensors=tensors,
        stored=stored,
        order={kind: SHOWN[kind] for kind in SHOWN if kind in kinds},
        notes=tuple(found.notes),
        described=True,
        zero_states=zero_states(drafts),
    )


def _read_layers(model: Model, effort: Effort) -> tuple[_Reading, list[Draft]]:
    """The layers of a model, whose open steps may have been written into it as a number."""
    try:
        found = _Reading(model, effort)
        return found, found.layers()
    except WeightsError as error:
        refused = error
    for fixed in traced_sizes(model, effort.path):
        with suppress(WeightsError):
            effort.begin()
            found = _Reading(model, effort, fixed)
            drafts = found.layers()
            if any(draft.config["type"] == "flatten" for draft in drafts):
                continue  # it would hang on the number, which may as well be one of features
            steps = ", ".join(map(str, fixed.values()))
            found.notes[
                f"the model declares an axis open and computes with {steps} there, which is what "
                "it was exported with: it is read as a network of any number of steps"
            ] = None
            return found, drafts
    raise refused


def _stored_bytes(path: Path, model: Model, data: bytes) -> int:
    """Bytes of the model with those of its external data, as far as they are there."""
    tensors = () if model.graph is None else model.graph.initializers
    external = {
        entry.value for t in tensors for entry in t.external_data if entry.key == "location"
    }
    sizes = 0
    for name in external:
        with suppress(OSError, ValueError, WeightsError):
            sizes += beside(path, name, "").stat().st_size
    return len(data) + sizes


def _nodes(model: Model) -> int:
    """Operators that the file holds, those within operators among them."""
    graphs = [] if model.graph is None else [model.graph]
    nodes = [node for function in model.functions for node in function.nodes]
    weight = 0
    while graphs or nodes:
        nodes += graphs.pop().nodes if graphs else ()
        weight += sum(map(node_weight, nodes))
        graphs += [a.g for node in nodes for a in node.attributes if a.g is not None]
        nodes = []
    return weight


def _title(model: Model, version: int) -> str:
    maker = " ".join(filter(None, (model.producer_name, model.producer_version)))
    written = f", written by {maker}" if maker and maker.isprintable() else ""
    return f"ONNX opset {version}{written}"[:200]


def _named(drafts: Sequence[Draft]) -> tuple[dict[str, Array], tuple[Stored, ...]]:
    """Tensors under their native names, and where they stood."""
    tensors: dict[str, Array] = {}
    stored: list[Stored] = []
    for k, draft in enumerate(drafts):
        prefix = f"layers.{k}."
        tensors |= {prefix + name: value for name, value in draft.tensors.items()}
        stored += [replace(entry, native=prefix + entry.native) for entry in draft.stored]
    return tensors, tuple(stored)


class _Reading:
    """One model being read."""

    def __init__(
        self, model: Model, effort: Effort, fixed: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        if model.graph is None:
            raise WireError("no graph")
        self.path, self.graph = effort.path, model.graph
        self.notes: dict[str, None] = {}
        inputs = Inputs(self.graph, self.path)
        inputs.sizes |= {axis: n for axis, n in fixed.items() if inputs.sizes.get(axis, n) is None}
        self.features = inputs.features
        self.frame = Frame(inputs.sizes, inputs.names, guessed=bool(fixed))
        names = frozenset(value.name for value in self.graph.inputs)
        rules = Rules(self.frame, self.notes, names, effort.held)
        interpreter = Interpreter(model, rules, effort)
        self.values = interpreter.run(self.graph, inputs.values())
        self.layering = Layering(self.frame, rules.rerolling, self.notes, effort)

    def layers(self) -> list[Draft]:
        """The network's layers, input to output."""
        try:
            return self._layers()
        except WeightsError:
            broken = self.layering.rerolling.broken
            if broken is None:
                raise
            raise broken.error(str(self.path)) from None

    def _layers(self) -> list[Draft]:
        outputs = self._outputs()
        name, main = self._main(outputs)
        try:
            drafts = self.layering.layers(output(self.frame, main))
        except RefusedError as error:
            raise self._refused(f"the model's output {quoted(name)}: {error}") from None
        except MISTAKES:
            raise self._refused(
                f"the model's output {quoted(name)} is computed in a way that no layers do"
            ) from None
        if not drafts:
            raise self._refused("the model gives back its input and has no layers")
        for other, value in outputs.items():
            if other != name:
                self._check_other(other, value)
        self._note_axes(name, main)
        self._note_last_steps()
        notes = (*state_notes(drafts, zero_states(drafts)), *guess_notes(drafts))
        self.notes |= dict.fromkeys(notes)
        return drafts

    def config(self, drafts: Sequence[Draft]) -> Mapping[str, Any]:
        """The network in the YAML's words."""
        model: dict[str, Any] = {"input_size": self.features}
        if any(draft.config["type"] == "flatten" for draft in drafts):
            model["steps"] = self.frame.steps
        model["layers"] = [draft.config for draft in drafts]
        return {"model": model}

    def _outputs(self) -> dict[str, Anything]:
        found: dict[str, Anything] = {}
        for end in self.graph.outputs:
            value = self.values.get(end.name)
            found[end.name] = (
                Unknown(f"{quoted(end.name)}, which nothing computes") if value is None else value
            )
        if not found:
            raise self._refused("the model has no output")
        return found

    def _main(self, outputs: Mapping[str, Anything]) -> tuple[str, Value]:
        """The output that is the network's: the first that is no state."""
        values = {name: value for name, value in outputs.items() if isinstance(value, Value)}
        for final in (False, True):
            for name, value in values.items():
                if self._is_state(value, final) is None:
                    return name, value
        for other in outputs.values():
            if isinstance(other, Unknown):
                raise self._unknown(other)
        raise self._refused("no output of the model depends on its sequences")

    def _is_state(self, value: Value, final: bool) -> bool | None:
        """True for states; None for what may be the network's output, `final` h among it."""
        parts = list(pieces(value.vector))
        if all(isinstance(part.atom, CellState) for part in parts):
            return True
        states = all(
            isinstance(part.atom, Recurrent | CellState) and isinstance(part.step, int | None)
            for part in parts
        )
        return True if states and not final else None

    def _check_other(self, name: str, value: Anything) -> None:
        """Another output: a state that lstm-cli gives anyway, or an error."""
        if isinstance(value, Side):
            return
        if isinstance(value, Value) and self._belongs(value):
            self.notes["final states are given with the results, not as outputs of the model"] = (
                None
            )
            return
        if isinstance(value, Unknown):
            raise self._unknown(value)
        raise self._refused(
            f"the model gives {quoted(name)} besides its other outputs",
            hint="export it with one output, or with its final states alone",
        )

    def _belongs(self, value: Value) -> bool:
        """Whether a value is final states of the network's layers."""
        places = {atom.where for atom in self.layering.recurrent}
        known = {id(atom) for atom in self.layering.recurrent}
        for part in pieces(value.vector):
            atom = part.atom
            if isinstance(atom, CellState) and atom.where in places:
                continue
            final = isinstance(atom, Recurrent) and id(atom) in known
            if not final or not isinstance(part.step, int):
                return False
        return True

    def _note_last_steps(self) -> None:
        """Say where the last step of all is another than each sequence's last valid one."""
        picked = {piece.atom for vector in self.frame.picked for piece in pieces(vector)}
        for atom in self.layering.ends:
            if atom.ragged and atom in picked:
                self.notes[
                    f"the model takes the last step of {atom.where}, which ONNX Runtime gives as 0 "
                    "for sequences shorter than the others; here it is each one's last valid step"
                ] = None

    def _note_axes(self, name: str, value: Value) -> None:
        """Say where our axes are not the model's."""
        letters = {self.frame.batch: "N", self.frame.time: "T"}
        sizes = [*value.pick.shape]
        own = iter(map(str, sizes) if len(sizes) > 1 else "F")
        shown = [
            "x".join(next(own) if part == FEATURES else letters.get(part, "?") for part in axis)
            or "1"
            for axis in value.axes
        ]
        ours = ["N", "T", "F"] if "T" in shown else ["N", "F"]
        if shown != ours:
            self.notes[
                f"the model's output {quoted(name)} is laid out as ({', '.join(shown)}); "
                f"lstm-cli gives ({', '.join(ours)})"
            ] = None
        free = list(self.frame.sizes)
        if free[:1] == [self.frame.time]:
            theirs = "(T, N, D)" if len(free) > 1 else "one sequence (T, D)"
            self.notes[f"the model reads {theirs}; lstm-cli reads (N, T, D)"] = None

    def _unknown(self, value: Unknown) -> WeightsError:
        if isinstance(value.error, WeightsError):
            problems = [
                problem if problem.where else replace(problem, where=(str(self.path),))
                for problem in value.error.problems
            ]
            return WeightsError(problems, headline=value.error.headline)
        what = value.what if value.error is None else f"{value.what}: {value.error}"
        return self._refused(f"the model depends on what lstm-cli cannot represent: {what}")

    def _refused(self, what: str, hint: str | None = None) -> WeightsError:
        return WeightsError(what, where=str(self.path), hint=hint)
