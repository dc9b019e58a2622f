"""In which order the modules run: the one in which each reads what the one before gives.

A state dict lists its modules in the order in which the model registered them, which is nearly
always the order in which they run; safetensors, and a dict that was sorted, lose even that. Numbers
in names tell, and sizes where they allow one order only; a config decides the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise

from lstm_cli.engines.types import DenseSpec, FlattenSpec, Layers, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.torch.modules import LinearModule, Module, RecurrentModule
from lstm_cli.formats.torch.tensors import printable

MAX_SEARCH_STEPS = 20_000
"""Of the search, which would take for ever with many modules of equal size."""
MAX_ORDERS = 50
MAX_MODULES = 100
"""Of which an order is looked for; more must be stored in theirs."""


@dataclass(frozen=True)
class ModuleOrder:
    """Modules as they run.

    Attributes
    ----------
    steps
        T where a Linear reads T times the features before it, all steps side by side.
    flatten
        Index of that Linear.
    note
        How the order was found, where it is not simply the stored one.
    """

    modules: tuple[Module, ...]
    steps: int | None = None
    flatten: int | None = None
    note: str | None = None


def find_module_order(
    modules: Sequence[Module], stored: bool, source: str, layers: Layers | None = None
) -> ModuleOrder:
    """The order in which the modules run.

    Parameters
    ----------
    stored
        Whether the order of `modules` says anything.
    layers
        Layers of a config, which decide where they can.

    Raises
    ------
    WeightsError
        No order fits, or several do.
    """
    why = "the stored order does not fit" if stored else "the file keeps no order"
    pairs = combinations(modules, 2) if len(modules) <= MAX_MODULES else pairwise(modules)
    if stored and any(is_numbered_before(later.name, module.name) for module, later in pairs):
        stored, why = False, "numbers in the names say another order than the stored one"
    chosen = None if layers is None else _as_config(modules, stored, source, layers)
    if chosen is not None:
        return chosen
    if stored or len(modules) == 1:
        for flat in (False, True):
            order = _fit(modules, flat)
            if order is not None:
                return _as_stored(order)
    if len(modules) <= MAX_MODULES:
        plain, whole = _Search(modules, flat=False), _Search(modules, flat=True)
        found, complete = plain.orders(), plain.complete
        if not found or (not stored and isinstance(found[0].modules[0], LinearModule)):
            # Where a Linear seems to run first, it may as well read all steps at the end.
            found += [one for one in whole.orders() if not found or _flattens_last(one)]
            complete = complete and whole.complete
        if found:
            return _decided(found, complete, modules, stored, source, why)
    raise _misfit(modules, source)


def _flattens_last(order: ModuleOrder) -> bool:
    return order.flatten is not None and _ends_in_linears(order)


def _as_config(
    modules: Sequence[Module], stored: bool, source: str, layers: Layers
) -> ModuleOrder | None:
    """The order in which the modules are the config's layers; None where they are in none."""
    wanted = [_sized(spec) for spec in layers if spec.parameters()]
    if len(modules) > MAX_MODULES or len(wanted) != sum(len(_sizes(m)) for m in modules):
        return None
    flat = any(isinstance(spec, FlattenSpec) for spec in layers)
    search = _Search(modules, flat, wanted)
    found = search.orders()
    as_listed = next((one for one in found if one.modules == tuple(modules)), None)
    if stored and as_listed is not None:
        note = f"the file's order is taken, though others fit the config: {_chain(modules)}"
        return replace(as_listed, note=note) if len(found) > 1 else as_listed
    if len(found) > 1 or not search.complete:
        pairs = [(a, b) for a, b in zip(*(o.modules for o in found[:2]), strict=True) if a != b]
        names = " and ".join(printable(module.name) for module in pairs[0]) if pairs else "several"
        raise WeightsError(
            f"{names} are alike: no name tells which runs first",
            expected="names or sizes that tell which layer of the config each is",
            where=source,
            hint="a .pt file of torch.save keeps the modules' order",
        )
    return found[0] if found else None


_Size = tuple[str, int, int, int]
"""Kind, features read, features given, directions."""


def _sized(spec: LayerSpec) -> _Size:
    kind = "linear" if isinstance(spec, DenseSpec) else spec.kind
    return kind, spec.input_size, spec.output_size, getattr(spec, "directions", 1)


