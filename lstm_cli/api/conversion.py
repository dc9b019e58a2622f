"""Weights from one format to another: written, read back, run on both sides, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lstm_cli.api.agreement import Agreement, agreement
from lstm_cli.api.assembly import read_config
from lstm_cli.api.destination import target_format, unproven
from lstm_cli.api.differences import unsaid
from lstm_cli.api.fit import check_memory, check_weights, listed
from lstm_cli.api.proof import SLACK, Proof, Sided, prove, prove_fold
from lstm_cli.api.shapes import layer_title
from lstm_cli.api.weights_files import (
    config_of,
    read_weights,
    standing_notes,
    tensors_for,
    with_reading_bias,
    zero_states_for,
)
from lstm_cli.config import Config
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.types import Array, RecurrentSpec, ZeroStates
from lstm_cli.errors import LstmCliError, UsageError, WeightsError, counted
from lstm_cli.formats import registry
from lstm_cli.formats.model import Export, Imported, ReadOptions, TmvaOrder, WriteOptions
from lstm_cli.formats.registry import Format, layers_in_need_of_biases
from lstm_cli.network.normalization import (
    STORED,
    Normalization,
    fold,
    fold_noise,
    unfoldable,
)
from lstm_cli.network.weights import fit_weights
from lstm_cli.output_files import check_output_path

WRITTEN_ORDER: TmvaOrder = "slots"
"""What TMVA's own writer gives its elements to hold, and so does ours."""
CONFIG_HINT = "--config names a YAML config that describes the layers"


@dataclass(frozen=True)
class Order:
    """What a conversion was asked for, besides the two files.

    Attributes
    ----------
    reading
        What the source does not say about itself.
    to
        Name of the format to write; None: the destination's suffix says it.
    config
        A config for a source that carries none; wins over its own.
    overrides
        ``dotted.key=value`` for the config.
    writing
        What a model takes besides sequences.
    dtype
        To store; None: as the source has it.
    check
        Reference inputs and outputs, a ``.npz`` or HDF5 file.
    tolerance
        How far outputs may be from the reference.
    force
        Replace a file that another program wrote.
    """

    reading: ReadOptions = field(default_factory=ReadOptions)
    to: str | None = None
    config: str | None = None
    overrides: Sequence[str] = ()
    writing: WriteOptions = field(default_factory=WriteOptions)
    dtype: str | None = None
    check: str | None = None
    tolerance: float = 2e-5
    force: bool = False


