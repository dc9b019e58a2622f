"""Recognition of modules in a state dict, and of tensors that belong to no layer.

State dicts also hold losses, metrics and copies of the network. Several tools store a weight as the
parts from which they compute it. Names and shapes show the kind, and each error has a hint for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lstm_cli.errors import Problem, WeightsError
from lstm_cli.formats.torch.module_order import find_module_order
from lstm_cli.formats.torch.modules import (
    LinearModule,
    Module,
    ModuleTensors,
    StateTensors,
    UnfitModuleError,
    dtype_problems,
    group_tensors,
    module_problem,
    name_and_shape,
    read_recurrent_module,
)
from lstm_cli.formats.torch.tensors import StateTensor, list_names, printable

_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|wte|wpe|tok(en)?s?)([._]|$)", re.IGNORECASE)
_RANKS = {1: "nn.LayerNorm, nn.RMSNorm or nn.PReLU", 3: "nn.Conv1d", 4: "nn.Conv2d"}
_PARTS = {
    "running_mean": "nn.BatchNorm",
    "running_var": "nn.BatchNorm",
    "in_proj_weight": "nn.MultiheadAttention",
    "in_proj_bias": "nn.MultiheadAttention",
}
"""Names of tensors that only one kind of module has."""
MAX_PROBLEMS = 20

_Excluded = tuple[Problem, str | None]
"""Problem of a module or tensor, and a pattern of names that leaves it out."""


def recognize_modules(
    tensors: StateTensors, source: str, stored: bool = True
) -> tuple[list[Module], tuple[str, ...]]:
    """Modules in stored order, and notes on tensors that are left out.

    Parameters
    ----------
    source
        Path of the file, for errors.
    stored
        Whether the stored order is that of the model.

    Raises
    ------
    WeightsError
        Modules or tensors have no layer in lstm-cli; the error names each of them.
    """
    all_names = list(tensors)
    form_problems, rewritten_modules = find_weight_forms(tensors)
    problems: list[_Excluded] = [(problem, None) for problem in form_problems]
    if form_problems:
        tensors = {n: t for n, t in tensors.items() if not _is_below(n, rewritten_modules)}
    groups, strays, integers = group_tensors(tensors)
    modules: list[Module] = []
    copies = find_copies(groups)
    for group in groups:
        module, excluded = _read_group(group, copies.get(group.name), strays)
        modules += [] if module is None else [module]
        problems += excluded
    problems += [_stray_problem(tensor) for tensor in strays]
    problems += [
        (Problem(f"the name {printable(n)} cannot be printed"), None)
        for n in all_names
        if not n.isprintable()
    ]
    if problems or not modules:
        raise _refusal(problems, modules, source, stored)
    notes = [
        f"{printable(module.name)} is read as a Linear, though by its name it is of a loss: "
        f"--ignore '{module.name}.*' leaves it out"
        for module in modules
        if is_in_loss(module.name)
    ]
    names = [tensor.name for tensor in integers]
    if names:
        notes.insert(0, f"left out, as they are counts: {list_names(names)}")
    return modules, tuple(notes)


def _read_group(
    group: ModuleTensors, copy: NonLayer | None, strays: Sequence[StateTensor]
) -> tuple[Module | None, list[_Excluded]]:
    """Module of a group of tensors, or its problems with patterns that leave it out."""
    non_layer = copy or (None if group.recurrent else _non_layer_module(group))
    if non_layer is not None:
        shapes = ", ".join(name_and_shape(tensor) for tensor in group.tensors())
        return None, [(module_problem(group, non_layer.kind, shapes), non_layer.pattern)]
    if dtype_errors := dtype_problems(group):
        return None, [(problem, None) for problem in dtype_errors]
    try:
        module = read_recurrent_module(group) if group.recurrent else _linear(group, strays)
    except UnfitModuleError as error:
        return None, [(error.problem, None)]
    return module, []


def _refusal(
    problems: list[tuple[Problem, str | None]], modules: Sequence[Module], source: str, stored: bool
) -> WeightsError:
    """Error with all problems. One hint has the option that leaves out all non-layers."""
    if not problems:
        return WeightsError(
            "there are no recurrent or linear weights",
            where=source,
            hint="torch.save(model.state_dict(), path) writes the weights of all modules",
        )
    patterns = list(dict.fromkeys(pattern for _, pattern in problems if pattern))
    hint: str | None = None
    if not patterns or any(pattern is None for _, pattern in problems):
        hint = _only_hint(modules, stored)
    elif len(patterns) < MAX_PROBLEMS and all(map(_is_pattern, patterns)):
        hint = f"--ignore '{','.join(patterns)}' leaves out what no output depends on"
    return WeightsError(
        [
            replace(problem, where=(source,), hint=problem.hint or hint)
            for problem, _ in problems[:MAX_PROBLEMS]
        ]
    )


def _only_hint(modules: Sequence[Module], stored: bool) -> str | None:
    """Hint to select the supported modules, if they are a network by themselves."""
    try:
        modules = find_module_order(modules, stored, "").modules
    except (WeightsError, IndexError):
        return None
    patterns = [f"{module.name}.*" for module in modules]
    names = [module.name for module in modules]
    if not 0 < len(names) <= 8 or not all(name and _is_pattern(name) for name in names):
        return None
    return (
        f"--only '{','.join(patterns)}' reads these layers alone; DATA must then hold the outputs "
        "of the layers before them"
    )


def _is_pattern(name: str) -> bool:
    # In quotes, such a name matches only itself.
    return re.fullmatch(r"[\w.* -]+", name) is not None


def _linear(group: ModuleTensors, strays: Sequence[StateTensor]) -> LinearModule:
    parts = group.parts[0, False]
    weight, bias = parts.get("weight"), parts.get("bias")
    if weight is None:
        raise UnfitModuleError(group, "has a bias and no weight")
    if len(weight.shape) != 2:
        what = f"has no counterpart in lstm-cli: {_module_kind(group, weight, strays)}"
        raise UnfitModuleError(group, what, name_and_shape(weight))
    if bias is None and _EMBEDDING.search(group.name):
        what = "has no counterpart in lstm-cli: by its name it is nn.Embedding"
        raise UnfitModuleError(group, what, name_and_shape(weight))
    if 0 in weight.shape or (bias is not None and bias.shape != weight.shape[:1]):
        sizes = ", ".join(name_and_shape(t) for t in (weight, bias) if t is not None)
        raise UnfitModuleError(group, "is not an nn.Linear: its shapes do not fit", sizes)
    return LinearModule(group.name, weight, bias)


def _module_kind(group: ModuleTensors, weight: StateTensor, strays: Sequence[StateTensor]) -> str:
    """Kind of a module whose weight is not a matrix."""
    stray_names = {
        tensor.name.rpartition(".")[2]
        for tensor in strays
        if tensor.name.rpartition(".")[0] == group.name
    }
    if "running_mean" in stray_names:
        return "by its running mean it is nn.BatchNorm"
    if not weight.shape:
        return "it is a single number"
    kind = _RANKS.get(len(weight.shape), "of no known kind")
    if len(weight.shape) == 1 and "bias" not in group.parts[0, False]:
        kind = f"{kind}, or the class weights of a loss"
    return f"by its shape it is {kind}"


def _stray_problem(tensor: StateTensor) -> tuple[Problem, str | None]:
    """Problem of a tensor that belongs to no layer, and the pattern that leaves it out, if any."""
    last = tensor.name.rpartition(".")[2]
    non_layer = non_layer_of_name(tensor.name)
    kind = None if non_layer is None else non_layer.kind
    pattern = tensor.name if non_layer is None else non_layer.pattern
    if last in _PARTS:
        kind, pattern = f"it is {_PARTS[last]}'s", ""
    elif kind is None and not tensor.shape:
        kind = "it is a single number"
    what = f"the tensor {printable(tensor.name)} belongs to no layer"
    found = f"{tensor.shape} {tensor.dtype}"
    return Problem(what + (f": {kind}" if kind else ""), found=found), pattern or None


def _non_layer_module(group: ModuleTensors) -> NonLayer | None:
    """Kind of a module without a matrix, if its name shows that it is not part of the network."""
    weight = group.parts[0, False].get("weight")
    if weight is None or len(weight.shape) == 2:
        return None
    non_layer = non_layer_of_name(f"{group.name}.weight")
    return (
        None
        if non_layer is None
        else NonLayer(f"is not a layer: {non_layer.kind}", non_layer.pattern)
    )


def _is_below(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor belongs to one of the modules or to a module in them."""
    of_whole_model = name.startswith(("module.", "parametrizations.")) or "." not in name
    return any(name.startswith(f"{module}.") if module else of_whole_model for module in modules)


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
class NonLayer:
    """Kind of a tensor or module that no output depends on, and a pattern that leaves it out."""

    kind: str
    pattern: str


