"""Order of layers in a file without a description, from lists, names and sizes.

Three sources state an order: the file's own list of layers, numbers in the names of listed layers,
and a config. Sizes decide only where they allow a single order. Offsets in the file say nothing,
because a copy may put the bytes anywhere.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, combinations, groupby, islice
from typing import Any

from lstm_cli.engines.types import FlattenSpec, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import WeightsError, shortened
from lstm_cli.formats.keras.architecture import KerasLayer, layer_title
from lstm_cli.formats.keras.options import LayerOptions

MAX_TRIALS = 20_000
MAX_UNPLACED_LAYERS = 100
"""Largest number of layers whose orders are searched."""
ORDER_INDEPENDENT = (
    "InputLayer",
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Masking",
)
"""Layers whose position changes no output."""
SAVE_MODEL_HINT = (
    "save the whole Sequential or Functional model, which states the order: "
    "model.save('model.keras')"
)
ORDER_HINT = (
    f"{SAVE_MODEL_HINT}; or list the layers in a config: lstm-cli run CONFIG DATA --weights FILE, "
    "lstm-cli convert FILE DST --config CONFIG"
)


class NameNumbers(Enum):
    """Meaning of numbers in the names of one class's layers: ``lstm``, ``lstm_1``."""

    ORDER = "the order"
    UNKNOWN = "the order, unless the model is of the user's own class"
    NO_ORDER = "in which order the user's own code made them"


@dataclass(frozen=True)
class UnplacedLayer:
    """Layer whose position in the chain is not known yet.

    Attributes
    ----------
    path
        Path of the layer in the file, or common start of the names of its variables.
    input_size, output_size
        Features at its input and output; None where the output has the size of the input.
    kind
        ``lstm``, ``gru``, ``rnn`` or ``dense``; empty for a layer without weights.
    directions
        Number of directions, 1 or 2.
    group
        Index in the file's own list of layers; 0 where the file has no list.
    """

    layer: KerasLayer
    path: str
    input_size: int | None = None
    output_size: int | None = None
    kind: str = ""
    directions: int = 1
    group: int = 0

    @property
    def size(self) -> tuple[str, int, int | None, int | None]:
        """Kind, number of directions, input size and output size."""
        return self.kind, self.directions, self.input_size, self.output_size

    def fits(self, spec: LayerSpec) -> bool:
        """Whether a layer of a config has the same kind and sizes."""
        directions = spec.directions if isinstance(spec, RecurrentSpec) else 1
        return self.size == (spec.kind, directions, spec.input_size, spec.output_size)


def order_layers(
    candidates: Sequence[UnplacedLayer], *, numbers: NameNumbers, layers: Layers | None = None
) -> tuple[list[KerasLayer], list[str]]:
    """Order layers from input to output; the notes state assumptions.

    Parameters
    ----------
    numbers
        Meaning of numbers in the names. `NO_ORDER` ignores them, `UNKNOWN` uses them only with
        a config.
    layers
        Layers of a config that the file's layers must match.

    Raises
    ------
    WeightsError
        No order fits, or several orders fit.
    """
    if layers is not None:
        try:
            return _as_config(candidates, numbers != NameNumbers.NO_ORDER, layers)
        except _MisfitError as misfit:  # The file itself may state an order.
            try:
                return order_layers(candidates, numbers=numbers)
            except WeightsError:
                raise misfit from None
    groups = {candidate.group for candidate in candidates}
    if len(groups) == len(candidates):
        chain = sorted(candidates, key=lambda candidate: candidate.group)
        listed = "that of the file's own list" if len(chain) > 1 else None
        return [candidate.layer for candidate in chain], _order_note(chain, listed)
    harmless = [p for p in candidates if p.layer.kind in ORDER_INDEPENDENT and len(groups) == 1]
    rest = [candidate for candidate in candidates if candidate not in harmless]
    numbered = numbers == NameNumbers.ORDER
    chains = _first_chains(_Search(rest, numbered))
    if len(chains) != 1:
        raise _ambiguous(rest, chains, numbers)
    left_out = [f"{p.layer.title} is left out: it acts in training only" for p in harmless
                if p.layer.kind not in ("InputLayer", "Masking")]  # fmt: skip
    masks = [candidate.layer for candidate in harmless if candidate.layer.kind == "Masking"]
    chain = chains[0]
    return masks + [p.layer for p in chain], _order_note(
        chain, _order_evidence(rest, numbered)
    ) + left_out


