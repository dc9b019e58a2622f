"""Outputs of a network step by step, as the inputs come: `Stream`, and `run_stream` for bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from lstm_cli.engines.protocols import Stepper, array_dtype
from lstm_cli.engines.types import Array, FlattenSpec, RecurrentSpec, State
from lstm_cli.errors import ConfigError, DataError, counted, described
from lstm_cli.network.network import Network
from lstm_cli.network.state import as_array

MAX_BATCH = 1 << 20
"""Most sequences of a stream."""


class Stream:
    """A network that reads one step at a time and keeps its states.

    The output of a step is what `Network.run` gives for all steps so far: its last step, or its
    only row for a network that does not return sequences. On the jit engine the bits are equal.

    Parameters
    ----------
    network
        The network. All its recurrent layers have one direction.
    batch
        Number of sequences N that run side by side.

    Raises
    ------
    ConfigError
        A layer needs steps that are yet to come.
    DataError
        `batch` is not a positive whole number.
    """

    def __init__(self, network: Network, batch: int = 1) -> None:
        batch = _checked_batch(batch)
        for spec in network.layers:
            _check_causal(spec)
        self.network, self.batch = network, batch
        self._dtype = network.dtype
        self._shape, self._out = (batch, network.input_size), (batch, network.output_size)
        stepper = network.engine.stepper(network.engine_layers, batch)
        self._stepper: Stepper = _LayerStepper(network, batch) if stepper is None else stepper

    def step(self, x: Any, out: Array | None = None) -> Array:
        """Outputs for one more step.

        Parameters
        ----------
        x
            (batch, D), or (D,) for one sequence.
        out
            Array for the outputs, in the engine's dtype. None: a new array.

        Returns
        -------
        Outputs (batch, F), or (F,) if `x` is (D,).

        Raises
        ------
        DataError
            A shape does not fit.
        """
        if type(x) is not np.ndarray or x.dtype != self._dtype:
            expected = f"real numbers of shape {self._shape}"
            x = as_array(x, "the inputs", expected)
            if x.dtype.kind not in "fiub":
                raise DataError("the inputs are not numbers", expected=expected, found=x.dtype.name)
        single = x.ndim == 1 and self.batch == 1
        if x.shape != (self._shape[1:] if single else self._shape):
            raise DataError(
                "the inputs are not one step of the stream",
                expected=str(self._shape) + (f" or {self._shape[1:]}" if self.batch == 1 else ""),
                found=str(x.shape),
            )
        shape = self._out[1:] if single else self._out
        if out is None:
            out = np.empty(shape, self._dtype)
        else:
            self._check_out(out, shape)
        if self.network.normalization is not None:
            x = self.network.normalization.apply(x.reshape(self._shape), None, self._dtype.name)
        self._stepper.step(x, out)
        return out

    def _check_out(self, out: Any, shape: tuple[int, ...]) -> None:
        fits = isinstance(out, np.ndarray) and out.shape == shape and out.dtype == self._dtype
        if not fits or not out.flags.writeable:
            found = described(out)
            if isinstance(out, np.ndarray):
                found = f"{out.dtype} of shape {out.shape}"
                found += "" if out.flags.writeable else ", read-only"
            raise DataError(
                "`out` does not fit the outputs",
                expected=f"a writable array of {self._dtype} of shape {shape}",
                found=found,
            )

    def reset(self) -> None:
        """Forget all steps: the states become 0."""
        self._stepper.reset()

    @property
    def state(self) -> list[State]:
        """States (h, c) after the last step, in the form of `Result.state`."""
        return self._stepper.states

    @state.setter
    def state(self, state: Sequence[Any] | None) -> None:
        states = self.network.check_state(state, self.batch)
        self._stepper.reset()
        whole = [
            states.get(spec.index, one)
            for spec, one in zip(self.network.recurrent, self._stepper.states, strict=True)
        ]
        self._stepper.set_states(whole)


def _checked_batch(batch: Any) -> int:
    whole = isinstance(batch, int | np.integer) and not isinstance(batch, bool)
    if whole and 1 <= batch <= MAX_BATCH:
        return int(batch)
    raise DataError(
        "a stream has at least one sequence",
        expected=f"a whole number from 1 to {MAX_BATCH:,}",
        found=described(batch),
    )


def _check_causal(spec: Any) -> None:
    """Raise for a layer that needs steps that are yet to come."""
    if isinstance(spec, RecurrentSpec) and spec.directions > 1:
        reason = f"layer {spec.index} ({spec.kind}) reads every sequence from its end, too"
    elif isinstance(spec, FlattenSpec):
        reason = f"layer {spec.index} (flatten) joins all steps of a sequence"
    else:
        return
    raise ConfigError(
        "the network cannot run step by step", expected="layers that read past steps", found=reason
    )


class _LayerStepper:
    """Steps on an engine without a stepper: the layers one by one, with their states."""

    def __init__(self, network: Network, batch: int) -> None:
        self._network, self._batch = network, batch
        self.states: list[State] = []
        self.reset()

    def step(self, x: Array, out: Array) -> None:
        network = self._network
        engine, outputs = network.engine, x.reshape(self._batch, 1, -1)
        values = engine.from_padded(outputs.astype(array_dtype(engine), copy=False), None)
        states: list[State] = []
        for layer in network.engine_layers:
            state = self.states[len(states)] if isinstance(layer.spec, RecurrentSpec) else None
            result = layer.forward(values, None, state)
            values = result.output
            if result.state is not None:
                h, c = result.state
                states.append((engine.to_host(h), None if c is None else engine.to_host(c)))
        self.states = states
        out[...] = engine.to_host(values).reshape(out.shape)

    def reset(self) -> None:
        dtype = array_dtype(self._network.engine)
        self.states = []
        for spec in self._network.recurrent:
            h, *c = (np.zeros((self._batch, 1, n), dtype) for n in spec.cells[0].state_sizes)
            self.states.append((h, c[0] if c else None))

    def set_states(self, states: Sequence[State]) -> None:
        self.states = list(states)


_SHOWN = 40
"""Most characters of a line that an error repeats."""


def run_stream(network: Network, format: str, source: BinaryIO, target: BinaryIO) -> int:
    """Read every step of `source`, and write its outputs to `target` before the next is read.

    Parameters
    ----------
    format
        ``csv``: a step is a line of numbers, and so is its output. ``f32``: little-endian float32
        numbers.

    Returns
    -------
    Number of steps.

    Raises
    ------
    ConfigError
        The network needs steps that are yet to come.
    DataError
        The source holds something else.
    """
    stream, count = Stream(network), 0
    out = np.empty(network.output_size, network.dtype)
    steps = _lines if format == "csv" else _frames
    for x in steps(source, network.input_size):
        stream.step(x, out)
        if format == "csv":
            target.write(",".join(map(str, out)).encode() + b"\n")
        else:
            target.write(out.astype("<f4").tobytes())
        target.flush()
        count += 1
    return count


def _lines(source: BinaryIO, features: int) -> Iterator[Array]:
    """The numbers of every line that is not empty."""
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            values = np.array([float(part) for part in line.split(b",")])
        except ValueError:
            values = np.empty(0)
        if len(values) != features:
            text = line.decode(errors="replace").strip()
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise DataError(
                f"line {number} of the stream is not a step",
                expected=f"{counted(features, 'number')}, separated by commas",
                found=f"{counted(len(values), 'number')}: {shown}" if len(values) else shown,
            )
        yield values


def _frames(source: BinaryIO, features: int) -> Iterator[Array]:
    """Every frame of D little-endian float32 numbers."""
    size, count = 4 * features, 0
    while frame := source.read(size):
        if len(frame) < size:
            raise DataError(
                f"the stream ends within step {count}",
                expected=f"frames of {counted(size, 'byte')}: {counted(features, 'number')} in "
                "float32",
                found=counted(len(frame), "byte"),
            )
        yield np.frombuffer(frame, "<f4")
        count += 1
