"""Comparison of stored tensors with the tensors that layers need; errors name the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lstm_cli.cells import CELLS, Parameter
from lstm_cli.engines.types import Array, Layers, LayerSpec, RecurrentSpec, lacks_bias
from lstm_cli.errors import Problem, WeightsError, counted, nearest
from lstm_cli.network.normalization import MEAN, SCALE, TENSOR_NAMES

_KIND_OF_GATES = {
    len(cell.gates): f"{'an' if kind[0] in 'aefhilmnorsx' else 'a'} {kind}"
    for kind, cell in CELLS.items()
}
"""Kind of layer by number of gates. The article follows the sound of the first letter."""


@dataclass(frozen=True)
class Misfit:
    """One tensor that does not fit.

    Attributes
    ----------
    name
        Stored name of the tensor.
    layer
        Index of its layer. None for a tensor that belongs to no layer.
    expected, found
        Shapes. None where the layers do not need the tensor, or where it is missing.
    mark
        The difference, short enough for a table: a letter of the shape, ``missing``, ...
    what
        One sentence with gate, matrix and both shapes.
    bias
        Value of the layer's option `bias` that would fit. None: the option is not the cause.
    """

    name: str
    layer: int | None
    expected: tuple[int, ...] | None
    found: tuple[int, ...] | None
    mark: str
    what: str
    bias: bool | None = None


MisfitDescriber: TypeAlias = Callable[[Sequence[Misfit]], list[Problem]]
"""Function from all misfits of a network's weights to problems that name their origins."""


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as text: ``(100, 12)``, ``(100,)``."""
    return str(tuple(int(size) for size in shape))


def gate_names(parameter: Parameter) -> str:
    """Names of a stacked tensor's gates: ``W_i, W_f, W_g, W_o``."""
    if not parameter.blocks:
        return parameter.symbol
    return ", ".join(f"{parameter.symbol}_{gate}" for gate in parameter.blocks)


def expected_tensors(layers: Layers) -> dict[str, tuple[LayerSpec, Parameter]]:
    """Layer and description of every tensor that the layers need, by stored name."""
    return {
        name: (spec, parameter) for spec in layers for name, parameter in spec.parameters().items()
    }


def split_biases(layers: Layers) -> dict[str, tuple[str, str]]:
    """The two names under which a file may store each ``bias`` of an lstm or rnn."""
    return {
        name: (f"{name}_ih", f"{name}_hh")
        for name, (spec, parameter) in expected_tensors(layers).items()
        if isinstance(spec, RecurrentSpec) and parameter.name == "bias"
    }