def _sizes(module: Module) -> list[_Size]:
    if isinstance(module, LinearModule):
        return [("linear", module.input_size, module.output_size, 1)]
    return [
        (layer[0].kind, layer[0].input_size, len(layer) * layer[0].output_size, len(layer))
        for layer in module.layers
    ]


def _as_stored(order: ModuleOrder) -> ModuleOrder:
    """Say so where the file's order is not the only one that fits and no number tells it."""
    modules = order.modules
    others = []
    if 1 < len(modules) <= MAX_MODULES:
        found = _Search(modules, flat=order.steps is not None).orders()
        others = [one for one in found if one.modules != modules]
    if not others:
        return order
    note = (
        f"the modules run in the order in which the file lists them: {_chain(modules)}; their "
        f"sizes also fit as {_other(order, others)}"
    )
    return ModuleOrder(modules, order.steps, order.flatten, note)


def _other(order: ModuleOrder, others: Sequence[ModuleOrder]) -> str:
    """Another order, and how to say that it is meant: no config tells layers of one size apart."""
    apart = [one for one in others if _all_sizes(one) != _all_sizes(order)]
    if not apart:
        return _chain(others[0].modules)
    return (
        f"{_chain(apart[0].modules)}, which a config of its layers says: lstm-cli run CONFIG DATA "
        "--weights FILE"
    )


def _all_sizes(order: ModuleOrder) -> tuple[_Size, ...]:
    return tuple(size for module in order.modules for size in _sizes(module))


def _fit(modules: Sequence[Module], flat: bool) -> ModuleOrder | None:
    """The modules in this very order, if each reads what the one before gives."""
    steps = flatten = None
    for k, (before, module) in enumerate(pairwise(modules), 1):
        if flatten is not None and isinstance(module, RecurrentModule):
            return None  # no steps are left
        if module.input_size == before.output_size:
            continue
        ratio, rest = divmod(module.input_size, before.output_size)
        if not flat or rest or flatten is not None or isinstance(module, RecurrentModule):
            return None
        # It would rather be a second head of an earlier module than one of all steps of the first.
        if any(module.input_size == other.output_size for other in modules[: k - 1]):
            return None
        steps, flatten = ratio, k
    return ModuleOrder(tuple(modules), steps, flatten)


class _Search:
    """All orders in which the sizes chain and numbers in the names ascend."""

    def __init__(
        self, modules: Sequence[Module], flat: bool, wanted: Sequence[_Size] | None = None
    ) -> None:
        self._modules, self._flat, self._wanted = modules, flat, wanted
        self._after = [
            [k for k, other in enumerate(modules) if is_numbered_before(other.name, module.name)]
            for module in modules
        ]
        self._counts = [len(_sizes(module)) for module in modules]
        self._steps = 0

    @property
    def complete(self) -> bool:
        """Whether all orders were tried."""
        return self._steps < MAX_SEARCH_STEPS

    def orders(self) -> list[ModuleOrder]:
        """At most `MAX_ORDERS` of them."""
        tried = ([self._modules[k] for k in places] for places in self._places())
        fitting = (order for one in tried if (order := _fit(one, self._flat)) is not None)
        return list(islice(fitting, MAX_ORDERS))

    def _places(self) -> Iterator[list[int]]:
        """Depth first, earlier modules first."""
        pending: list[tuple[list[int], list[int]]] = [([], [*range(len(self._modules))])]
        while pending and self.complete:
            chosen, rest = pending.pop()
            if not rest:
                yield chosen
            for k in reversed(rest):
                self._steps += 1
                if not any(j in rest for j in self._after[k]) and self._follows(chosen, k):
                    pending.append(([*chosen, k], [j for j in rest if j != k]))

    def _follows(self, chosen: list[int], k: int) -> bool:
        if self._wanted is not None:
            done, sizes = sum(self._counts[j] for j in chosen), _sizes(self._modules[k])
            return list(self._wanted[done : done + len(sizes)]) == sizes
        if not chosen:
            return True
        before, module = self._modules[chosen[-1]], self._modules[k]
        if before.output_size == module.input_size:
            return True
        linear = self._flat and isinstance(module, LinearModule)
        return linear and module.input_size % before.output_size == 0


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``fc2`` before ``fc10``."""
    parts = re.split(r"([0-9]+)", name)
    for k in range(1, len(parts), 2):
        parts[k] = parts[k].lstrip("0")
    return [(len(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


def is_numbered_before(first: str, second: str) -> bool:
    """Whether the names differ by a number first, and the first one's is lower or not there."""
    one, other = natural_sort_key(first), natural_sort_key(second)
    for k, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return bool(k % 2) and a < b
    return len(one) < len(other)