@dataclass(frozen=True)
class Side:
    """One of the two files.

    `gates` has the order of the gates of every kind of layer that the network has; `bytes` are
    those of the file.
    """

    path: str
    format: str
    title: str
    gates: Mapping[str, str]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer of the network that was converted."""

    index: int
    title: str
    parameters: int


@dataclass(frozen=True)
class Conversion:
    """What was converted, what shows that it is right, and what was lost."""

    source: Side
    destination: Side
    layers: tuple[ConvertedLayer, ...]
    parameters: int
    dtype: str
    notes: tuple[str, ...]
    proof: Proof
    check: Agreement | None
    warnings: tuple[str, ...] = ()


def convert(source: str | Path, destination: str | Path, order: Order | None = None) -> Conversion:
    """Convert a weights file.

    The file is written under another name, read back, and run beside the source on random
    sequences; only if both compute the same it gets its name.

    Raises
    ------
    UsageError
        The destination's format is not known, it is the source, or another program wrote it.
    WeightsError, ConfigError
        The source cannot be read, or the format cannot represent it.
    DataError
        The reference cannot be read, or does not fit the network.
    LstmCliError
        Outputs are not those of the reference, the proof fails, or the file cannot be written.
    """
    order, destination = order or Order(), Path(destination)
    target = target_format(destination, order.to)
    if order.writing != WriteOptions() and not target.writes_options:
        raise UsageError(
            f"--lengths and --states are of ONNX models, and {destination} is to be {target.title}",
            hint="--to onnx, or leave them out",
        )
    if all(map(os.path.exists, (destination, source))) and destination.samefile(source):
        raise UsageError(
            "the source and the destination are the same file",
            found=f"{source} and {destination}",
            hint="name another file to write",
        )
    check_output_path(destination, option="DST", force=order.force, suffix=target.suffixes[0])
    given = None if order.config is None else read_config(order.config, order.overrides)
    layers = None if given is None else given.specs
    imported = read_weights(source, order.reading, layers=layers)
    config = given or config_of(imported, order.overrides, hint=CONFIG_HINT)
    tensors: Mapping[str, Array] = _fitted(config, imported, order.dtype)
    folding = None if target.name == "native" else _folding(config, tensors, imported, target)
    meant = config
    zero = zero_states_for(config.specs, imported)
    checked = None
    if order.check is not None:
        checked = agreement(config, tensors, order.check, order.tolerance, zero)
    if folding is not None:
        config, tensors = folding.config, folding.tensors
    with unproven(destination, force=order.force) as made:
        written = registry.write(made.path, target.name, _export(config, tensors), order.writing)
        bare = _is_bare(target, destination)
        reading = ReadOptions(tmva_order=WRITTEN_ORDER)
        needed = layers_in_need_of_biases(target.name, config.specs)
        known = config.with_biases(needed) if bare else None
        back = read_weights(made.path, reading, layers=None if known is None else known.specs)
        other = known or config_of(back)
        read = Sided(other.specs, _fitted(other, back))
        proof = _proof(config, tensors, read, folding)
        if not proof.holds:
            raise _disproved(proof, imported.path, destination, target)
        notes = (*written, *unsaid(config, _alone(back, reading), destination, bare=bare))
        if target.name != "onnx" or order.writing.states:
            notes += tuple(_taken_states(zero, destination))
        if folding is not None:
            notes = (folding.note(read), *notes)
        made.keep()
    kinds = {spec.kind for spec in config.specs}
    return Conversion(
        _side(imported, imported.path, kinds),
        _side(back, destination, kinds),
        tuple(_layers(meant, tensors)),
        sum(tensors[name].size for spec in meant.specs for name in spec.parameters()),
        _narrowest(tensors.values()),
        (
            *standing_notes(imported, meant, "leave out --config"),
            *(made.told(note) for note in notes),
        ),
        proof,
        checked,
        () if folding is None else folding.warnings(read),
    )


def _taken_states(zero: ZeroStates, name: Path) -> Iterator[str]:
    """Say that a written file takes states which the source holds at 0."""
    for index, letter in zero:
        yield f"{name} takes an initial {letter} in layer {index}, which the source begins with 0"


@dataclass(frozen=True)
class _Folding:
    """A network for a format that has no place for the normalization of its inputs.

    Attributes
    ----------
    source
        The network that normalizes.
    config, tensors
        Its layers' weights, the normalization folded in, and the layers: the first one with a
        bias, which the fold needs.
    inputs
        What was folded.
    steps
        T where the config fixes it.
    takes_wide
        The format can have these weights in float64.
    """

    source: Sided
    config: Config
    tensors: Mapping[str, Array]
    inputs: Normalization
    steps: int | None
    takes_wide: bool

    def note(self, read: Sided) -> str:
        """The fold, and what rounding it changes; `read` is what the file holds."""
        dtype = _narrowest(read.tensors.values())
        apart = prove(self.source, read, self.steps, dtype, self.inputs).relative_difference
        biased = self.config.specs != tuple(self.source.layers)
        return (
            "inputs.mean and inputs.scale are folded into the first layer"
            f"{', which has no biases and gets them for that' if biased else ''}: on inputs of "
            f"their range, rounding to {dtype} changes outputs by up to {apart:.2g} of the largest"
        )

    def warnings(self, read: Sided) -> tuple[str, ...]:
        """The features whose digits the file loses, in one warning if there are any."""
        dtype = _narrowest(read.tensors.values())
        lost = self.inputs.roundings(dtype)
        if not lost:
            return ()
        hint = "only a native file keeps them"
        if dtype == "float32" and self.takes_wide and not self.inputs.roundings("float64"):
            hint = "--dtype float64 keeps them"
        return (f"the fold loses digits in {dtype}: {listed(lost)}; {hint}",)


def _folding(
    config: Config, tensors: Mapping[str, Array], source: Imported, target: Format
) -> _Folding | None:
    """The network without its normalization; None: it has none.

    Raises
    ------
    WeightsError
        No weights can take the normalization in.
    LstmCliError
        The folded network does not compute what the other does.
    """
    inputs = Normalization.stored(tensors)
    if inputs is None:
        return None
    given, (config, tensors) = Sided(config.specs, tensors), with_reading_bias(config, tensors)
    if (why := unfoldable(config.specs)) is not None:
        raise WeightsError(
            f"{target.title} has no place for the normalization of the inputs, inputs.mean and "
            "inputs.scale, and no weights can take it in",
            expected="a recurrent or dense layer before any other",
            found=why,
            where=str(source.path),
            hint="a native file keeps it: name a DST that ends in .safetensors",
        )
    own = {name: value for name, value in tensors.items() if name not in STORED}
    folded = fold(config.specs, own, inputs)
    check_memory(config, ReferenceEngine("float64"))
    proof = prove_fold(Sided(config.specs, tensors), config.model.steps, inputs)
    if not proof.holds:
        raise LstmCliError(
            "the folded weights do not compute what the normalization and the weights do",
            expected=f"outputs within {proof.tolerance:.1g} of the largest one",
            found=f"{proof.relative_difference:.2g} in {proof.place}",
            where=str(source.path),
            hint="nothing was written; a native file keeps the normalization: name a DST that "
            "ends in .safetensors",
        )
    recurrent = any(isinstance(spec, RecurrentSpec) for spec in config.specs)
    wide = target.name != "onnx" or not recurrent  # ONNX Runtime has no float64 for these
    return _Folding(given, config, folded, inputs, config.model.steps, wide)


def _fitted(config: Config, imported: Imported, dtype: str | None = None) -> dict[str, Array]:
    """The tensors that the layers need, in their order, all of `dtype` if one is named."""
    tensors = tensors_for(config.specs, imported)
    check_weights(config, tensors, str(imported.path))
    fitted = fit_weights(config.specs, tensors, str(imported.path))
    wide = {name: fitted.pop(name).astype(np.float64) for name in STORED if name in fitted}
    if dtype is None:
        return {name: _stored(value) for name, value in fitted.items()} | wide
    with np.errstate(over="ignore"):
        cast = {name: value.astype(dtype) for name, value in fitted.items()} | wide
    return fit_weights(config.specs, cast, f"{imported.path}, as {dtype}")


def _stored(value: Array) -> Array:
    """A weight as float32 or float64, whatever it was."""
    wide = value.dtype.kind != "f" or value.dtype.itemsize > 4
    return value.astype(np.float64 if wide else np.float32, copy=False)


def _narrowest(tensors: Iterable[Array]) -> str:
    return "float32" if any(value.dtype != np.float64 for value in tensors) else "float64"


def _export(config: Config, tensors: Mapping[str, Array]) -> Export:
    return Export(
        name=config.name,
        input_size=config.model.input_size,
        steps=config.model.steps,
        layers=config.specs,
        tensors=tensors,
        config=config.to_yaml(),
    )


def _is_bare(target: Format, destination: Path) -> bool:
    """Whether a file of this format holds tensors, and no more of the layers than they tell."""
    by_name = destination.name.lower().endswith(".weights.h5")
    return target.name == "pytorch" or (target.name == "keras" and by_name)


def _alone(back: Imported, reading: ReadOptions) -> Config | None:
    """The config that a written file is taken for without another; None if it tells none."""
    try:
        return config_of(read_weights(back.path, reading))
    except LstmCliError:
        return None


def _proof(
    config: Config, tensors: Mapping[str, Array], read: Sided, folding: _Folding | None
) -> Proof:
    """Run what was written beside what was read back."""
    check_memory(config, ReferenceEngine("float64"))
    dtype = _narrowest((*tensors.values(), *read.tensors.values()))
    steps = config.model.steps
    if folding is None:
        inputs = Normalization.stored(tensors)
        return prove(Sided(config.specs, tensors), read, steps, dtype, inputs)
    # What is folded is large beside what it leaves: rounding it is told apart from other faults.
    rounded = {name: value.astype(dtype) for name, value in tensors.items()}
    proof = prove(Sided(config.specs, rounded), read, steps, dtype, folding.inputs)
    if proof.holds:
        return proof
    # A format that adds two biases rounds their sum.
    noise = SLACK * fold_noise(config.specs, tensors, folding.inputs, dtype)
    return replace(proof, tolerance=proof.tolerance + noise)


def _disproved(proof: Proof, source: Path, destination: Path, target: Format) -> LstmCliError:
    return LstmCliError(
        f"what was written for {destination} does not compute what {source} does",
        expected=f"outputs within {proof.tolerance:.1g} of the largest one",
        found=f"{proof.relative_difference:.2g} in {proof.place}",
        where=f"{proof.sequences} random sequences of up to "
        f"{counted(proof.steps, 'step')}, in float64",
        hint=f"nothing was written; this is a fault in how lstm-cli writes or reads {target.title}",
    )


def _side(file: Imported, path: Path, kinds: set[str]) -> Side:
    gates = {kind: order for kind, order in file.order.items() if kind in kinds}
    return Side(str(path), file.format, file.title, gates, path.stat().st_size, file.sha256)


def _layers(config: Config, tensors: Mapping[str, Array]) -> Iterator[ConvertedLayer]:
    for spec in config.specs:
        parameters = sum(tensors[name].size for name in spec.parameters())
        yield ConvertedLayer(spec.index, layer_title(spec), parameters)
