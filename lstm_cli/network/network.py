"""A network: layers, their weights, and the engine that computes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    Engine,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
    State,
    array_dtype,
)
from lstm_cli.errors import DataError, WeightsError
from lstm_cli.network.weights import fit_weights


@dataclass(frozen=True)
class Result:
    """What a forward pass gave.

    Attributes
    ----------
    outputs
        (N, T, F), or (N, F) if the network does not return sequences. Padded steps, and
        sequences of length 0, hold 0.
    state
        Final (h, c) of every recurrent layer: h (N, directions, P or H), c (N, directions, H),
        None for gru and rnn.
    kept
        By layer index, direction and name: every gate and state of every step (N, T, H),
        where asked for.
    logits
        The last dense layer's values before its activation; None if another layer is last.
    seconds
        Time by layer index and part.
    """

    outputs: Array
    state: list[State]
    kept: Mapping[int, Mapping[str, Mapping[str, Array]]] = field(default_factory=dict)
    logits: Array | None = None
    seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


class Network:
    """Layers with weights on an engine.

    Parameters
    ----------
    layers
        Layer specifications, sizes already chained.
    weights
        Tensors by stored name; two biases of an lstm or rnn are added.
    engine
        What computes.

    Raises
    ------
    WeightsError
        The weights do not fit the layers; names every misfit.
    """

    def __init__(self, layers: Layers, weights: Mapping[str, Array], engine: Engine) -> None:
        self.layers = tuple(layers)
        self.engine = engine
        fitted = fit_weights(self.layers, weights)
        self._weights = {name: _cast(name, v, array_dtype(engine)) for name, v in fitted.items()}
        self._prepare()

    @property
    def weights(self) -> Mapping[str, Array]:
        """Tensors by stored name, in the engine's dtype, read only."""
        return MappingProxyType(self._weights)

    @property
    def input_size(self) -> int:
        """Features D of a step."""
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        """Features F of the output."""
        return self.layers[-1].output_size

    @property
    def recurrent(self) -> tuple[RecurrentSpec, ...]:
        """The recurrent layers, in order."""
        return tuple(spec for spec in self.layers if isinstance(spec, RecurrentSpec))

    @property
    def returns_sequences(self) -> bool:
        """Whether the output has one row a step."""
        return not any(ends_sequence(spec) for spec in self.layers)

    @property
    def parameter_count(self) -> int:
        """Numbers stored."""
        return sum(value.size for value in self._weights.values())

    def run(
        self,
        x: Any,
        lengths: Any = None,
        state: Sequence[Any] | None = None,
        *,
        keep: bool = False,
    ) -> Result:
        """Forward pass.

        Parameters
        ----------
        x
            Sequences (N, T, D); what stands past a sequence's length does not matter.
        lengths
            (N,) valid steps; None: all T.
        state
            Initial states as `Result.state` gives them; None, or None for a layer: zeros.
        keep
            Keep every gate and state.

        Raises
        ------
        DataError
            Shapes that do not fit the network.
        """
        x, lengths = self.check(x, lengths)
        states = self.check_state(state, len(x))
        finals: list[State] = []
        kept, seconds, logits = {}, {}, None
        y = x
        for spec, prepared in self.prepared():
            given = states.get(spec.index)
            result = self.engine.forward(spec, prepared, y, lengths, given, keep=keep)
            y = result.output
            if not isinstance(spec, DropoutSpec):  # which is the identity here
                logits = result.logits
            seconds[spec.index] = result.seconds
            if result.state is not None:
                finals.append(result.state)
            if result.kept:
                kept[spec.index] = result.kept
        y = self.without_empty(y, x.shape[1], lengths)
        return Result(y, finals, kept, logits, seconds)

    def prepared(self) -> Iterator[tuple[LayerSpec, Any]]:
        """Every layer with its weights as the engine wants them."""
        return zip(self.layers, self._prepared, strict=True)

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Compute with these tensors from now on; names and shapes as `weights` has them."""
        self._weights = {name: np.asarray(weights[name]).view() for name in self._weights}
        self._prepare()

    def _prepare(self) -> None:
        for value in self._weights.values():
            value.setflags(write=False)
        self._prepared = [self.engine.prepare(spec, self._weights) for spec in self.layers]

    def without_empty(self, y: Array, steps: int, lengths: Array | None) -> Array:
        """Outputs (N, F) with 0 for the sequences of length 0; others as they are."""
        if y.ndim == 3:
            return y
        empty = np.full(len(y), steps == 0) if lengths is None else lengths == 0
        return np.where(empty[:, None], np.zeros((), y.dtype), y) if empty.any() else y

    def check(self, x: Any, lengths: Any) -> tuple[Array, Array | None]:
        """Inputs in the engine's dtype with 0 in the padding, and lengths; see `run`."""
        D = self.input_size
        x = _array(x, "the inputs", f"real numbers of shape (N, T, {D})")
        if x.ndim != 3 or x.dtype.kind not in "fiub":
            raise DataError(
                "the inputs are not a batch of sequences",
                expected=f"real numbers of shape (N, T, {D})",
                found=f"{x.dtype} of shape {x.shape}",
                hint="x[None] makes a batch of one sequence" if x.ndim == 2 else None,
            )
        if x.shape[2] != D:
            raise DataError(
                f"the inputs have {x.shape[2]} features, but layer 0 reads {D}",
                expected=f"(N, T, {D})",
                found=str(x.shape),
            )
        n = None if lengths is None else _checked_lengths(lengths, x.shape)
        for spec in self.layers:
            if isinstance(spec, FlattenSpec):
                _check_steps(spec, x, n)
        if n is not None and (n < x.shape[1]).any():
            padding = (np.arange(x.shape[1]) >= n[:, None])[:, :, None]
            x = np.where(padding, np.zeros((), x.dtype), x)
        with np.errstate(over="ignore"):  # what is beyond the dtype becomes infinite
            return x.astype(array_dtype(self.engine), copy=False), n

    def check_state(self, state: Sequence[Any] | None, N: int) -> dict[int, State]:
        """Initial states by layer index; see `run`."""
        if state is None:
            return {}
        specs = self.recurrent
        if not isinstance(state, Sequence) or isinstance(state, str):
            raise DataError(
                "the initial states are no list",
                expected=f"{len(specs)} entries (h, c), one for each recurrent layer",
                found=type(state).__name__,
            )
        if len(state) != len(specs):
            raise DataError(
                "the initial states do not fit the network",
                expected=f"{len(specs)} entries, one for each recurrent layer",
                found=f"{len(state)}",
            )
        pairs = zip(specs, state, strict=True)
        return {s.index: checked_state(s, given, N) for s, given in pairs if given is not None}


