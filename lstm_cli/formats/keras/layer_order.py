"""Order of layers whose file has no description: what lists and names tell, and what fits.

Three things tell an order: the file's own list of layers, numbers in the names of layers that a
list holds, and the layers of a config. Sizes tell it only where they allow a single one. Where the
bytes stand in the file tells nothing: a copy, or a tool, may put them anywhere.
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
from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.architecture import KerasLayer, layer_title
from lstm_cli.formats.keras.options import LayerOptions, printable_name

MAX_TRIALS = 20_000
MAX_UNPLACED_LAYERS = 100
"""Layers whose order is looked for."""
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
"""Layers whose place does not matter."""
SAVE_MODEL_HINT = (
    "save the whole model, a Sequential or Functional one, which says it: model.save('model.keras')"
)
ORDER_HINT = (
    f"{SAVE_MODEL_HINT}; or list its layers in a config: lstm-cli run CONFIG DATA --weights FILE, "
    "lstm-cli convert FILE DST --config CONFIG"
)


class NameNumbers(Enum):
    """Meaning of numbers in the names of one class's layers: ``lstm``, ``lstm_1``."""

    ORDER = "the order"
    UNKNOWN = "the order, unless the model is of the user's own class"
    NO_ORDER = "in which order the user's own code made them"


@dataclass(frozen=True)
class UnplacedLayer:
    """A layer without its place in the chain.

    Attributes
    ----------
    path
        Where it is in the file, or the name that its variables begin with.
    reads, gives
        Features; None where it gives what it reads.
    kind
        ``lstm``, ``gru``, ``rnn`` or ``dense``; empty for a layer without weights.
    directions
        Passes over the steps: 1 or 2.
    group
        Place in the file's own list of layers; 0 where there is none.
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
        """Kind, directions, and features read and given."""
        return self.kind, self.directions, self.input_size, self.output_size

    def fits(self, spec: LayerSpec) -> bool:
        """Whether the config's layer is of this kind and these sizes."""
        directions = spec.directions if isinstance(spec, RecurrentSpec) else 1
        return self.size == (spec.kind, directions, spec.input_size, spec.output_size)


def order_layers(
    pieces: Sequence[UnplacedLayer], *, numbers: NameNumbers, layers: Layers | None = None
) -> tuple[list[KerasLayer], list[str]]:
    """The layers, input to output, and what was assumed.

    Parameters
    ----------
    numbers
        What tells nothing is passed over; what is unknown counts beside a config only.
    layers
        Layers of a config, which the file's are to be.

    Raises
    ------
    WeightsError
        No order fits, or several do.
    """
    if layers is not None:
        try:
            return _as_config(pieces, numbers != NameNumbers.NO_ORDER, layers)
        except _MisfitError as misfit:  # Where the file itself tells an order, layers are compared.
            try:
                return order_layers(pieces, numbers=numbers)
            except WeightsError:
                raise misfit from None
    groups = {piece.group for piece in pieces}
    if len(groups) == len(pieces):
        chain = sorted(pieces, key=lambda piece: piece.group)
        listed = "that of the file's own list" if len(chain) > 1 else None
        return [piece.layer for piece in chain], _taken(chain, listed)
    aside = [p for p in pieces if p.layer.kind in ORDER_INDEPENDENT and len(groups) == 1]
    rest = [piece for piece in pieces if piece not in aside]
    numbered = numbers == NameNumbers.ORDER
    chains = _few(_Search(rest, numbered))
    if len(chains) != 1:
        raise _ambiguous(rest, chains, numbers)
    left_out = [f"{p.layer.title} is left out: it acts in training only" for p in aside
                if p.layer.kind not in ("InputLayer", "Masking")]  # fmt: skip
    masks = [piece.layer for piece in aside if piece.layer.kind == "Masking"]
    chain = chains[0]
    return masks + [p.layer for p in chain], _taken(chain, _why(rest, numbered)) + left_out