def non_layer_of_name(name: str) -> NonLayer | None:
    """Kind of a tensor whose name shows that it is not part of the network; else None."""
    *modules, last = name.split(".")
    if len(name) > MAX_NAME_LENGTH:
        return None
    for pattern, kind in (
        (_LOSS, "the class weights of a loss" if last == "weight" else "a part of a loss"),
        (_METRIC, "part of a metric, which counts results"),
        (_OPTIMIZER, "part of an optimizer or a schedule"),
        (_COPY, "part of a copy of the network, such as a moving average"),
    ):
        index = next((k for k, part in enumerate(modules) if pattern.fullmatch(part)), None)
        if index is not None:
            if pattern is _LOSS and last == "pos_weight":
                kind = "the weight of positives in a loss"
            return NonLayer(f"by its name it is {kind}", ".".join([*modules[: index + 1], "*"]))
    for pattern, kind in (
        (_LOSS_NAMES, "the class weights of a loss"),
        (_METRIC_NAMES, "part of a metric, which counts results"),
        (_OPTIMIZER_NAMES, "part of an optimizer"),
        (_STATE, "a learned initial state, without which states begin at 0"),
    ):
        if pattern.fullmatch(last):
            return NonLayer(f"by its name it is {kind}", name)
    return None


def is_in_loss(module: str) -> bool:
    """Whether a module is, by its name, a loss or part of one."""
    return any(_LOSS.fullmatch(part) for part in module.split("."))


