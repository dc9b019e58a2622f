"""Order of the modules in a state dict, in which each module fits the one before it.

A state dict lists modules as the model registered them, nearly always in the order of the network.
Safetensors and sorted dicts lose this order. Numbers in names then decide, or sizes that allow a
single order, or a config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise

from lstm_cli.engines.types import DenseSpec, FlattenSpec, Layers, LayerSpec
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.torch.modules import LinearModule, Module, RecurrentModule
from lstm_cli.formats.torch.tensors import printable

MAX_SEARCH_STEPS = 20_000
"""Number of search steps; many modules of equal size would take forever."""
MAX_ORDERS = 50
MAX_MODULES = 100
"""Number of modules up to which orders are searched; more must be stored in order."""


@dataclass(frozen=True)
class ModuleOrder:
    """Modules in the order of the network.

    Attributes
    ----------
    steps
        Number of steps T, if a Linear reads T times the features before it.
    flatten
        Index of that Linear.
    note
        Evidence for the order; None if the stored order is the only one.
    """

    modules: tuple[Module, ...]
    steps: int | None = None
    flatten: int | None = None
    note: str | None = None


def find_module_order(
    modules: Sequence[Module], stored: bool, source: str, layers: Layers | None = None
) -> ModuleOrder:
    """Find the order of the modules.

    Parameters
    ----------
    stored
        Whether the order of `modules` is that of the model.
    layers
        Layers of a config, which decide if the modules match them.

    Raises
    ------
    WeightsError
        No order fits, or several orders fit.
    """
    reason = "the stored order does not fit" if stored else "the file keeps no order"
    pairs = combinations(modules, 2) if len(modules) <= MAX_MODULES else pairwise(modules)
    if stored and any(is_numbered_before(later.name, module.name) for module, later in pairs):
        stored, reason = False, "numbers in the names contradict the stored order"
    chosen = None if layers is None else _order_by_config(modules, stored, source, layers)
    if chosen is not None:
        return chosen
    if stored or len(modules) == 1:
        for flat in (False, True):
            order = _checked_order(modules, flat)
            if order is not None:
                return _stored_order(order)
    if len(modules) <= MAX_MODULES:
        plain, whole = _Search(modules, flat=False), _Search(modules, flat=True)
        orders, complete = plain.orders(), plain.complete
        if not orders or (not stored and isinstance(orders[0].modules[0], LinearModule)):
            # A Linear that seems to come first may also read all steps at the end.
            orders += [one for one in whole.orders() if not orders or _flattens_last(one)]
            complete = complete and whole.complete
        if orders:
            return _decided_order(orders, complete, modules, stored, source, reason)
    raise _sizes_do_not_fit(modules, source)


def _flattens_last(order: ModuleOrder) -> bool:
    return order.flatten is not None and _ends_in_linears(order)


def _order_by_config(
    modules: Sequence[Module], stored: bool, source: str, layers: Layers
) -> ModuleOrder | None:
    """Order in which the modules match the layers of a config; None if there is none."""
    sizes = [_layer_size(spec) for spec in layers if spec.parameters()]
    if len(modules) > MAX_MODULES or len(sizes) != sum(len(_module_sizes(m)) for m in modules):
        return None
    flat = any(isinstance(spec, FlattenSpec) for spec in layers)
    search = _Search(modules, flat, sizes)
    orders = search.orders()
    as_listed = next((one for one in orders if one.modules == tuple(modules)), None)
    if stored and as_listed is not None:
        note = f"the file's order is used, though others fit the config: {_chain_text(modules)}"
        return replace(as_listed, note=note) if len(orders) > 1 else as_listed
    if len(orders) > 1 or not search.complete:
        pairs = [(a, b) for a, b in zip(*(o.modules for o in orders[:2]), strict=True) if a != b]
        names = " and ".join(printable(module.name) for module in pairs[0]) if pairs else "several"
        raise WeightsError(
            f"{names} are alike: no name tells which runs first",
            expected="names or sizes that assign each module to one layer of the config",
            where=source,
            hint="a .pt file of torch.save keeps the modules' order",
        )
    return orders[0] if orders else None


ModuleSize = tuple[str, int, int, int]
"""Kind, input size, output size, number of directions."""


def _layer_size(spec: LayerSpec) -> ModuleSize:
    kind = "linear" if isinstance(spec, DenseSpec) else spec.kind
    return kind, spec.input_size, spec.output_size, getattr(spec, "directions", 1)


def _module_sizes(module: Module) -> list[ModuleSize]:
    if isinstance(module, LinearModule):
        return [("linear", module.input_size, module.output_size, 1)]
    return [
        (layer[0].kind, layer[0].input_size, len(layer) * layer[0].output_size, len(layer))
        for layer in module.layers
    ]


def _stored_order(order: ModuleOrder) -> ModuleOrder:
    """Stored order, with a note if other orders fit as well."""
    modules = order.modules
    others = []
    if 1 < len(modules) <= MAX_MODULES:
        orders = _Search(modules, flat=order.steps is not None).orders()
        others = [one for one in orders if one.modules != modules]
    if not others:
        return order
    note = (
        f"the modules run in the order of the file: {_chain_text(modules)}; their "
        f"sizes also fit as {_other_order(order, others)}"
    )
    return ModuleOrder(modules, order.steps, order.flatten, note)


def _other_order(order: ModuleOrder, others: Sequence[ModuleOrder]) -> str:
    """Another order in words, with the command that selects it, unless all sizes are equal."""
    apart = [one for one in others if _all_sizes(one) != _all_sizes(order)]
    if not apart:
        return _chain_text(others[0].modules)
    return (
        f"{_chain_text(apart[0].modules)}, which a config selects: lstm-cli run CONFIG DATA "
        "--weights FILE"
    )


def _all_sizes(order: ModuleOrder) -> tuple[ModuleSize, ...]:
    return tuple(size for module in order.modules for size in _module_sizes(module))


def _checked_order(modules: Sequence[Module], flat: bool) -> ModuleOrder | None:
    """The modules in exactly this order, if each fits the output of the module before it."""
    steps = flatten = None
    for k, (before, module) in enumerate(pairwise(modules), 1):
        if flatten is not None and isinstance(module, RecurrentModule):
            return None  # no steps are left
        if module.input_size == before.output_size:
            continue
        ratio, rest = divmod(module.input_size, before.output_size)
        if not flat or rest or flatten is not None or isinstance(module, RecurrentModule):
            return None
        # Such a Linear is more likely a second head of an earlier module.
        if any(module.input_size == other.output_size for other in modules[: k - 1]):
            return None
        steps, flatten = ratio, k
    return ModuleOrder(tuple(modules), steps, flatten)


class _Search:
    """Search for orders in which sizes fit and numbers in the names ascend."""

    def __init__(
        self, modules: Sequence[Module], flat: bool, wanted: Sequence[ModuleSize] | None = None
    ) -> None:
        self._modules, self._flat, self._config_sizes = modules, flat, wanted
        self._after = [
            [k for k, other in enumerate(modules) if is_numbered_before(other.name, module.name)]
            for module in modules
        ]
        self._counts = [len(_module_sizes(module)) for module in modules]
        self._steps = 0

    @property
    def complete(self) -> bool:
        """Whether the search has tried all orders."""
        return self._steps < MAX_SEARCH_STEPS

    def orders(self) -> list[ModuleOrder]:
        """First orders that fit, at most `MAX_ORDERS`."""
        tried = ([self._modules[k] for k in places] for places in self._places())
        fitting = (order for one in tried if (order := _checked_order(one, self._flat)) is not None)
        return list(islice(fitting, MAX_ORDERS))

    def _places(self) -> Iterator[list[int]]:
        """Indices of the modules, searched depth first, earlier modules first."""
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
        if self._config_sizes is not None:
            done, sizes = sum(self._counts[j] for j in chosen), _module_sizes(self._modules[k])
            return list(self._config_sizes[done : done + len(sizes)]) == sizes
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
    """Whether the first difference of the names is a lower, or missing, number in `first`."""
    one, other = natural_sort_key(first), natural_sort_key(second)
    for k, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return bool(k % 2) and a < b
    return len(one) < len(other)


def _order_hint(orders: Sequence[ModuleOrder], complete: bool) -> str:
    """Hint on the order; a config helps if no two orders have the same sizes."""
    if len(set(map(_all_sizes, orders))) < len(orders) or not complete:
        return "a .pt file of torch.save keeps the modules' order"
    return (
        "a .pt file of torch.save keeps the modules' order; or list the layers in a config: "
        "lstm-cli run CONFIG DATA --weights FILE, lstm-cli convert FILE DST --config CONFIG"
    )


def _decided_order(
    orders: list[ModuleOrder],
    complete: bool,
    modules: Sequence[Module],
    stored: bool,
    source: str,
    reason: str,
) -> ModuleOrder:
    """Only order, or the only one whose Linears come last in the order of their numbers."""
    order = (
        orders[0]
        if len(orders) == 1 and complete
        else _linears_last_order(orders, complete, modules)
    )
    if order is None:
        raise WeightsError(
            f"the sizes of {len(modules)} modules fit in more than one order",
            expected="sizes, or numbers in the names, that fit one order only",
            found="; ".join(_chain_text(one.modules) for one in orders[:3]),
            where=source,
            hint=_order_hint(orders, complete),
        )
    first = modules[0]
    if (
        stored
        and isinstance(first, LinearModule)
        and first.bias is None
        and first != order.modules[0]
    ):
        # The first Linear is more likely an embedding than a head.
        raise _sizes_do_not_fit(modules, source)
    others = [one for one in orders if one is not order]
    also = f", and also as {_other_order(order, others)}" if others else ""
    note = (
        f"{reason}: the modules run as {_chain_text(order.modules)}, in which their sizes fit{also}"
    )
    return ModuleOrder(order.modules, order.steps, order.flatten, note)


def _linears_last_order(
    orders: list[ModuleOrder], complete: bool, modules: Sequence[Module]
) -> ModuleOrder | None:
    names = [module.name for module in modules if isinstance(module, LinearModule)]
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    if not complete or len({one.flatten is None for one in orders}) > 1:
        return None
    if not all(is_numbered_before(a, b) or is_numbered_before(b, a) for a, b in pairs):
        return None
    taken = [order for order in orders if _ends_in_linears(order)]
    return taken[0] if len(taken) == 1 else None


def _ends_in_linears(order: ModuleOrder) -> bool:
    kinds = [isinstance(module, LinearModule) for module in order.modules]
    return kinds == sorted(kinds)


def _chain_text(modules: Sequence[Module]) -> str:
    names = [printable(module.name or "(the whole model)") for module in modules]
    return " -> ".join(names if len(names) < 9 else [*names[:4], "...", *names[-4:]])


def _linear_of_one_direction(modules: Sequence[Module]) -> Module | None:
    """Linear whose input has the size of one direction of a bidirectional module."""
    halves = {
        m.output_size // 2
        for m in modules
        if isinstance(m, RecurrentModule) and len(m.layers[-1]) == 2
    }
    linears = (m for m in modules if isinstance(m, LinearModule))
    return next((m for m in linears if m.input_size in halves), None)


def _sizes_do_not_fit(modules: Sequence[Module], source: str) -> WeightsError:
    """Error for sizes that fit in no order, with those of each module."""
    sizes = [
        f"{printable(m.name or '(the whole model)')} ({m.kind}) reads "
        f"{counted(m.input_size, 'feature')} and gives {m.output_size}"
        for m in modules[:12]
    ]
    without_bias = [m.name for m in modules if isinstance(m, LinearModule) and m.bias is None]
    hint = "--prefix NAME reads only the tensors whose names start with NAME"
    if without_bias:
        name = printable(without_bias[0])
        hint = f"{name} has no bias: if it is an nn.Embedding, lstm-cli has no layer for it"
    linear = _linear_of_one_direction(modules)
    if linear is not None:
        hint = (
            f"{printable(linear.name)} may read one direction (h_n[-1], h_n[-2]) or the sum of "
            "both. A state dict does not state which; a model of torch.onnx.export does"
        )
    return WeightsError(
        "the modules' sizes do not fit one after the other",
        expected="modules that each fit the output of the module before",
        found="; ".join(sizes),
        where=source,
        hint=hint,
    )