def _as_config(
    candidates: Sequence[UnplacedLayer], numbered: bool, layers: Layers
) -> tuple[list[KerasLayer], list[str]]:
    """Put layers in the order of a config whose layers have the same kinds and sizes."""
    specs = [spec for spec in layers if spec.parameters()]
    weighted = [candidate for candidate in candidates if candidate.kind]
    if len(weighted) != len(specs):
        raise _misfit(weighted, specs)
    chains = _first_chains(_Search(weighted, numbered, specs))
    if not chains:
        raise _misfit(weighted, specs)
    if len(chains) > 1:
        pairs = zip(chains[0], chains[1], strict=True)
        one, other = next((a, b) for a, b in pairs if a.path != b.path)
        raise WeightsError(
            f"{shortened(one.path)} and {shortened(other.path)} are alike: "
            "no name tells which runs first",
            expected="names or sizes that tell which layer of the config each is",
            hint=SAVE_MODEL_HINT,
        )
    ordered, weighted_chain = [], iter(chains[0])
    for spec in layers:
        if spec.parameters():
            candidate = next(weighted_chain)
            _check_reset(candidate, spec)
            ordered.append(candidate.layer)
        elif isinstance(spec, FlattenSpec):
            ordered.append(
                KerasLayer(
                    "Flatten",
                    "flatten",
                    LayerOptions(layer_title("Flatten", "flatten"), {}),
                    "",
                    "",
                )
            )
    return ordered, _order_note(
        chains[0], f"that of the config, {_order_evidence(weighted, numbered, specs)}"
    )


def _check_reset(candidate: UnplacedLayer, spec: LayerSpec) -> None:
    """Refuse a config whose `reset_after` contradicts the biases of a GRU."""
    reset_after = isinstance(spec, RecurrentSpec) and getattr(spec.cells[0], "reset_after", None)
    inner = candidate.layer.options.get("layer") or {}
    values = inner.get("config", candidate.layer.options.values)
    file_reset_after = values.get("reset_after")
    if spec.kind == "gru" and file_reset_after not in (None, reset_after):
        raise WeightsError(
            f"{shortened(candidate.path)} has the biases of a GRU with reset_after: "
            f"{_yaml(file_reset_after)}, layer {spec.index} of the config has reset_after: "
            f"{_yaml(reset_after)}",
            expected="(3H,) without and (2, 3H) with reset_after",
            hint=f"--set model.layers.{spec.index}.reset_after={_yaml(file_reset_after)}",
        )


def _yaml(value: Any) -> str:
    return str(value).lower()


def _order_evidence(
    candidates: Sequence[UnplacedLayer], numbered: bool, specs: Sequence[LayerSpec] | None = None
) -> str:
    """Evidence for an order, in words."""
    try:
        single = len(_first_chains(_Search(candidates, False, specs))) == 1
    except WeightsError:  # too many orders without the numbers
        single = False
    return "the only one that fits" if single or not numbered else "that of numbers in the names"


def _order_note(chain: Sequence[UnplacedLayer], why: str | None) -> list[str]:
    """Note on the order, because the file does not state that the layers run in a chain."""
    weighted = [
        candidate
        for candidate in chain
        if candidate.kind or candidate.layer.kind not in ORDER_INDEPENDENT
    ]
    if why is None or len(weighted) < 2:
        return []
    return [f"the layers are assumed to run one after the other, each once: {_names(weighted)}; "
            f"the order is {why}"]  # fmt: skip


def _first_chains(search: _Search) -> list[list[UnplacedLayer]]:
    return list(islice(search.chains(), 3))


@dataclass
class _Search:
    """Search for orders in which each layer fits the one before it, or the layer of a config."""

    candidates: Sequence[UnplacedLayer]
    numbered: bool
    specs: Sequence[LayerSpec] | None = None
    trials: int = MAX_TRIALS
    groups: dict[int, list[UnplacedLayer]] = field(init=False)

    def __post_init__(self) -> None:
        by_group = sorted(self.candidates, key=lambda candidate: candidate.group)
        self.groups = {
            n: list(g) for n, g in groupby(by_group, key=lambda candidate: candidate.group)
        }
        if max(map(len, self.groups.values()), default=0) > MAX_UNPLACED_LAYERS:
            raise _too_many_orders(self.candidates, "too many layers to try their orders")

    def chains(self) -> Iterator[list[UnplacedLayer]]:
        """Search depth first; groups of the file's list keep their order."""
        groups = [self.groups[n] for n in sorted(self.groups)]
        starts = list(accumulate(map(len, groups), initial=0))
        pending: list[list[UnplacedLayer]] = [[]]
        while pending:
            chain = pending.pop()
            self.trials -= 1
            if self.trials < 0:
                raise _too_many_orders(self.candidates, "too many orders to try")
            if len(chain) == len(self.candidates):
                if self.specs is not None or _open_flatten(chain) is None:
                    yield chain
                continue
            k = bisect(starts, len(chain)) - 1
            placed = chain[starts[k] :]
            rest = [candidate for candidate in groups[k] if not any(candidate is p for p in placed)]
            pending += [[*chain, p] for p in reversed(rest) if self._may_follow(chain, p, rest)]

    def _may_follow(
        self,
        chain: Sequence[UnplacedLayer],
        candidate: UnplacedLayer,
        rest: Sequence[UnplacedLayer],
    ) -> bool:
        if any(self.names_tell_order(other, candidate) for other in rest):
            return False
        if self.specs is not None:
            return candidate.fits(self.specs[len(chain)])
        return _can_read(chain, candidate)

    def names_tell_order(self, first: UnplacedLayer, second: UnplacedLayer) -> bool:
        """Whether numbers in the names put one layer before the other."""
        return self.numbered and _counts_up(first, second)