def _as_config(
    pieces: Sequence[UnplacedLayer], numbered: bool, layers: Layers
) -> tuple[list[KerasLayer], list[str]]:
    """Layers in the order of a config's, each of the same kind and sizes."""
    wanted = [spec for spec in layers if spec.parameters()]
    weighted = [piece for piece in pieces if piece.kind]
    if len(weighted) != len(wanted):
        raise _misfit(weighted, wanted)
    chains = _few(_Search(weighted, numbered, wanted))
    if not chains:
        raise _misfit(weighted, wanted)
    if len(chains) > 1:
        pairs = zip(chains[0], chains[1], strict=True)
        one, other = next((a, b) for a, b in pairs if a.path != b.path)
        raise WeightsError(
            f"{printable_name(one.path)} and {printable_name(other.path)} are alike: no name tells which runs first",
            expected="names or sizes that tell which layer of the config each is",
            hint=SAVE_MODEL_HINT,
        )
    found, left = [], iter(chains[0])
    for spec in layers:
        if spec.parameters():
            piece = next(left)
            _check_reset(piece, spec)
            found.append(piece.layer)
        elif isinstance(spec, FlattenSpec):
            found.append(
                KerasLayer(
                    "Flatten",
                    "flatten",
                    LayerOptions(layer_title("Flatten", "flatten"), {}),
                    "",
                    "",
                )
            )
    return found, _taken(chains[0], f"that of the config, {_why(weighted, numbered, wanted)}")


def _check_reset(piece: UnplacedLayer, spec: LayerSpec) -> None:
    """Refuse a config of the other GRU than the one that the biases are of."""
    wanted = isinstance(spec, RecurrentSpec) and getattr(spec.cells[0], "reset_after", None)
    inner = piece.layer.options.get("layer") or {}
    values = inner.get("config", piece.layer.options.values)
    is_known = values.get("reset_after")
    if spec.kind == "gru" and is_known not in (None, wanted):
        raise WeightsError(
            f"{printable_name(piece.path)} has the biases of a GRU with reset_after: {_yaml(is_known)}, layer "
            f"{spec.index} of the config has reset_after: {_yaml(wanted)}",
            expected="(3H,) without and (2, 3H) with reset_after",
            hint=f"--set model.layers.{spec.index}.reset_after={_yaml(is_known)}",
        )


def _yaml(value: Any) -> str:
    return str(value).lower()


def _why(
    pieces: Sequence[UnplacedLayer], numbered: bool, wanted: Sequence[LayerSpec] | None = None
) -> str:
    """Evidence of an order that was found."""
    try:
        single = len(_few(_Search(pieces, False, wanted))) == 1
    except WeightsError:  # too many orders without the numbers
        single = False
    return "the only one that fits" if single or not numbered else "that of numbers in the names"


def _taken(chain: Sequence[UnplacedLayer], why: str | None) -> list[str]:
    """A note of the order; whatever its source, the file does not say that layers run in a row."""
    weighted = [piece for piece in chain if piece.kind or piece.layer.kind not in ORDER_INDEPENDENT]
    if why is None or len(weighted) < 2:
        return []
    return [f"the layers are taken to run one after the other, each once: {_names(weighted)}; "
            f"the order is {why}"]  # fmt: skip


def _few(search: _Search) -> list[list[UnplacedLayer]]:
    return list(islice(search.chains(), 3))


@dataclass
class _Search:
    """Orders in which every layer reads what the one before it gives, or is the config's."""

    pieces: Sequence[UnplacedLayer]
    numbered: bool
    wanted: Sequence[LayerSpec] | None = None
    trials: int = MAX_TRIALS
    groups: dict[int, list[UnplacedLayer]] = field(init=False)

    def __post_init__(self) -> None:
        by_group = sorted(self.pieces, key=lambda piece: piece.group)
        self.groups = {n: list(g) for n, g in groupby(by_group, key=lambda piece: piece.group)}
        if max(map(len, self.groups.values()), default=0) > MAX_UNPLACED_LAYERS:
            raise _unsearched(self.pieces, "too many layers to try their orders")

    def chains(self) -> Iterator[list[UnplacedLayer]]:
        """Depth first; groups of the file's list stay in its order."""
        groups = [self.groups[n] for n in sorted(self.groups)]
        starts = list(accumulate(map(len, groups), initial=0))
        todo: list[list[UnplacedLayer]] = [[]]
        while todo:
            chain = todo.pop()
            self.trials -= 1
            if self.trials < 0:
                raise _unsearched(self.pieces, "too many orders to try")
            if len(chain) == len(self.pieces):
                if self.wanted is not None or _open_flatten(chain) is None:
                    yield chain
                continue
            k = bisect(starts, len(chain)) - 1
            placed = chain[starts[k] :]
            rest = [piece for piece in groups[k] if not any(piece is p for p in placed)]
            todo += [[*chain, p] for p in reversed(rest) if self._may_follow(chain, p, rest)]

    def _may_follow(
        self, chain: Sequence[UnplacedLayer], piece: UnplacedLayer, rest: Sequence[UnplacedLayer]
    ) -> bool:
        if any(self.is_known(other, piece) for other in rest):
            return False
        if self.wanted is not None:
            return piece.fits(self.wanted[len(chain)])
        return _reads(chain, piece)

    def is_known(self, first: UnplacedLayer, second: UnplacedLayer) -> bool:
        """Whether numbers in the names say that one runs before the other."""
        return self.numbered and _counts_up(first, second)


