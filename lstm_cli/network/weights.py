"""Do these tensors fit these layers? Every misfit, said in terms of gates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lstm_cli.cells import Parameter
from lstm_cli.engines.types import Array, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import Problem, WeightsError, nearest
from lstm_cli.network.normalization import MEAN, SCALE, STORED

_GATES_OF = {1: "an rnn", 3: "a gru", 4: "an lstm"}


@dataclass(frozen=True)
class Misfit:
    """One tensor that does not fit.

    Attributes
    ----------
    name
        Its stored name.
    layer
        Index of its layer; None for a tensor that belongs to no layer.
    expected, found
        Shapes; None where the tensor is not wanted, or is not there.
    mark
        What is off, short enough for a table: a letter of the formula, ``missing``, ...
    what
        One sentence that names gate, matrix and both shapes.
    """

    name: str
    layer: int | None
    expected: tuple[int, ...] | None
    found: tuple[int, ...] | None
    mark: str
    what: str


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as it is written: ``(100, 12)``, ``(100,)``."""
    return str(tuple(int(size) for size in shape))


def gate_names(parameter: Parameter) -> str:
    """The gates' own names of a stacked tensor: ``W_i, W_f, W_g, W_o``."""
    if not parameter.blocks:
        return parameter.symbol
    return ", ".join(f"{parameter.symbol}_{gate}" for gate in parameter.blocks)


def expected_tensors(layers: Layers) -> dict[str, tuple[LayerSpec, Parameter]]:
    """Stored name of every tensor the layers need to its layer and what it is."""
    return {
        name: (spec, parameter) for spec in layers for name, parameter in spec.parameters().items()
    }


def split_biases(layers: Layers) -> dict[str, tuple[str, str]]:
    """``bias`` of every lstm and rnn direction to the two names it may be stored under."""
    return {
        name: (f"{name}_ih", f"{name}_hh")
        for name, (spec, parameter) in expected_tensors(layers).items()
        if isinstance(spec, RecurrentSpec) and parameter.name == "bias"
    }