def _order_hint(found: Sequence[ModuleOrder], complete: bool) -> str:
    """What tells the order: a config too, where no two orders have the same sizes."""
    if len(set(map(_all_sizes, found))) < len(found) or not complete:
        return "a .pt file of torch.save keeps the modules' order"
    return (
        "a .pt file of torch.save keeps the modules' order; or list the layers in a config: "
        "lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG"
    )


def _decided(
    found: list[ModuleOrder],
    complete: bool,
    modules: Sequence[Module],
    stored: bool,
    source: str,
    why: str,
) -> ModuleOrder:
    """The one order, or the one whose Linears come last, where those are in an order too."""
    order = found[0] if len(found) == 1 and complete else _preferred(found, complete, modules)
    if order is None:
        raise WeightsError(
            f"the sizes of {len(modules)} modules fit in more than one order",
            expected="sizes, or numbers in the names, that tell one order",
            found="; ".join(_chain(one.modules) for one in found[:3]),
            where=source,
            hint=_order_hint(found, complete),
        )
    first = modules[0]
    if (
        stored
        and isinstance(first, LinearModule)
        and first.bias is None
        and first != order.modules[0]
    ):
        raise _misfit(modules, source)  # an embedding, more likely than a head that came first
    others = [one for one in found if one is not order]
    also = f", and also as {_other(order, others)}" if others else ""
    note = f"{why}: the modules run as {_chain(order.modules)}, in which their sizes fit{also}"
    return ModuleOrder(order.modules, order.steps, order.flatten, note)


def _preferred(
    found: list[ModuleOrder], complete: bool, modules: Sequence[Module]
) -> ModuleOrder | None:
    names = [module.name for module in modules if isinstance(module, LinearModule)]
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    if not complete or len({one.flatten is None for one in found}) > 1:
        return None
    if not all(is_numbered_before(a, b) or is_numbered_before(b, a) for a, b in pairs):
        return None
    taken = [order for order in found if _ends_in_linears(order)]
    return taken[0] if len(taken) == 1 else None


def _ends_in_linears(order: ModuleOrder) -> bool:
    kinds = [isinstance(module, LinearModule) for module in order.modules]
    return kinds == sorted(kinds)


def _chain(modules: Sequence[Module]) -> str:
    names = [printable(module.name or "(the whole model)") for module in modules]
    return " -> ".join(names if len(names) < 9 else [*names[:4], "...", *names[-4:]])


def _reads_a_half(modules: Sequence[Module]) -> Module | None:
    """A Linear that reads as many features as one direction of a bidirectional module gives."""
    halves = {
        m.output_size // 2
        for m in modules
        if isinstance(m, RecurrentModule) and len(m.layers[-1]) == 2
    }
    linears = (m for m in modules if isinstance(m, LinearModule))
    return next((m for m in linears if m.input_size in halves), None)


def _misfit(modules: Sequence[Module], source: str) -> WeightsError:
    """Sizes that do not chain, in any order: say each module's."""
    sizes = [
        f"{printable(m.name or '(the whole model)')} ({m.kind}) reads {m.input_size} and gives "
        f"{m.output_size}"
        for m in modules[:12]
    ]
    bare = [m.name for m in modules if isinstance(m, LinearModule) and m.bias is None]
    hint = "--prefix takes only the names below a prefix"
    if bare:
        hint = (
            f"{printable(bare[0])} has no bias: if it is an nn.Embedding, there is no layer for it"
        )
    halved = _reads_a_half(modules)
    if halved is not None:
        hint = (
            f"{printable(halved.name)} may read one direction (h_n[-1], h_n[-2]) or the sum of both, "
            "which a state dict does not say: torch.onnx.export writes a model that does"
        )
    return WeightsError(
        "the modules' sizes do not fit one after the other",
        expected="each to read what the one before gives",
        found="; ".join(sizes),
        where=source,
        hint=hint,
    )