def find_copies(groups: Sequence[ModuleTensors]) -> dict[str, NonLayer]:
    """Modules that copy another one by name and shapes, such as a moving average."""
    copies: dict[str, NonLayer] = {}
    if len(groups) > MAX_MODULES:
        return copies
    shapes = {group.name: _tensor_shapes(group) for group in groups}
    ends: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        for k in range(max(0, len(parts) - MAX_NAME_PARTS), len(parts)):
            ends.setdefault(".".join(parts[k:]), []).append(name)
    for name, group_shapes in shapes.items():
        parts = name.split(".")
        index = next((k for k, part in enumerate(parts) if _COPY.fullmatch(part)), None)
        if index is None:
            continue
        rest = parts[index + 1 :]
        while rest and rest[0] in ("module", "model", "_orig_mod"):
            rest = rest[1:]
        candidates = ends.get(".".join(rest), []) if rest else [*shapes]
        start = ".".join(parts[: index + 1])
        original = next(
            (
                t
                for t in candidates
                if not f"{t}.".startswith(f"{start}.") and shapes[t] == group_shapes
            ),
            None,
        )
        if original is not None:
            other = printable(original or "(the whole model)")
            kind = f"is, by its name, a copy of {other}: --prefix {start} reads it alone"
            copies[name] = NonLayer(kind, f"{start}.*")
    return copies


def _tensor_shapes(group: ModuleTensors) -> list[tuple[int, ...]]:
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
_OLD_FORMS = {
    frozenset("gv"): ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    frozenset(("orig", "u")): ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    frozenset(("orig", "mask")): ("pruning", "torch.nn.utils.prune.remove"),
}
"""Endings of the parts of a weight: the method that made them, and the function to undo it."""
_RENAME = (
    "give the weights of the state dict s their names back: import re; torch.save({**{k: v for k, "
    "v in s.items() if not k.endswith('_raw')}, **{re.sub(%s): v for k, v in s.items() if "
    "k.endswith('_raw')}}, path)"
)
MAX_MODULES = 500
"""Number of modules up to which copies are searched."""
MAX_NAME_PARTS = 16
MAX_NAME_LENGTH = 500
"""Characters of the longest name that is searched for patterns."""
MAX_FORMS = 20
"""Number of weights in other forms that an error names."""


