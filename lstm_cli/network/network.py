"""A network: layers, their weights, and the engine that computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstm_cli.engines.protocols import Engine, Layer, NetworkProgram, array_dtype
from lstm_cli.engines.stacks import forward_layers
from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    EngineArray,
    FlattenSpec,
    LayerResult,
    Layers,
    LayerSpec,
    RecurrentSpec,
    State,
    ZeroStates,
)
from lstm_cli.errors import DataError, WeightsError, counted
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization
from lstm_cli.network.results import Result, converted_gates, state_to_host
from lstm_cli.network.state import as_array, check_steps, checked_lengths, checked_state
from lstm_cli.network.weights import MisfitDescriber, fit_weights, is_finite, is_immutable

MAX_PROGRAM_SHAPES = 16
"""Most shapes of batches for which a network keeps programs."""


class Network:
    """Layers with weights on an engine.

    Parameters
    ----------
    layers
        Layer specifications with matching sizes.
    weights
        Tensors by stored name. An lstm or rnn may have two biases, whose sum is used. With
        ``inputs.mean`` and ``inputs.scale`` the network normalizes its inputs.
    engine
        Engine that computes the layers.
    describe
        Function that describes misfits; see `fit_weights`.

    Attributes
    ----------
    normalization
        Normalization of the inputs. None: the network reads them unchanged.
    zero_states
        Initial states that stay 0 even if the caller gives others.
    engine_layers
        The layers with their weights, as the engine computes them.
    dtype
        Dtype of its arrays in NumPy's memory.

    Raises
    ------
    WeightsError
        The weights do not fit the layers. The error names every misfit.
    """

    def __init__(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        engine: Engine,
        describe: MisfitDescriber | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.engine = engine
        self.zero_states: ZeroStates = {}
        fitted = fit_weights(self.layers, weights, describe=describe)
        self.normalization = Normalization.from_tensors(fitted)
        self.dtype = np.dtype(array_dtype(engine))
        first = next((spec for spec in self.layers if not isinstance(spec, DropoutSpec)), None)
        self._reads_padding = not (engine.ignores_padding and isinstance(first, RecurrentSpec))
        self._flattens = any(isinstance(spec, FlattenSpec) for spec in self.layers)
        self._weights: dict[str, Array] | None = None
        self._engine_weights: dict[str, EngineArray] = {
            name: _cast(name, v, array_dtype(engine))
            for name, v in fitted.items()
            if name not in TENSOR_NAMES
        }
        self._make_layers()

    @property
    def weights(self) -> Mapping[str, Array]:
        """Read-only tensors of the layers by stored name, in the engine's dtype and NumPy's memory.

        They exclude the inputs' normalization; `tensors` includes it.
        """
        if self._weights is None:
            to_host = self.engine.to_host
            self._weights = {
                name: _read_only(to_host(v)) for name, v in self._engine_weights.items()
            }
        return MappingProxyType(self._weights)

    @property
    def tensors(self) -> Mapping[str, Array]:
        """`weights` and the inputs' normalization: all tensors of a weights file."""
        if self.normalization is None:
            return self.weights
        scaling = {name: _read_only(value) for name, value in self.normalization.tensors.items()}
        return MappingProxyType({**self.weights, **scaling})

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Stored names of the tensors, in layer order."""
        return tuple(self._engine_weights)

    @property
    def input_size(self) -> int:
        """Number of input features D."""
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        """Number of output features F."""
        return self.layers[-1].output_size

    @property
    def recurrent(self) -> tuple[RecurrentSpec, ...]:
        """The recurrent layers in order."""
        return tuple(spec for spec in self.layers if isinstance(spec, RecurrentSpec))

    @property
    def returns_sequences(self) -> bool:
        """Whether the output has one row per step."""
        return not any(ends_sequence(spec) for spec in self.layers)

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(value.size for value in self._engine_weights.values())

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
            Sequences (N, T, D). Values past a sequence's length are ignored.
        lengths
            (N,) valid steps. None: all T steps are valid.
        state
            Initial states in the form of `Result.state`. None is zeros for all layers; None in
            place of a layer's states is zeros for that layer.
        keep
            Return every gate and state of every step in `Result.kept`.

        Raises
        ------
        DataError
            A shape does not fit the network.
        """
        x, lengths = self.check(x, lengths)
        states = self.check_state(state, x.shape[0])
        if lengths is None and not keep:
            result = self._run_program(x, states)
            if result is not None:
                return result
        steps, on_device = x.shape[1], self.engine.from_device_array(x) is not None
        results = forward_layers(
            self.engine,
            self.engine_layers,
            self.engine.from_padded(x, lengths),
            lengths,
            states,
            return_gates=keep,
        )
        y = results[-1].output
        if on_device:
            return self._result(results, self.engine.to_padded, self.engine.to_padded(y))
        outputs = self.without_empty(self.engine.to_host(y), steps, lengths)
        return self._result(results, self.engine.to_host, outputs)

    def _run_program(self, x: EngineArray, states: Mapping[int, State]) -> Result | None:
        """Forward pass by a program of the engine. None: there is none for this shape.

        The second batch of a shape makes the program, which later ones use. Each call takes one
        for itself, so calls may run at the same time.
        """
        shape = x.shape[:2]
        if shape not in self._programs:
            if len(self._programs) >= MAX_PROGRAM_SHAPES:
                self._programs.clear()
            self._programs[shape] = []
            return None
        idle = self._programs.get(shape)
        if idle is None:
            return None
        try:
            program = idle.pop()  # pop and append need no lock
        except IndexError:
            made = self.engine.program(self.engine_layers, *shape)
            if made is None:
                self._programs[shape] = None
                return None
            program = made
        starts = [states.get(spec.index) for spec in self.recurrent] if states else None
        result = program.run(x, starts)
        idle.append(program)
        return Result(
            result.outputs,
            list(result.states),
            {},
            result.seconds,
            lambda: result.logits,
        )

    def _result(
        self,
        results: Sequence[LayerResult],
        convert: Callable[[EngineArray], EngineArray],
        outputs: EngineArray,
    ) -> Result:
        pairs = list(zip(self.layers, results, strict=True))
        # Dropout is the identity here.
        last = next((r for s, r in reversed(pairs) if not isinstance(s, DropoutSpec)), None)
        logits = None if last is None else last.logits
        return Result(
            outputs,
            [state_to_host(r.state, convert) for r in results if r.state is not None],
            {s.index: converted_gates(r.gates, convert) for s, r in pairs if r.gates},
            {s.index: r.seconds for s, r in pairs},
            lambda: None if logits is None else convert(logits),
        )

    def set_weights(self, weights: Mapping[str, EngineArray]) -> None:
        """Replace all tensors by tensors of the same names and shapes.

        The new tensors may be in NumPy's memory or in the engine's.
        """
        self._engine_weights = {name: weights[name] for name in self._engine_weights}
        self._make_layers()

    def _make_layers(self) -> None:
        self._weights = None
        self._programs: dict[tuple[int, int], list[NetworkProgram] | None] = {}
        self.engine_layers: tuple[Layer, ...] = tuple(
            self.engine.layer(spec, self._engine_weights) for spec in self.layers
        )

    def without_empty(self, y: Array, steps: int, lengths: Array | None) -> Array:
        """Outputs (N, F) with 0 for sequences of length 0; outputs (N, T, F) unchanged."""
        if y.ndim == 3:
            return y
        empty = np.full(len(y), steps == 0) if lengths is None else lengths == 0
        return np.where(empty[:, None], np.zeros((), y.dtype), y) if empty.any() else y

    def check(self, x: Any, lengths: Any) -> tuple[EngineArray, Array | None]:
        """Normalized inputs in the engine's dtype with padding of 0, and lengths; see `run`.

        Inputs in the engine's memory stay there.
        """
        plain = type(x) is np.ndarray and x.dtype == self.dtype and x.ndim == 3
        fits = plain and lengths is None and x.shape[2] == self.input_size
        if fits and self.normalization is None and not self._flattens:
            return x, None  # as most calls come; the other checks take longer than a small layer
        x, n = self.check_arrays(x, lengths)
        scaling, dtype = self.normalization, array_dtype(self.engine)
        if self.engine.from_device_array(x) is not None:
            return x if scaling is None else self.engine.normalize(
                x, scaling.mean, scaling.scale
            ), n
        shorter = n if n is not None and (n < x.shape[1]).any() else None
        if scaling is not None:
            return scaling.apply(x, shorter, dtype), n
        if shorter is not None and self._reads_padding:
            padding = (np.arange(x.shape[1]) >= shorter[:, None])[:, :, None]
            x = np.where(padding, np.zeros((), x.dtype), x)
        with np.errstate(over="ignore"):  # values beyond the dtype become infinite
            return x.astype(dtype, copy=False), n

    def check_arrays(self, x: Any, lengths: Any) -> tuple[EngineArray, Array | None]:
        """Inputs as an array, otherwise unchanged, and checked lengths; see `run`."""
        D, on_device = self.input_size, self.engine.from_device_array(x)
        expected = f"real numbers of shape (N, T, {D})"
        x = as_array(x, "the inputs", expected) if on_device is None else on_device
        if x.ndim != 3 or x.dtype.kind not in "fiub":
            raise DataError(
                "the inputs are not a batch of sequences",
                expected=expected,
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
        """Whether a layer's forward weights are all 0 and its reverse weights are not.

        Readers of other formats represent a layer with only a reverse direction this way.
        """
        if spec.directions < 2:
            return False
        forward, reverse = (
            any(self.weights[spec.prefix(d) + p.name].any() for p in cell.parameters(1))
            for d, cell in enumerate(spec.cells)
        )
        return reverse and not forward

    def check_state(self, state: Sequence[Any] | None, N: int) -> dict[int, State]:
        """Checked initial states by layer index; see `run`."""
        if state is None:
            return {}
        specs = self.recurrent
        if not isinstance(state, Sequence) or isinstance(state, str):
            raise DataError(
                "the initial states are not a list",
                expected=f"{len(specs)} entries (h, c), one for each recurrent layer",
                found=type(state).__name__,
            )
        if len(state) != len(specs):
            raise DataError(
                "the initial states do not fit the network",
                expected=f"{len(specs)} entries, one for each recurrent layer",
                found=f"{len(state)}",
            )
        return {
            spec.index: checked_state(
                spec,
                value,
                N,
                self.engine.from_device_array,
                self.zero_states,
                one_sided=self.is_one_sided(spec),
            )
            for spec, value in zip(specs, state, strict=True)
            if value is not None
        }


def _read_only(value: Array) -> Array:
    view = np.asarray(value).view()
    view.setflags(write=False)
    return view


def _cast(name: str, value: Array, dtype: str) -> Array:
    """The tensor as kernels read it: the array itself if it fits and nothing can change it."""
    with np.errstate(over="ignore"):
        cast = np.require(value, dtype, ["C", "A"])
    if cast is value and not is_immutable(value):
        return value.copy()
    if cast is not value and not is_finite(cast):
        raise WeightsError(
            f"{name} holds values beyond {dtype}",
            expected=f"at most {np.finfo(dtype).max:g}",
            found=f"{np.abs(value).max():g}",
            hint="--dtype float64",
        )
    return cast


def ends_sequence(spec: LayerSpec) -> bool:
    """Whether the layer reduces (N, T, F) to (N, F)."""
    return isinstance(spec, FlattenSpec) or (
        isinstance(spec, RecurrentSpec) and not spec.return_sequences
    )