def _reads(chain: Sequence[UnplacedLayer], piece: UnplacedLayer) -> bool:
    """Whether a layer can read what a chain gives."""
    width = next((p.output_size for p in reversed(chain) if p.output_size is not None), None)
    flat = any(p.layer.kind == "Flatten" for p in chain)
    if piece.layer.kind == "Flatten":
        return width is not None and not flat
    if piece.input_size is None or width is None:
        return True
    if piece.input_size == width and (piece.kind == "dense" or not flat):
        return True
    return (
        _open_flatten(chain) is not None and piece.kind == "dense" and piece.input_size % width == 0
    )


def _open_flatten(chain: Sequence[UnplacedLayer]) -> UnplacedLayer | None:
    """A Flatten that no layer with weights follows yet."""
    for piece in reversed(chain):
        if piece.kind:
            return None
        if piece.layer.kind == "Flatten":
            return piece
    return None


def _counts_up(first: UnplacedLayer, second: UnplacedLayer) -> bool:
    """Whether paths part at a number that is lower in the first, or not there: ``lstm, lstm_1``."""
    for one, other in zip(first.path.split("/"), second.path.split("/"), strict=False):
        if one != other:
            (stem, number), (other_stem, other_number) = _counted(one), _counted(other)
            return stem == other_stem and number < other_number
    return False


def _counted(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)_(\d{1,9})", name, re.DOTALL)
    return (match[1], int(match[2])) if match else (name, 0)


def _names(chain: Sequence[UnplacedLayer]) -> str:
    names = [printable_name(piece.path) for piece in chain]
    return " -> ".join(names if len(names) < 9 else [*names[:4], "...", *names[-4:]])


def _ambiguous(
    pieces: Sequence[UnplacedLayer], chains: Sequence[Sequence[UnplacedLayer]], numbers: NameNumbers
) -> WeightsError:
    if not chains:
        return _refused(f"no order fits: {_listing(pieces)}", SAVE_MODEL_HINT)
    # A config tells layers apart by kind and size, and alike ones by their numbers.
    is_known = _Search(pieces, numbers != NameNumbers.NO_ORDER).is_known
    alike = [
        (a, b)
        for a, b in combinations([piece for piece in pieces if piece.kind], 2)
        if a.size == b.size and a.group == b.group and not is_known(a, b) and not is_known(b, a)
    ]
    found = "several fit: " + "; ".join(_names(chain) for chain in chains[:2])
    return _refused(found, SAVE_MODEL_HINT if alike else ORDER_HINT)


def _unsearched(pieces: Sequence[UnplacedLayer], why: str) -> WeightsError:
    return _refused(f"{why}: {_listing(pieces)}", ORDER_HINT)


def _listing(pieces: Sequence[UnplacedLayer]) -> str:
    return ", ".join(printable_name(piece.path) for piece in pieces[:20])


def _refused(found: str, hint: str) -> WeightsError:
    return WeightsError(
        "the file does not say in which order its layers are",
        expected="one order in which each layer reads what the one before it gives",
        found=found,
        hint=hint,
    )


def _misfit(pieces: Sequence[UnplacedLayer], wanted: Sequence[LayerSpec]) -> _MisfitError:
    def sized(kind: str, directions: int, input_size: int | None, output_size: int | None) -> str:
        return f"{'bidirectional ' * (directions - 1)}{kind} {input_size} -> {output_size}"

    config = [
        sized(s.kind, getattr(s, "directions", 1), s.input_size, s.output_size) for s in wanted
    ]
    file = [
        f"{printable_name(p.path)} ({sized(p.kind, p.directions, p.input_size, p.output_size)})"
        for p in pieces
    ]
    return _MisfitError(
        "the file's layers are not those of the config",
        expected=", ".join(config[:20]),
        found=", ".join(file[:20]),
        hint="list the layers in the config with these kinds and sizes, in the model's order",
    )


class _MisfitError(WeightsError):
    """A config of other layers than the file's."""