def _can_read(chain: Sequence[UnplacedLayer], candidate: UnplacedLayer) -> bool:
    """Whether a layer can read the output of a chain."""
    width = next((p.output_size for p in reversed(chain) if p.output_size is not None), None)
    flat = any(p.layer.kind == "Flatten" for p in chain)
    if candidate.layer.kind == "Flatten":
        return width is not None and not flat
    if candidate.input_size is None or width is None:
        return True
    if candidate.input_size == width and (candidate.kind == "dense" or not flat):
        return True
    return (
        _open_flatten(chain) is not None
        and candidate.kind == "dense"
        and candidate.input_size % width == 0
    )


def _open_flatten(chain: Sequence[UnplacedLayer]) -> UnplacedLayer | None:
    """Flatten that no layer with weights follows yet; None if there is none."""
    for candidate in reversed(chain):
        if candidate.kind:
            return None
        if candidate.layer.kind == "Flatten":
            return candidate
    return None


def _counts_up(first: UnplacedLayer, second: UnplacedLayer) -> bool:
    # The first difference of the paths is a lower, or missing, number: lstm, lstm_1.
    for one, other in zip(first.path.split("/"), second.path.split("/"), strict=False):
        if one != other:
            (stem, number), (other_stem, other_number) = _split_number(one), _split_number(other)
            return stem == other_stem and number < other_number
    return False


def _split_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)_(\d{1,9})", name, re.DOTALL)
    return (match[1], int(match[2])) if match else (name, 0)


def _names(chain: Sequence[UnplacedLayer]) -> str:
    names = [shortened(candidate.path) for candidate in chain]
    return " -> ".join(names if len(names) < 9 else [*names[:4], "...", *names[-4:]])


def _ambiguous(
    candidates: Sequence[UnplacedLayer],
    chains: Sequence[Sequence[UnplacedLayer]],
    numbers: NameNumbers,
) -> WeightsError:
    if not chains:
        return _refused(f"no order fits: {_listing(candidates)}", SAVE_MODEL_HINT)
    # A config separates layers by kind and size, and equal ones by their numbers.
    tells_order = _Search(candidates, numbers != NameNumbers.NO_ORDER).names_tell_order
    alike = [
        (a, b)
        for a, b in combinations([candidate for candidate in candidates if candidate.kind], 2)
        if a.size == b.size
        and a.group == b.group
        and not tells_order(a, b)
        and not tells_order(b, a)
    ]
    found = "several fit: " + "; ".join(_names(chain) for chain in chains[:2])
    return _refused(found, SAVE_MODEL_HINT if alike else ORDER_HINT)


def _too_many_orders(candidates: Sequence[UnplacedLayer], why: str) -> WeightsError:
    return _refused(f"{why}: {_listing(candidates)}", ORDER_HINT)


def _listing(candidates: Sequence[UnplacedLayer]) -> str:
    return ", ".join(shortened(candidate.path) for candidate in candidates[:20])


def _refused(problem: str, hint: str) -> WeightsError:
    return WeightsError(
        "the file does not state the order of its layers",
        expected="one order in which each layer fits the output of the layer before it",
        found=problem,
        hint=hint,
    )


def _misfit(candidates: Sequence[UnplacedLayer], specs: Sequence[LayerSpec]) -> _MisfitError:
    def sized(kind: str, directions: int, input_size: int | None, output_size: int | None) -> str:
        return f"{'bidirectional ' * (directions - 1)}{kind} {input_size} -> {output_size}"

    config = [
        sized(s.kind, getattr(s, "directions", 1), s.input_size, s.output_size) for s in specs
    ]
    file = [
        f"{shortened(p.path)} ({sized(p.kind, p.directions, p.input_size, p.output_size)})"
        for p in candidates
    ]
    return _MisfitError(
        "the file's layers are not those of the config",
        expected=", ".join(config[:20]),
        found=", ".join(file[:20]),
        hint="list the layers in the config with these kinds and sizes, in the model's order",
    )


class _MisfitError(WeightsError):
    """Config whose layers are not those of the file."""
