"""A network: layers, their weights, and the engine that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.stacks import forward_layers
from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    Engine,
    EngineArray,
    FlattenSpec,
    LayerResult,
    Layers,
    LayerSpec,
    RecurrentSpec,
    State,
    ZeroStates,
    array_dtype,
)
from lstm_cli.errors import DataError, WeightsError, counted
from lstm_cli.network.checks import as_array, check_steps, checked_lengths, checked_state
from lstm_cli.network.normalization import STORED, Normalization
from lstm_cli.network.results import Result, hosted, late
from lstm_cli.network.weights import fit_weights


class Network:
    """Layers with weights on an engine.

    Parameters
    ----------
    layers
        Layer specifications, sizes already chained.
    weights
        Tensors by stored name; two biases of an lstm or rnn are added. With ``inputs.mean`` and
        ``inputs.scale``, inputs are normalized first.
    engine
        What computes.

    Attributes
    ----------
    normalization
        Of the inputs, applied to all that is run; None: they are taken as they are.
    zero_states
        Initial states that begin with 0 whatever is given.

    Raises
    ------
    WeightsError
        The weights do not fit the layers; names every misfit.
    """

    def __init__(self, layers: Layers, weights: Mapping[str, Array], engine: Engine) -> None:
        self.layers = tuple(layers)
        self.engine = engine
        self.zero_states: ZeroStates = {}
        fitted = fit_weights(self.layers, weights)
        self.normalization = Normalization.stored(fitted)
        self._weights: dict[str, Array] | None = None
        self._own: dict[str, EngineArray] = {
            name: _cast(name, v, array_dtype(engine))
            for name, v in fitted.items()
            if name not in STORED
        }
        self._prepare()

    @property
    def weights(self) -> Mapping[str, Array]:
        """The layers' tensors by stored name, in the engine's dtype, in NumPy's memory, read only.

        Without the inputs' normalization, which no update changes and `tensors` also has.
        """
        if self._weights is None:
            to_host = self.engine.to_host
            self._weights = {name: _read_only(to_host(v)) for name, v in self._own.items()}
        return MappingProxyType(self._weights)

    @property
    def tensors(self) -> Mapping[str, Array]:
        """`weights`, and the inputs' normalization: all that makes this network again."""
        if self.normalization is None:
            return self.weights
        own = {name: _read_only(value) for name, value in self.normalization.tensors.items()}
        return MappingProxyType({**self.weights, **own})

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The tensors' stored names, in the layers' order."""
        return tuple(self._own)

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
        return sum(value.size for value in self._own.values())

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
        states = self.check_state(state, x.shape[0])
        steps, stay = x.shape[1], self.engine.from_device_array(x) is not None
        given = self.engine.from_padded(x, lengths), lengths, states
        made = forward_layers(self.engine, tuple(self.prepared()), *given, return_gates=keep)
        y = made[-1].output
        if stay:
            return self._result(made, self.engine.to_padded, self.engine.to_padded(y))
        outputs = self.without_empty(self.engine.to_host(y), steps, lengths)
        return self._result(made, self.engine.to_host, outputs)

    def _result(
        self,
        made: Sequence[LayerResult],
        given: Callable[[EngineArray], EngineArray],
        outputs: EngineArray,
    ) -> Result:
        """What all layers gave, in the form that `given` makes of an engine's values."""
        pairs = list(zip(self.layers, made, strict=True))
        # Dropout is the identity here.
        last = next((r for s, r in reversed(pairs) if not isinstance(s, DropoutSpec)), None)
        logits = None if last is None else last.logits
        return Result(
            outputs,
            [hosted(result.state, given) for result in made if result.state is not None],
            {s.index: late(r.gates, given) for s, r in pairs if r.gates},
            {s.index: r.seconds for s, r in pairs},
            lambda: None if logits is None else given(logits),
        )

    def prepared(self) -> Iterator[tuple[LayerSpec, Any]]:
        """Every layer with its weights as the engine wants them."""
        return zip(self.layers, self._prepared, strict=True)

    def set_weights(self, weights: Mapping[str, EngineArray]) -> None:
        """Compute with these tensors from now on; names and shapes as `weights` has them.

        They may be in NumPy's memory or the engine's own.
        """
        self._own = {name: weights[name] for name in self._own}
        self._prepare()

    def _prepare(self) -> None:
        self._weights = None
        self._prepared = [self.engine.prepare(spec, self._own) for spec in self.layers]

    def without_empty(self, y: Array, steps: int, lengths: Array | None) -> Array:
        """Outputs (N, F) with 0 for the sequences of length 0; others as they are."""
        if y.ndim == 3:
            return y
        empty = np.full(len(y), steps == 0) if lengths is None else lengths == 0
        return np.where(empty[:, None], np.zeros((), y.dtype), y) if empty.any() else y

    def check(self, x: Any, lengths: Any) -> tuple[EngineArray, Array | None]:
        """Inputs, normalized, in the engine's dtype with 0 in the padding, and lengths; see `run`.

        What is in the engine's own memory already stays there.
        """
        x, n = self.check_given(x, lengths)
        scaling, dtype = self.normalization, array_dtype(self.engine)
        if self.engine.from_device_array(x) is not None:
            return x if scaling is None else self.engine.normalize(
                x, scaling.mean, scaling.scale
            ), n
        shorter = n if n is not None and (n < x.shape[1]).any() else None
        if scaling is not None:
            return scaling.apply(x, shorter, dtype), n
        if shorter is not None:
            padding = (np.arange(x.shape[1]) >= shorter[:, None])[:, :, None]
            x = np.where(padding, np.zeros((), x.dtype), x)
        with np.errstate(over="ignore"):  # what is beyond the dtype becomes infinite
            return x.astype(dtype, copy=False), n

    def check_given(self, x: Any, lengths: Any) -> tuple[EngineArray, Array | None]:
        """Inputs as they were given, as an array, and lengths; see `run`."""
        D, own = self.input_size, self.engine.from_device_array(x)
        x = as_array(x, "the inputs", f"real numbers of shape (N, T, {D})") if own is None else own
        if x.ndim != 3 or x.dtype.kind not in "fiub":
            raise DataError(
                "the inputs are not a batch of sequences",
                expected=f"real numbers of shape (N, T, {D})",
                found=f"{x.dtype} of shape {x.shape}",
                hint="x[None] makes a batch of one sequence" if x.ndim == 2 else None,
            )
        if x.shape[2] != D:
            raise DataError(
                f"the inputs have {counted(x.shape[2], 'feature')}, but layer 0 reads {D}",
                expected=f"(N, T, {D})",
                found=str(x.shape),
            )
        n = None if lengths is None else checked_lengths(lengths, x.shape)
        for spec in self.layers:
            if isinstance(spec, FlattenSpec):
                check_steps(spec, x, n)
        return x, n

    def is_one_sided(self, spec: RecurrentSpec) -> bool:
        """Whether a layer's forward direction holds nothing but 0, beside a reverse one that does.

        Models with a layer that runs in reverse alone are read so.
        """
        if spec.directions < 2:
            return False
        forward, reverse = (
            any(self.weights[spec.prefix(d) + p.name].any() for p in cell.parameters(1))
            for d, cell in enumerate(spec.cells)
        )
        return reverse and not forward

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
        pairs, from_device_array, zero = (
            zip(specs, state, strict=True),
            self.engine.from_device_array,
            self.zero_states,
        )
        return {
            s.index: checked_state(
                s, given, N, from_device_array, zero, one_sided=self.is_one_sided(s)
            )
            for s, given in pairs
            if given is not None
        }


def _read_only(value: Array) -> Array:
    """A view of an array that nobody can write to."""
    view = np.asarray(value).view()
    view.setflags(write=False)
    return view


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
