"""From the value that a graph gives back to its input, one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.arithmetic import terms, timed
from lstm_cli.formats.onnx.calls import Effort
from lstm_cli.formats.onnx.drafts import Draft, dense, recurrent, selection, silent
from lstm_cli.formats.onnx.frame import Frame, every
from lstm_cli.formats.onnx.matching import IDENTITY
from lstm_cli.formats.onnx.tensors import short
from lstm_cli.formats.onnx.unrolled import Rerolling
from lstm_cli.formats.onnx.values import (
    ALL,
    REVERSED,
    Activated,
    Atom,
    CellState,
    Flattened,
    Input,
    Linear,
    Product,
    Recurrent,
    Softmaxed,
    Vector,
)
from lstm_cli.formats.onnx.vectors import at, complete, counted, joined, pieces, same_vector, whole

MOST_LAYERS = 1000

_KINDS: dict[type[Atom], str] = {
    Product: "a product of values",
    CellState: "the cell state of a recurrent layer",
    Input: "the input",
    Linear: "a linear map",
    Activated: "an activation",
    Softmaxed: "a softmax",
    Recurrent: "a recurrent layer",
}


class Layering:
    """The layers of a graph, found from its output.

    Parameters
    ----------
    frame
        Free axes.
    rerolling
        Puts steps that were written out together again.
    notes
        To be added to.
    effort
        What the file may cost.
    """

    def __init__(
        self, frame: Frame, rerolling: Rerolling, notes: dict[str, None], effort: Effort
    ) -> None:
        self.frame, self.rerolling, self.notes, self.effort = frame, rerolling, notes, effort
        self.drafts: list[Draft] = []
        self.consumer: Draft | None = None  # the layer that reads what is found next
        self.blocks = 1  # of how many steps side by side
        self.recurrent: list[Recurrent] = []
        self.ends: list[Recurrent] = []  # read at their last step, of which one may be padding

    def layers(self, output: Vector) -> list[Draft]:
        """Input to output.

        Raises
        ------
        WeightsError
            Something on the way is no layer of ours: names the node.
        """
        want: Vector | None = output
        while want is not None:
            if len(self.drafts) > MOST_LAYERS:
                raise WeightsError(f"the model has more than {MOST_LAYERS} layers")
            want = self._before(want)
        return self.drafts[::-1]

    def _before(self, want: Vector) -> Vector | None:
        """Find the layer that gives `want`; what it reads, None for the graph's input."""
        parts = [self._resolved(piece) for piece in pieces(want)]
        parts = [piece for part in parts for piece in pieces(part)]
        atoms = list(dict.fromkeys(part.atom for part in parts))
        if not atoms:
            raise WeightsError("the model's output is empty")
        if all(isinstance(atom, Recurrent) for atom in atoms):
            return self._recurrent(parts)
        if len(atoms) > 1 or len({part.step for part in parts}) > 1:
            raise self._mixed(atoms, parts)
        atom, step = atoms[0], parts[0].step
        pick = np.concatenate([part.pick for part in parts])
        if isinstance(atom, Input):
            self._input(atom, step, pick)
            return None
        if isinstance(atom, Flattened):
            return self._flattened(atom, pick)
        return self._dense(atom, step, pick)

    def _resolved(self, piece: Vector) -> Vector:
        if piece.atom.timed:
            return piece
        return self.rerolling.final(piece) or piece

    def _add(self, draft: Draft) -> None:
        new = sum(v.nbytes for v in draft.tensors.values() if v.base is None)
        self.effort.spend(room=new, where=draft.where)
        self.drafts.append(draft)
        self.consumer, self.blocks = draft, 1

    def _add_flatten(self, steps: int, where: str) -> None:
        self.drafts.append(Draft({"type": "flatten"}, where=where))
        self.blocks = steps

    def _place(self, pick: Array, size: int, where: str) -> None:
        """Let the layer found last read features `pick` of the `size` ones of the one before it."""
        if complete_pick(pick, size):
            return
        if self.consumer is None:
            self.notes[f"a dense layer at the end picks what the model gives of {where}"] = None
            total = self.blocks * pick.size
            self.consumer = selection(counted(total), total, np.float32, where)
            self.drafts.insert(0, self.consumer)
        self.consumer.widen(pick, size, self.blocks)

    def _input(self, atom: Input, step: object, pick: Array) -> None:
        if step != ALL:
            raise self._picks_steps(atom, "the input", step)
        self._place(pick, atom.size, "the input")

    def _flattened(self, atom: Flattened, pick: Array) -> Vector:
        self._place(pick, atom.size, atom.where)
        self._add_flatten(atom.steps, atom.where)
        return atom.source

    def _dense(self, atom: Atom, step: object, pick: Array) -> Vector:
        linear, activation = self._split(atom)
        self._place(pick, atom.size, atom.where)
        self._add(dense(linear, activation))
        source = joined([term.source for term in linear.terms], atom.where)
        return at(source, step) if every(step) or isinstance(step, int) else source  # type: ignore[arg-type]

    def _split(self, atom: Atom) -> tuple[Linear, Activation | None]:
        """A layer's linear part, and its activation; None is softmax."""
        if isinstance(atom, Linear):
            return _rescaled(atom)
        if isinstance(atom, Softmaxed):
            return _linear(atom.source, atom.where), None
        if isinstance(atom, Activated):
            return _linear(atom.source, atom.where), atom.activation
        raise self._mixed([atom], [whole(atom)])

    def _recurrent(self, parts: Sequence[Vector]) -> Vector:
        atoms = [part.atom for part in parts if isinstance(part.atom, Recurrent)]
        layer, backwards = self._directions(list(dict.fromkeys(atoms)))
        biased = [any("bias" in name for name in atom.tensors) for atom in layer]
        for atom in [a for a, has in zip(layer, biased, strict=True) if not has and any(biased)]:
            self.notes[f"{atom.where} has no bias beside one that has: there it is 0"] = None
        features = sum(atom.size for atom in layer)
        starts = {id(atom): k * layer[0].size for k, atom in enumerate(layer)}
        places = [part.pick + starts[id(part.atom)] for part in parts]
        steps = [part.step for part in parts]
        returns = all(step == ALL for step in steps)
        if not returns and not self._final(parts, backwards):
            return self._single_steps(layer, parts, places)
        self._place(np.concatenate(places), features, layer[0].where)
        self._add(recurrent(layer, returns))
        self.recurrent += layer
        self.ends += [] if returns else [atom for atom in layer if not atom.reverse]
        return layer[-1].source

    def _final(self, parts: Sequence[Vector], backwards: set[int]) -> bool:
        """Whether these are final states: forward at the last step, reverse at the first."""
        return all(
            self.frame.first(part.step)
            if id(part.atom) in backwards
            else self.frame.last(part.step)
            for part in parts
        )

    def _directions(self, atoms: list[Recurrent]) -> tuple[list[Recurrent], set[int]]:
        """Forward and reverse of one layer, and which are reverse (by identity)."""
        if len(atoms) > 2:
            raise self._mixed(atoms, [])
        if len(atoms) == 1:
            only = atoms[0]
            if not only.reverse:
                return [only], set()
            self.notes[
                f"{only.where} runs in reverse alone: a bidirectional layer whose forward half "
                "is 0 and unused"
            ] = None
            return [silent(only), only], {id(only)}
        forward = [atom for atom in atoms if not atom.reverse]
        reverse = [atom for atom in atoms if atom.reverse]
        if len(forward) == 2 and self.frame.steps == 1:
            forward, reverse = forward[:1], forward[1:]  # one step has no direction
        if len(forward) != 1 or not _same_layer(forward[0], reverse[0]):
            raise self._mixed(atoms, [])
        return [forward[0], reverse[0]], {id(reverse[0])}

    def _single_steps(
        self, layer: Sequence[Recurrent], parts: Sequence[Vector], places: Sequence[Array]
    ) -> Vector:
        """Steps that are no final states, picked by a dense layer out of all steps side by side."""
        steps, where = self.frame.steps, layer[0].where
        if steps is None or any(not isinstance(part.step, int) for part in parts):
            raise self._picks_steps(parts[0].atom, where, parts[0].step)
        features = sum(atom.size for atom in layer)
        chosen = [
            place + int(part.step or 0) % steps * features
            for place, part in zip(places, parts, strict=True)
        ]
        self._place(np.concatenate(chosen), steps * features, where)
        self.notes[
            f"single steps of {where} are picked out of all {steps}: sequences of another length "
            "cannot be run"
        ] = None
        self._add_flatten(steps, where)
        self._add(recurrent(layer, True))
        self.recurrent += layer
        return layer[-1].source

    def _picks_steps(self, atom: Atom, what: str, step: object) -> WeightsError:
        if step == REVERSED:
            found = "all steps, from the last to the first"
        elif isinstance(step, int):
            found = f"step {step}" + (" (the last)" if self.frame.last(step) else "")
        else:
            found = "all steps mixed with single ones"
        reverse = isinstance(atom, Recurrent)
        return WeightsError(
            f"what the model takes of {what} cannot be represented",
            expected="every step in order, or a forward direction's last step and a reverse "
            "direction's final one (step 0)"
            if reverse
            else "every step in order",
            found=found,
            hint="export it with a fixed number of steps, of which single ones can be read; the "
            "final states (Y_h, PyTorch's h_n) are others"
            if reverse
            else None,
        )

    def _mixed(self, atoms: Sequence[Atom], parts: Sequence[Vector]) -> WeightsError:
        shown = [f"{_KINDS.get(type(atom), 'a value')} of {atom.where}" for atom in atoms[:4]]
        more = ", ..." if len(atoms) > 4 else ""
        return WeightsError(
            f"{atoms[0].where} is no layer that lstm-cli has, or is combined with others in a "
            "way that none has",
            expected="a chain of lstm, gru, rnn, dense, dropout and flatten layers",
            found=", ".join(shown) + more,
        )