def merge_biases(layers: Layers, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors, with the two biases of an lstm or rnn replaced by their sum ``bias``."""
    merged = dict(tensors)
    for name, pair in split_biases(layers).items():
        if name not in merged and all(part in merged for part in pair):
            first, second = (merged[part] for part in pair)
            if first.shape == second.shape:
                wide = np.result_type(first, second, np.float32)  # float16 biases may overflow
                merged[name] = first.astype(wide) + second
                for part in pair:
                    del merged[part]
    return merged


def misfits(layers: Layers, shapes: Mapping[str, tuple[int, ...]]) -> list[Misfit]:
    """Every tensor that is missing, superfluous, or has another shape than the layers need."""
    needed = expected_tensors(layers)
    result: list[Misfit] = []
    for name, (spec, parameter) in needed.items():
        if name not in shapes:
            result.append(_missing(name, spec, parameter, shapes))
        elif tuple(shapes[name]) != parameter.shape:
            result.append(_misshapen(name, spec, parameter, tuple(shapes[name])))
    result += _normalization_misfits(layers, shapes)
    extra = [name for name in shapes if name not in needed and name not in TENSOR_NAMES]
    unbiased = {f"layers.{spec.index}": spec for spec in layers if lacks_bias(spec)}
    for name in extra:
        owner, _, last = name.replace(".reverse.", ".").rpartition(".")
        if owner in unbiased and last.startswith("bias"):
            result.append(_superfluous_bias(name, shapes[name], unbiased[owner]))
        else:
            result.append(_superfluous(name, shapes[name], needed))
    return result


def _normalization_misfits(
    layers: Layers, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Misfit]:
    """Misfits of mean and scale of the inputs: both or none, one number per feature."""
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
    layer_names = [other for other in shapes if other.startswith(f"layers.{spec.index}.")]
    guess = nearest(name, layer_names)
    if (
        layer_names
        and parameter.name.startswith("bias")
        and not any("bias" in other for other in layer_names)
    ):
        what = (
            f"{name} is missing: layer {spec.index} ({spec.kind}) has biases in the config, and "
            f"none in the weights; {gate_names(parameter)} would be {shape_text(parameter.shape)}"
        )
        return Misfit(name, spec.index, parameter.shape, None, "missing", what, bias=False)
    near = f"; the nearest name there is {guess}" if guess else ""
    what = (
        f"{name} is missing: {parameter.role} {gate_names(parameter)} of layer {spec.index} "
        f"({spec.kind}), {shape_text(parameter.shape)}{near}"
    )
    return Misfit(name, spec.index, parameter.shape, None, "missing", what)


def _superfluous_bias(name: str, shape: tuple[int, ...], spec: LayerSpec) -> Misfit:
    what = (
        f"{name} {shape_text(shape)} is not wanted: layer {spec.index} ({spec.kind}) has no "
        "biases in the config, and has them in the weights"
    )
    return Misfit(name, spec.index, None, tuple(shape), "not wanted", what, bias=True)


def _superfluous(
    name: str, shape: tuple[int, ...], needed: Mapping[str, tuple[LayerSpec, Parameter]]
) -> Misfit:
    guess = nearest(name, needed)
    near = f"; the nearest name it has is {guess}" if guess else ""
    what = f"{name} {shape_text(shape)} belongs to no layer of the config{near}"
    return Misfit(name, None, None, tuple(shape), "not wanted", what)


def _misshapen(name: str, spec: LayerSpec, parameter: Parameter, shape: tuple[int, ...]) -> Misfit:
    expected, gates = parameter.shape, len(parameter.blocks)
    mark, why = _difference(parameter, shape)
    verb = "together are" if gates > 1 else "is"
    what = f"{name}: {gate_names(parameter)} {verb} {shape_text(shape)}, "
    what += f"expected {shape_text(expected)} = {parameter.formula}"
    if gates and set(mark.split(", ")) <= set("HDP") and shape[0] % gates == 0:
        # Equal numbers of gates: describe one gate's matrix, as in the equations.
        one, other = (shape_text((size[0] // gates, *size[1:])) for size in (shape, expected))
        verb = verb.removeprefix("together ")
        formula = parameter.formula.replace(f"{gates}H", "H")
        what = f"{name}: {gate_names(parameter)} {verb} {one}, expected {other} = {formula}"
    return Misfit(name, spec.index, expected, shape, mark, f"{what}{why}")


def _difference(parameter: Parameter, shape: tuple[int, ...]) -> tuple[str, str]:
    """The difference as a short mark, and as the end of a sentence."""
    expected, gates = parameter.shape, len(parameter.blocks)
    if len(shape) != len(expected):
        return "rank", f": {counted(len(shape), 'dimension')} instead of {len(expected)}"
    if len(shape) == 2 and shape == expected[::-1]:
        return "transposed", ": it looks transposed, as Keras stores its kernels"
    letters = [part.strip(" ()") for part in parameter.formula.split(",") if part.strip(" ()")]
    wrong = [k for k, sizes in enumerate(zip(shape, expected, strict=True)) if sizes[0] != sizes[1]]
    mark = ", ".join(letters[k].lstrip("0123456789") for k in wrong)
    if wrong != [0] or not gates:
        return mark, ""
    H = expected[0] // gates
    if len(shape) == 1 and shape[0] == 2 * expected[0]:
        return "two biases", ": twice as long, so two biases in one row, as ONNX stores them"
    if shape[0] % H == 0 and shape[0] // H in _KIND_OF_GATES:
        other = shape[0] // H
        count = {1: "one gate", 3: "three gates", 4: "four gates"}[other]
        kind = _KIND_OF_GATES[other]
        short = "gate missing" if other < gates else "gate too many"
        return short, f": {count} of {H}; this looks like {kind}'s"
    return mark, ""


def fit_weights(
    layers: Layers,
    tensors: Mapping[str, Array],
    source: str | None = None,
    describe: MisfitDescriber | None = None,
) -> dict[str, Array]:
    """The tensors that the layers need, in order, and the inputs' normalization if present.

    No tensor is copied, but for the sum of two biases.

    Parameters
    ----------
    source
        Name of the weights file, for errors.
    describe
        Function that describes all misfits. None: problems name `source` alone.

    Raises
    ------
    WeightsError
        Names every tensor that is missing, superfluous or misshapen. If all fit, it names every
        value that is not finite, and a scale of 0.
    """
    merged = merge_biases(layers, {name: np.asarray(value) for name, value in tensors.items()})
    wrong = misfits(layers, {name: value.shape for name, value in merged.items()})
    if describe is None:
        where = (source,) if source else ()
        problems = [Problem(misfit.what, where=where) for misfit in wrong]
    else:
        problems = describe(wrong)
    if problems:
        raise WeightsError(problems)
    check_values(merged, source)
    names = [*expected_tensors(layers), *(name for name in TENSOR_NAMES if name in merged)]
    return {name: merged[name] for name in names}


def check_values(tensors: Mapping[str, Array], source: str | None = None) -> None:
    """Check that all tensors hold finite real numbers, and that no scale is 0.

    Raises
    ------
    WeightsError
        Names every tensor that does not.
    """
    where = (source,) if source else ()
    wrong = [what for name, value in tensors.items() if (what := _wrong_value(name, value))]
    if wrong:
        raise WeightsError([Problem(what, where=where) for what in wrong])


def is_finite(value: Array) -> bool:
    """Whether all numbers are finite; unlike `np.isfinite`, without an array of flags."""
    with np.errstate(invalid="ignore"):
        return not value.size or bool(np.isfinite(value.min()) and np.isfinite(value.max()))


def is_immutable(value: Array) -> bool:
    """Whether no array writes to the memory of this one."""
    return not any(array.flags.writeable for array in _with_bases(value))


def make_immutable(tensors: Mapping[str, Array]) -> None:
    """Make arrays and their bases read-only, so that a network uses them without a copy."""
    for value in tensors.values():
        for array in _with_bases(value):
            array.setflags(write=False)


def _with_bases(value: Array) -> Iterator[Array]:
    memory: object = value
    while isinstance(memory, np.ndarray):
        yield memory
        memory = memory.base


def _wrong_value(name: str, value: Array) -> str | None:
    if value.dtype.kind not in "fiu":
        return f"{name} holds {value.dtype} values, not real numbers"
    if name == SCALE and value.size and not value.all():
        return f"{name} is 0 at [{int(np.argmin(value != 0))}]: no value can be divided by it"
    if value.dtype.kind != "f" or is_finite(value):
        return None
    at = np.unravel_index(int(np.argmin(np.isfinite(value))), value.shape)
    place = ", ".join(str(int(k)) for k in at)
    return f"{name} is not finite: {value[at]} at [{place}]"