def merge_biases(layers: Layers, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors, the two biases of an lstm or rnn added to one."""
    merged = dict(tensors)
    for name, pair in split_biases(layers).items():
        if name not in merged and all(part in merged for part in pair):
            first, second = (merged[part] for part in pair)
            if first.shape == second.shape:
                wide = np.result_type(first, second, np.float32)  # halves may overflow
                merged[name] = first.astype(wide) + second
                for part in pair:
                    del merged[part]
    return merged


def misfits(layers: Layers, shapes: Mapping[str, tuple[int, ...]]) -> list[Misfit]:
    """Every tensor that is missing, not wanted, or of another shape than the layers need."""
    wanted = expected_tensors(layers)
    found: list[Misfit] = []
    for name, (spec, parameter) in wanted.items():
        if name not in shapes:
            found.append(_missing(name, spec, parameter, shapes))
        elif tuple(shapes[name]) != parameter.shape:
            found.append(_misshapen(name, spec, parameter, tuple(shapes[name])))
    found += _normalization_misfits(layers, shapes)
    extra = [name for name in shapes if name not in wanted and name not in STORED]
    return found + [_unwanted(name, shapes[name], wanted) for name in extra]


def _normalization_misfits(
    layers: Layers, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Misfit]:
    """Mean and scale of the inputs: both or none, one number for each feature."""
    D = layers[0].input_size
    for name, other, word in ((MEAN, SCALE, "means"), (SCALE, MEAN, "scales")):
        if name in shapes and tuple(shapes[name]) != (D,):
            shape = tuple(shapes[name])
            what = (
                f"{name}: the {word} of the inputs are {shape_text(shape)}, expected ({D},) = (D,)"
            )
            yield Misfit(name, None, (D,), shape, "D", what)
        elif name not in shapes and other in shapes:
            what = f"{name} is missing: the {word} of the inputs, ({D},), beside {other}"
            yield Misfit(name, None, (D,), None, "missing", what)


def _missing(name: str, spec: LayerSpec, parameter: Parameter, shapes: Iterable[str]) -> Misfit:
    guess = nearest(name, [other for other in shapes if other.startswith(f"layers.{spec.index}.")])
    near = f"; the nearest name there is {guess}" if guess else ""
    what = (
        f"{name} is missing: {parameter.role} {gate_names(parameter)} of layer {spec.index} "
        f"({spec.kind}), {shape_text(parameter.shape)}{near}"
    )
    return Misfit(name, spec.index, parameter.shape, None, "missing", what)


def _unwanted(
    name: str, shape: tuple[int, ...], wanted: Mapping[str, tuple[LayerSpec, Parameter]]
) -> Misfit:
    guess = nearest(name, wanted)
    near = f"; the nearest name it has is {guess}" if guess else ""
    what = f"{name} {shape_text(shape)} belongs to no layer of the config{near}"
    return Misfit(name, None, None, tuple(shape), "not wanted", what)


def _misshapen(name: str, spec: LayerSpec, parameter: Parameter, found: tuple[int, ...]) -> Misfit:
    expected, gates = parameter.shape, len(parameter.blocks)
    mark, why = _difference(parameter, found)
    verb = "together are" if gates > 1 else "is"
    what = f"{name}: {gate_names(parameter)} {verb} {shape_text(found)}, "
    what += f"expected {shape_text(expected)} = {parameter.formula}"
    if gates and set(mark.split(", ")) <= set("HDP") and found[0] % gates == 0:
        # As many gates on both sides: speak of one gate's matrix, as people write it down.
        one, other = (shape_text((size[0] // gates, *size[1:])) for size in (found, expected))
        verb = verb.removeprefix("together ")
        formula = parameter.formula.replace(f"{gates}H", "H")
        what = f"{name}: {gate_names(parameter)} {verb} {one}, expected {other} = {formula}"
    return Misfit(name, spec.index, expected, found, mark, f"{what}{why}")


def _difference(parameter: Parameter, found: tuple[int, ...]) -> tuple[str, str]:
    """What is off, as a short mark and as the end of a sentence."""
    expected, gates = parameter.shape, len(parameter.blocks)
    if len(found) != len(expected):
        return "rank", f": {len(found)} dimensions instead of {len(expected)}"
    if len(found) == 2 and found == expected[::-1]:
        return "transposed", ": it looks transposed, as Keras stores its kernels"
    letters = [part.strip(" ()") for part in parameter.formula.split(",") if part.strip(" ()")]
    wrong = [k for k, sizes in enumerate(zip(found, expected, strict=True)) if sizes[0] != sizes[1]]
    mark = ", ".join(letters[k].lstrip("0123456789") for k in wrong)
    if wrong != [0] or not gates:
        return mark, ""
    H = expected[0] // gates
    if len(found) == 1 and found[0] == 2 * expected[0]:
        return "two biases", ": twice as long, so two biases in one row, as ONNX stores them"
    if found[0] % H == 0 and found[0] // H in _GATES_OF:
        other = found[0] // H
        count = {1: "one gate", 3: "three gates", 4: "four gates"}[other]
        kind = _GATES_OF[other]
        short = "gate missing" if other < gates else "gate too many"
        return short, f": {count} of {H}; this looks like {kind}'s"
    return mark, ""


def fit_weights(
    layers: Layers, tensors: Mapping[str, Array], source: str | None = None
) -> dict[str, Array]:
    """The tensors the layers need, in their order, and the inputs' normalization if there is one.

    Raises
    ------
    WeightsError
        Names every tensor that is missing, superfluous, misshapen, or holds NaN or infinity, and
        a scale of 0.
    """
    merged = merge_biases(layers, {name: np.asarray(value) for name, value in tensors.items()})
    found = misfits(layers, {name: value.shape for name, value in merged.items()})
    where = (source,) if source else ()
    problems = [Problem(misfit.what, where=where) for misfit in found]
    problems += [
        Problem(what, where=where)
        for name, value in merged.items()
        if (what := _not_finite(name, value)) is not None
    ]
    if problems:
        raise WeightsError(problems)
    names = [*expected_tensors(layers), *(name for name in STORED if name in merged)]
    return {name: merged[name] for name in names}


def _not_finite(name: str, value: Array) -> str | None:
    if value.dtype.kind not in "fiu":
        return f"{name} holds {value.dtype} values, not real numbers"
    if name == SCALE and value.size and not value.all():
        return f"{name} is 0 at [{int(np.argmin(value != 0))}]: no value can be divided by it"
    if value.dtype.kind != "f" or np.isfinite(value).all():
        return None
    at = np.unravel_index(int(np.argmin(np.isfinite(value))), value.shape)
    place = ", ".join(str(int(k)) for k in at)
    return f"{name} is not finite: {value[at]} at [{place}]"
