"""A network with the config and weights it was made from: what Python users hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from lstm_cli.api.arguments import checked_flag, checked_kind, checked_path
from lstm_cli.config import Config
from lstm_cli.engines.types import Array
from lstm_cli.errors import counted
from lstm_cli.network.network import Network
from lstm_cli.network.results import Result
from lstm_cli.network.state import StateCarry


class Model:
    """A network ready to run; `lstm_cli.build` and `lstm_cli.load` make it.

    Attributes
    ----------
    network
        Layers and engine.
    config
        The config it was built from.
    weights_name
        Where the weights came from: a file's name, or ``random, seed 0``.
    notes
        What had to be assumed because the weights file does not say it, and what was left out
        of it because it changes no output.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        weights_name: str,
        file_sha256: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        checked_kind(network, Network, "network", "what lstm_cli.build and load make")
        checked_kind(config, Config, "config", "what lstm_cli.build and load make")
        self.network = network
        self.config = config
        self.weights_name = weights_name
        self.notes = notes
        self._file_sha256 = file_sha256
        self._carry = StateCarry(network.recurrent, network.engine.to_host)

    def __repr__(self) -> str:
        kinds = " → ".join(spec.kind for spec in self.network.layers)
        count = f"{counted(self.network.parameter_count, 'parameter', grouped=True)}"
        return f"<Model {self.config.name}: {kinds}, {count}, weights {self.weights_name}>"

    @property
    def weights(self) -> Mapping[str, Array]:
        """Tensors by native name, the inputs' normalization with them; read only."""
        return self.network.tensors

    @property
    def weights_are_random(self) -> bool:
        """Whether the weights were drawn, not read or given."""
        return self.weights_name.startswith("random")

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file; for weights from elsewhere, of names and values."""
        if self._file_sha256 is not None:
            return self._file_sha256
        digest = sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()

    @property
    def stateful(self) -> bool:
        """Whether any layer continues from one batch to the next."""
        return self._carry.active

    @property
    def carries_state(self) -> bool:
        """Whether a batch was run since the last `reset_state`, so that the next continues it."""
        return self._carry.has_states

    def run(
        self,
        x: Any,
        lengths: Any = None,
        state: Sequence[Any] | None = None,
        *,
        keep: bool = False,
    ) -> Result:
        """Forward pass over a batch.

        Parameters
        ----------
        x
            Sequences (N, T, D). What stands past a sequence's length does not matter.
        lengths
            (N,) valid steps of each sequence; None: all T.
        state
            Initial states, as `Result.state` gives them; None: zeros, or for a stateful layer
            where the batch before ended.
        keep
            Keep every gate and state of every step in `Result.kept`.

        Raises
        ------
        DataError
            Shapes that do not fit the network.
        """
        keep = checked_flag(keep, "keep")
        start = state
        if self.stateful:
            x, lengths = self.network.check_arrays(x, lengths)
            start = self._carry.start(state, x.shape[0])
        result = self.network.run(x, lengths, start, keep=keep)
        if self.stateful:
            self._carry.store(result.state)
        return result

    def reset_state(self) -> None:
        """Let stateful layers start from zeros again, as at the beginning of a file."""
        self._carry.reset()

    def save(self, path: str | Path) -> None:
        """Write the weights, with the config in them, as a native file.

        Raises
        ------
        LstmCliError
            The file cannot be written.
        """
        from lstm_cli.formats import native

        checked_path(path, "path")
        native.write(path, self.weights, self.config.to_yaml())
