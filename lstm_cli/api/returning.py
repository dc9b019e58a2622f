"""Results of a batch: there at once, or on their way from a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lstm_cli.api.timing import ALONE, BESIDE, Stopwatch
from lstm_cli.data import Batch
from lstm_cli.engines.types import State
from lstm_cli.network.results import Result, converted_gates


class Coming:
    """A batch that was computed where its results are asked for.

    Attributes
    ----------
    batch
        Which.
    beside
        The next one was started before the results were asked for.
    """

    def __init__(self, batch: Batch, result: Result) -> None:
        self.batch, self._result, self.beside = batch, result, False

    def result(self) -> Result:
        """In NumPy's memory."""
        return self._result

    def settle(self) -> bool:
        """Let go of a device's memory; whether there was any."""
        return False


class Returned(Coming):
    """A batch that a device computes, and whose results are copied while it computes the next.

    Parameters
    ----------
    batch, result
        The batch, and what its pass gives, in the device's memory.
    copied
        The copy of the inputs, and the row of the table of timings that it counts in.
    engine
        Whose results they are.
    watch
        Gathers what the copies took.
    logits
        Bring the logits too.
    """

    def __init__(
        self,
        batch: Batch,
        result: Result,
        copied: tuple[str, Any],
        engine: Any,
        watch: Stopwatch,
        logits: bool,
    ) -> None:
        from lstm_cli.engines.cuda.runtime.memory import Download

        super().__init__(batch, result)
        self._copied, self._engine, self._watch = copied, engine, watch
        self._has_logits = logits and result.logits is not None
        self._settled = False
        arrays = [result.outputs, *_flat(result.state)]
        arrays += [result.logits] if self._has_logits else []
        self._returning = Download(engine.hardware, arrays)

    def result(self) -> Result:
        """In NumPy's memory; waits for it."""
        self.settle()
        return self._result

    def settle(self) -> bool:
        """Wait for the results, and let go of the device's memory; whether there was any."""
        if self._settled:
            return False
        self._settled = True
        outputs, *others = self._returning.wait()
        name, sent = self._copied
        self._watch.add(name, sent.seconds, nbytes=self.batch.x.nbytes)
        nbytes = sum(array.nbytes for array in (outputs, *others))
        row = BESIDE if self.beside else ALONE
        self._watch.add(row, self._returning.seconds, nbytes=nbytes)
        logits = others.pop() if self._has_logits else None
        to_host, given = self._engine.to_host, self._result
        self._result = Result(
            outputs,
            list(_states(given.state, iter(others))),
            {index: converted_gates(kept, to_host) for index, kept in given.kept.items()},
            given.seconds,
            lambda: logits,
        )
        return True


def _flat(states: list[State]) -> list[Any]:
    """The arrays of all layers' states."""
    return [array for state in states for array in state if array is not None]


def _states(like: list[State], arrays: Iterator[Any]) -> Iterator[State]:
    """The same arrays as states again."""
    for _, c in like:
        yield next(arrays), None if c is None else next(arrays)