def find_weight_forms(tensors: Mapping[str, StateTensor]) -> tuple[list[Problem], set[str]]:
    """Problems of weights that are stored in another form, and names of their modules."""
    problems: list[Problem] = []
    modules: set[str] = set()
    reported: set[tuple[str, ...]] = set()
    for name in tensors:
        for pattern, explain in _FORMS if len(name) <= MAX_NAME_LENGTH else ():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            key = (pattern.pattern, match["module"], match.groupdict().get("weight", ""))
            form = None if key in reported else explain(match, tensors)
            if form is not None:
                reported.add(key)
                modules.add(match["module"].rstrip("."))
                what, hint = form
                stored = f"{printable(name)} {tensors[name].shape}"
                problems.append(Problem(what, found=stored, hint=hint))
        if len(problems) == MAX_FORMS:
            break
    return problems, modules


WeightForm = tuple[str, str] | None
"""Form of a weight in words, and a hint; None if the form is not known."""


def _parametrized(match: re.Match[str], tensors: Iterable[str]) -> WeightForm:
    module, weight = match["module"], match["weight"]
    start = f"{module}parametrizations.{weight}."
    kind = "a parametrization"
    if f"{start}original1" in tensors:
        kind = "weight_norm"
    elif any(f"{start}{k}._u" in tensors for k in range(3)):
        kind = "spectral_norm"
    undo = "torch.nn.utils.parametrize.remove_parametrizations"
    return _form_of_parts(module, weight, kind, undo)


def _suffixed(match: re.Match[str], tensors: Iterable[str]) -> WeightForm:
    module, weight = match["module"], match["weight"]
    parts = {part for part in ("g", "v", "u", "orig", "mask", "raw")
             if f"{module}{weight}_{part}" in tensors}  # fmt: skip
    for endings, (kind, undo) in _OLD_FORMS.items():
        if endings <= parts and match["part"] in (*endings, "v"):
            return _form_of_parts(module, weight, kind, undo)
    if match["part"] == "raw" and re.fullmatch(r"(weight|bias)_[ih]h_l\d+(_reverse)?", weight):
        inner = any(name.startswith(f"{module}module.") for name in tensors)
        rule = r"r'([^.]+)_raw$', r'module.\1', k" if inner else "r'_raw$', '', k"
        name = printable(weight)
        what = f"{_module_title(module)} keeps {name} as {name}_raw, as WeightDrop does"
        return what, _RENAME % rule
    return None


def _form_of_parts(module: str, weight: str, kind: str, undo: str) -> WeightForm:
    owner = f"model.get_submodule({module.rstrip('.')!r})" if module else "model"
    before = "import torch.nn.utils.prune; " if "prune" in undo else ""
    return (
        f"{_module_title(module)} keeps {printable(weight)} as the parts of {kind}",
        f"{before}{undo}({owner}, {weight!r}), then torch.save(model.state_dict(), path)",
    )


def _adapted(match: re.Match[str], tensors: Iterable[str]) -> WeightForm:
    base = any(".base_layer." in f".{name}" or name.endswith(".weight") for name in tensors)
    return (
        f"{_module_title(match['module'])} is adapted by LoRA or a method like it"
        + ("" if base else ", and the file holds the adapters alone"),
        "in PyTorch, with the package peft: "
        "torch.save(model.merge_and_unload().state_dict(), path)",
    )


def _quantized(match: re.Match[str], tensors: Iterable[str]) -> WeightForm:
    return (
        f"{_module_title(match['module'])} is quantized",
        "save the state dict of the model before it is quantized",
    )


def _module_title(module: str) -> str:
    return f"the module {printable(module.rstrip('.') or '(the whole model)')}"


_FORMS = (
    (_PARAMETRIZED, _parametrized),
    (_SUFFIXED, _suffixed),
    (_ADAPTED, _adapted),
    (_QUANTIZED, _quantized),
)