def _cast(name: str, value: Array, dtype: str) -> Array:
    """A weight in the engine's dtype, a copy; it must fit."""
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast).all():
        raise WeightsError(
            f"{name} holds values beyond {dtype}",
            expected=f"at most {np.finfo(dtype).max:g}",
            found=f"{np.abs(value).max():g}",
            hint="--dtype float64",
        )
    return cast


def ends_sequence(spec: LayerSpec) -> bool:
    """Whether the layer turns (N, T, F) into (N, F)."""
    return isinstance(spec, FlattenSpec) or (
        isinstance(spec, RecurrentSpec) and not spec.return_sequences
    )


def _checked_lengths(lengths: Any, shape: tuple[int, ...]) -> Array:
    n = _array(lengths, "lengths", f"integers of shape ({shape[0]},)")
    N, T, _ = shape
    if n.shape != (N,) or (n.size and n.dtype.kind not in "iu"):
        raise DataError(
            "lengths do not fit the inputs",
            expected=f"integers of shape ({N},)",
            found=f"{n.dtype} of shape {n.shape}",
        )
    n = n.astype(np.int64)
    wrong = np.flatnonzero((n < 0) | (n > T))
    if wrong.size:
        raise DataError(
            f"the length of sequence {wrong[0]} is out of range",
            expected=f"0 to {T}, the steps of the inputs",
            found=str(n[wrong[0]]),
        )
    return n


def _check_steps(spec: FlattenSpec, y: Array, lengths: Array | None) -> None:
    longest = y.shape[1] if lengths is None else int(lengths.max(initial=0))
    if longest > spec.steps:
        raise DataError(
            f"a sequence of {longest} steps is longer than layer {spec.index} (flatten) takes",
            expected=f"at most model.steps = {spec.steps}",
            found=f"{longest}",
            hint=f"--set model.steps={longest}",
        )


def checked_state(spec: RecurrentSpec, given: Any, N: int) -> State:
    """One layer's initial (h, c), shapes checked; a missing c of an lstm is zeros."""
    h, c = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    names, sizes = spec.cells[0].states, spec.cells[0].state_sizes
    if c is not None and len(names) == 1:
        raise DataError(f"layer {spec.index} ({spec.kind}) has no state c")
    checked = [
        _checked_part(spec, name, value, (N, spec.directions, size))
        for name, value, size in zip(names, (h, c), sizes, strict=False)
    ]
    return checked[0], checked[1] if len(names) > 1 else None


def _checked_part(spec: RecurrentSpec, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    if value is None:
        return np.zeros(shape)
    what = f"initial state {name} of layer {spec.index} ({spec.kind})"
    array = _array(value, what)
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} does not fit",
            expected=f"real numbers {shape}, that is (N, directions, features)",
            found=f"{array.dtype} {array.shape}",
        )
    return array


def _array(value: Any, what: str, expected: str = "an array") -> Array:
    """`value` in NumPy's memory, from a GPU's too."""
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        value = value.get()
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be read", expected=expected, found=str(error)) from None
