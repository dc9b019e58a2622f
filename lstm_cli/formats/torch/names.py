"""Names in a state dict that are no layer's own: losses, metrics, copies, weights in other forms.

Modules keep more than weights in their state dict, and several tools keep a weight as parts from
which they compute it. Names tell which; each is said for what it is, with what helps today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lstm_cli.errors import Problem
from lstm_cli.formats.torch.modules import Group
from lstm_cli.formats.torch.tensors import StoredTensor, shown

_LOSS = re.compile(
    r"(.*_)?(loss(es)?|loss_?f(n|unc|unction)?|criteri(on|a)s?)(_.*|\d*)|\w*[Ll]oss\d*|"
    r"((train|val|test)_)?(bce|nll|ce|kld?|focal|dice)(_?(with_?)?logits)?\d*|cross_?entropy\d*|objective",
)
_METRIC = re.compile(
    r"((train|val|valid|validation|test|best)_?)?(acc|accuracy|auroc|auc|f1|f1_?score|precision|"
    r"recall|confusion_?matrix|confmat|conf_mat|mse|mae|rmse|r2|r2_?score|kappa|mcc|iou|jaccard|"
    r"specificity|metrics?|perplexity|wer|cer|mean_?metric)(_\w+)?\d*|\w+_metrics?",
    re.IGNORECASE,
)
_COPY = re.compile(
    r"(\w*_)?(ema|shadow|swa|averaged|target|teacher|momentum)(_\w+)?|\w+_(old|best|copy)"
)
_OPTIMIZER = re.compile(r"optim(izer)?s?(_states?)?|(lr_)?schedulers?|grad_scaler")
_LOSS_NAMES = re.compile(r"pos_weight|(class|cls|loss|label)_weights?")
_METRIC_NAMES = re.compile(
    r"confmat|[tf][pn]|correct|total|sum_(squared|abs)_(error|obs)|sum_error|mean_value|measure_sum|"
    r"n_observations|num_obs|preds?"
)
_OPTIMIZER_NAMES = re.compile(r"(max_)?exp_avg(_sq)?|momentum_buffer|square_avg|acc_delta")
_STATE = re.compile(r"[hc]_?(0|init)|(init|initial)_?(h|c|hidden|cell|states?)\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Beside:
    """What a tensor or module is that no output depends on, and the pattern that leaves it out."""

    kind: str
    pattern: str


def beside_the_network(name: str) -> Beside | None:
    """What a tensor of this name is, if it is no part of the network."""
    *modules, last = name.split(".")
    if len(name) > LONGEST:
        return None
    for pattern, kind in (
        (_LOSS, "the class weights of a loss" if last == "weight" else "a part of a loss"),
        (_METRIC, "a metric's, which counts results"),
        (_OPTIMIZER, "an optimizer's or a schedule's"),
        (_COPY, "a copy's of the network, such as a moving average"),
    ):
        place = next((k for k, part in enumerate(modules) if pattern.fullmatch(part)), None)
        if place is not None:
            if pattern is _LOSS and last == "pos_weight":
                kind = "the weight of positives in a loss"
            return Beside(f"by its name it is {kind}", ".".join([*modules[: place + 1], "*"]))
    for pattern, kind in (
        (_LOSS_NAMES, "the class weights of a loss"),
        (_METRIC_NAMES, "a metric's, which counts results"),
        (_OPTIMIZER_NAMES, "an optimizer's"),
        (_STATE, "a learned initial state, without which states begin at 0"),
    ):
        if pattern.fullmatch(last):
            return Beside(f"by its name it is {kind}", name)
    return None


def is_of_loss(module: str) -> bool:
    """Whether a module is, by its name, a loss or in one."""
    return any(_LOSS.fullmatch(part) for part in module.split("."))


def copies(groups: Sequence[Group]) -> dict[str, Beside]:
    """Modules that are, by name and shapes, a copy of another one, such as a moving average."""
    found: dict[str, Beside] = {}
    if len(groups) > MOST_MODULES:
        return found
    shapes = {group.name: _shapes(group) for group in groups}
    ends: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        for k in range(max(0, len(parts) - DEEPEST), len(parts)):
            ends.setdefault(".".join(parts[k:]), []).append(name)
    for name, own in shapes.items():
        parts = name.split(".")
        place = next((k for k, part in enumerate(parts) if _COPY.fullmatch(part)), None)
        if place is None:
            continue
        rest = parts[place + 1 :]
        while rest and rest[0] in ("module", "model", "_orig_mod"):
            rest = rest[1:]
        twins = ends.get(".".join(rest), []) if rest else [*shapes]
        start = ".".join(parts[: place + 1])
        twin = next(
            (t for t in twins if not f"{t}.".startswith(f"{start}.") and shapes[t] == own), None
        )
        if twin is not None:
            other = shown(twin or "(the whole model)")
            kind = f"is, by its name, a copy of {other}: --prefix {start} reads it alone"
            found[name] = Beside(kind, f"{start}.*")
    return found


def _shapes(group: Group) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in group.tensors()]


_PARAMETRIZED = re.compile(
    r"(?P<module>(?:.*\.)?)parametrizations\.(?P<weight>[^.]+)\.(?P<part>original\d*|\d+\..+)"
)
_SUFFIXED = re.compile(r"(?P<module>(?:.*\.)?)(?P<weight>[^.]+)_(?P<part>g|v|u|orig|mask|raw)")
_ADAPTED = re.compile(
    r"(?P<module>.*?)\.?(?<![^.])(lora_\w+|hada_\w+|lokr_\w+|ia3_l|base_layer)(\..*|$)"
)
_QUANTIZED = re.compile(
    r"(?P<module>.*?)\.?(?<![^.])(_packed_params|_all_weight_values|qweight|qzeros|SCB|weight_format|"
    r"weight\.(absmax|quant_map|quant_state|nested_absmax)|scale_weight)(\..*|$)"
)
_OLD = {
    frozenset("gv"): ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    frozenset(("orig", "u")): ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    frozenset(("orig", "mask")): ("pruning", "torch.nn.utils.prune.remove"),
}
"""Endings of the parts of a weight: which function made them, and which one undoes it."""
_RENAME = (
    "give the weights of the state dict s their names back: import re; torch.save({**{k: v for k, "
    "v in s.items() if not k.endswith('_raw')}, **{re.sub(%s): v for k, v in s.items() if "
    "k.endswith('_raw')}}, path)"
)
MOST_MODULES = 500
"""Modules among which copies are looked for."""
DEEPEST = 16
LONGEST = 500
"""Characters of a name that is looked into."""
MOST_FORMS = 20
"""Weights in other forms that are named."""


def rewritten(tensors: Mapping[str, StoredTensor]) -> tuple[list[Problem], set[str]]:
    """Weights that are kept in another form, a problem each, and names of their modules."""
    problems: list[Problem] = []
    modules: set[str] = set()
    seen: set[tuple[str, ...]] = set()
    for name in tensors:
        for pattern, explain in _FORMS if len(name) <= LONGEST else ():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            key = (pattern.pattern, match["module"], match.groupdict().get("weight", ""))
            said = None if key in seen else explain(match, tensors)
            if said is not None:
                seen.add(key)
                modules.add(match["module"].rstrip("."))
                problems.append(_problem(name, tensors, *said))
        if len(problems) == MOST_FORMS:
            break
    return problems, modules


def _problem(name: str, tensors: Mapping[str, StoredTensor], what: str, hint: str) -> Problem:
    return Problem(what, found=f"{shown(name)} {tensors[name].shape}", hint=hint)


Said = tuple[str, str] | None
"""What a form of a weight is, and what to do about it."""


def _parametrized(match: re.Match[str], tensors: Iterable[str]) -> Said:
    module, weight = match["module"], match["weight"]
    start = f"{module}parametrizations.{weight}."
    kind = "a parametrization"
    if f"{start}original1" in tensors:
        kind = "weight_norm"
    elif any(f"{start}{k}._u" in tensors for k in range(3)):
        kind = "spectral_norm"
    undo = "torch.nn.utils.parametrize.remove_parametrizations"
    return _kept(module, weight, kind, undo)


def _suffixed(match: re.Match[str], tensors: Iterable[str]) -> Said:
    module, weight = match["module"], match["weight"]
    parts = {part for part in ("g", "v", "u", "orig", "mask", "raw")
             if f"{module}{weight}_{part}" in tensors}  # fmt: skip
    for endings, (kind, undo) in _OLD.items():
        if endings <= parts and match["part"] in (*endings, "v"):
            return _kept(module, weight, kind, undo)
    if match["part"] == "raw" and re.fullmatch(r"(weight|bias)_[ih]h_l\d+(_reverse)?", weight):
        inner = any(name.startswith(f"{module}module.") for name in tensors)
        rule = r"r'([^.]+)_raw$', r'module.\1', k" if inner else "r'_raw$', '', k"
        what = f"{_named(module)} keeps {shown(weight)} as {shown(weight)}_raw, as WeightDrop does"
        return what, _RENAME % rule
    return None


def _kept(module: str, weight: str, kind: str, undo: str) -> Said:
    owner = f"model.get_submodule({module.rstrip('.')!r})" if module else "model"
    before = "import torch.nn.utils.prune; " if "prune" in undo else ""
    return (
        f"{_named(module)} keeps {shown(weight)} as the parts of {kind}",
        f"{before}{undo}({owner}, {weight!r}), then torch.save(model.state_dict(), path)",
    )


def _adapted(match: re.Match[str], tensors: Iterable[str]) -> Said:
    base = any(".base_layer." in f".{name}" or name.endswith(".weight") for name in tensors)
    return (
        f"{_named(match['module'])} is adapted by LoRA or a method like it"
        + ("" if base else ", and the file holds the adapters alone"),
        "in PyTorch, with the package peft: "
        "torch.save(model.merge_and_unload().state_dict(), path)",
    )


def _quantized(match: re.Match[str], tensors: Iterable[str]) -> Said:
    return (
        f"{_named(match['module'])} is quantized",
        "save the state dict of the model before it is quantized",
    )


def _named(module: str) -> str:
    return f"the module {shown(module.rstrip('.') or '(the whole model)')}"


_FORMS = (
    (_PARAMETRIZED, _parametrized),
    (_SUFFIXED, _suffixed),
    (_ADAPTED, _adapted),
    (_QUANTIZED, _quantized),
)