def complete_pick(pick: Array, size: int) -> bool:
    """Whether these are all of `size` features, in order."""
    return bool(pick.size == size and (pick == counted(size)).all())


def _same_layer(forward: Recurrent, reverse: Recurrent) -> bool:
    """Whether two directions can be one layer: only their activations may differ."""
    plain = [
        {k: v for k, v in atom.options.items() if not isinstance(v, Activation)}
        for atom in (forward, reverse)
    ]
    return (
        (forward.kind, forward.size) == (reverse.kind, reverse.size)
        and plain[0] == plain[1]
        and _matrices(forward) == _matrices(reverse)
        and same_vector(forward.source, reverse.source)
    )


def _matrices(atom: Recurrent) -> set[str]:
    """Names of the tensors but for biases, which one direction may have and the other not."""
    return {name for name in atom.tensors if "bias" not in name}


def _linear(source: Vector, where: str) -> Linear:
    """A vector as a linear map: its own, or one that changes nothing."""
    parts, bias = terms(source)
    return Linear(source.pick.size, timed(source), where, parts, bias)


def _rescaled(atom: Linear) -> tuple[Linear, Activation]:
    """A linear map; one that scales and shifts another layer alike is that layer's activation."""
    term = atom.terms[0]
    alike = [w.array for w in (term.weight, atom.bias) if w is not None]
    if len(atom.terms) > 1 or not term.weight.diagonal or not complete(term.source):
        return atom, IDENTITY
    if any((array != array[0]).any() for array in alike) or term.source.step not in (None, ALL):
        return atom, IDENTITY
    alpha, beta = short(alike[0][0]), short(alike[1][0]) if len(alike) > 1 else 0.0
    inner = term.source.atom
    if isinstance(inner, Linear):
        return inner, Activation("affine", alpha, beta)
    if isinstance(inner, Activated) and inner.activation.name == "tanh" and not beta:
        under, steep = _linear(inner.source, inner.where), 1.0
        if len(under.terms) == 1 and under.terms[0].weight.diagonal and under.bias is None:
            scales, below = under.terms[0].weight.array, under.terms[0].source
            if (scales == scales[0]).all() and isinstance(below.atom, Linear) and complete(below):
                under, steep = below.atom, short(scales[0])
        return under, Activation("scaled_tanh", alpha, steep)
    return atom, IDENTITY
