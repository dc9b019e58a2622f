"""Conversion of weights: write, read back, compare both networks, and then rename the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lstm_cli.config import Config
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import Array, RecurrentSpec
from lstm_cli.errors import LstmCliError, Problem, UsageError, WeightsError, counted
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported, ReadOptions, TmvaOrder, WriteOptions
from lstm_cli.formats.registry import Format, layers_needing_biases
from lstm_cli.network.normalization import (
    TENSOR_NAMES,
    Normalization,
    fold,
    fold_noise,
    fold_obstacle,
)
from lstm_cli.network.weights import check_values, fit_weights
from lstm_cli.output_files import AtomicFile, check_output_path, write_error
from lstm_cli.workflows.config_differences import unstated_options
from lstm_cli.workflows.convert.equivalence import (
    SLACK,
    ComparedNetwork,
    Equivalence,
    check_equivalence,
    check_fold,
)
from lstm_cli.workflows.convert.reference_check import ReferenceCheck, check_reference
from lstm_cli.workflows.data_notes import itemize
from lstm_cli.workflows.model import check_memory, read_config
from lstm_cli.workflows.shape_check import layer_title, misfit_describer
from lstm_cli.workflows.weights_files import (
    config_of,
    read_weights,
    renumbered,
    standing_notes,
    with_reading_bias,
)

WRITTEN_ORDER: TmvaOrder = "slots"
"""Element order in a TMVA file, as TMVA's own writer and lstm-cli write it."""
CONFIG_HINT = "--config names a YAML config that describes the layers"


@dataclass(frozen=True)
class ConversionRequest:
    """Options of a conversion, besides the two files.

    Attributes
    ----------
    reading
        Options for reading the source.
    to
        Name of the format to write; None: the destination's suffix implies it.
    config
        Config for a source that carries none; overrides the source's own config.
    overrides
        ``dotted.key=value`` for the config.
    writing
        Inputs that the written model takes besides sequences.
    dtype
        Dtype to store; None: the source's.
    check
        Path of reference inputs and outputs, a ``.npz`` or HDF5 file.
    tolerance
        Largest difference between outputs and the reference, relative above 1.
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
class ConvertedFile:
    """One of the two files of a conversion.

    Attributes
    ----------
    gates
        Gate order in the file, for every kind of layer in the network.
    bytes
        Bytes of the file.
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
    """Result of `convert`: both files, the layers, the proof, and notes on losses."""

    source: ConvertedFile
    destination: ConvertedFile
    layers: tuple[ConvertedLayer, ...]
    parameters: int
    dtype: str
    notes: tuple[str, ...]
    proof: Equivalence
    check: ReferenceCheck | None
    warnings: tuple[str, ...] = ()


def convert(
    source: str | Path, destination: str | Path, request: ConversionRequest | None = None
) -> Conversion:
    """Convert a weights file.

    The result is written under a temporary name and read back, and both networks run on random
    sequences. The result gets the name of the destination only if both compute the same.

    Raises
    ------
    UsageError
        The destination's format is unknown, the destination is the source, or another program
        wrote it.
    WeightsError, ConfigError
        The source cannot be read, or the format cannot represent it.
    DataError
        The reference cannot be read, or does not fit the network.
    LstmCliError
        Outputs differ from the reference or between the files, or a file cannot be written.
    """
    request, destination = request or ConversionRequest(), Path(destination)
    target = target_format(destination, request.to)
    _check_paths(source, destination, target, request)
    config = None if request.config is None else read_config(request.config, request.overrides)
    specs = None if config is None else config.specs
    imported = read_weights(source, request.reading, layers=specs)
    config = config or config_of(imported, request.overrides, hint=CONFIG_HINT)
    tensors: Mapping[str, Array] = _fitted(config, imported, request.dtype)
    folding = None if target.name == "native" else _folding(config, tensors, imported, target)
    zero_states = renumbered(imported, config.specs).zero_states
    check = None
    if request.check is not None:
        check = check_reference(config, tensors, request.check, request.tolerance, zero_states)
    written, weights = (config, tensors) if folding is None else (folding.config, folding.tensors)
    with unverified_file(destination, force=request.force) as file:
        notes = registry.write(file.path, target.name, _export(written, weights), request.writing)
        back, read_back, implied = _read_back(file.path, destination, target, written)
        proof = _prove(written, weights, read_back, folding)
        if not proof.holds:
            raise _proof_error(proof, imported.path, destination, target)
        tensors_only = _holds_tensors_only(target, destination)
        notes += unstated_options(written, implied, destination, tensors_only=tensors_only)
        if target.name != "onnx" or request.writing.states:
            notes += tuple(
                f"{destination} takes an initial {letter} in layer {index}, which the source "
                "begins with 0"
                for index, letter in zero_states
            )
        if folding is not None:
            notes = (folding.note(read_back), *notes)
    layers = tuple(_converted_layers(config, weights))
    kinds = {spec.kind for spec in written.specs}
    return Conversion(
        _converted_file(imported, imported.path, kinds),
        _converted_file(back, destination, kinds),
        layers,
        sum(layer.parameters for layer in layers),
        _narrowest(weights.values()),
        (
            *standing_notes(imported, config, "leave out --config"),
            *(_with_final_name(note, file.path, destination) for note in notes),
        ),
        proof,
        check,
        () if folding is None else folding.warnings(read_back),
    )


def _check_paths(
    source: str | Path, destination: Path, target: Format, request: ConversionRequest
) -> None:
    if request.writing != WriteOptions() and not target.writes_options:
        raise UsageError(
            f"--lengths and --states need an ONNX model, but {destination} is to be {target.title}",
            hint="--to onnx, or leave out --lengths and --states",
        )
    if all(map(os.path.exists, (destination, source))) and destination.samefile(source):
        raise UsageError(
            "the source and the destination are the same file",
            found=f"{source} and {destination}",
            hint="name another file to write",
        )
    check_output_path(destination, option="DST", force=request.force, suffix=target.suffixes[0])


def _read_back(
    path: Path, destination: Path, target: Format, written: Config
) -> tuple[Imported, ComparedNetwork, Config | None]:
    """Return a written file, its network, and the config that it implies without another."""
    reading = ReadOptions(tmva_order=WRITTEN_ORDER)
    if not _holds_tensors_only(target, destination):
        back = read_weights(path, reading)
        config = config_of(back)
        return back, ComparedNetwork(config.specs, _fitted(config, back)), config
    config = written.with_biases(layers_needing_biases(target.name, written.specs))
    back = read_weights(path, reading, layers=config.specs)
    network = ComparedNetwork(config.specs, _fitted(config, back))
    try:
        return back, network, config_of(read_weights(path, reading))
    except LstmCliError:
        return back, network, None


@dataclass(frozen=True)
class _Folding:
    """A network for a format that cannot store the normalization of the inputs.

    Attributes
    ----------
    source
        The network that normalizes its inputs.
    config, tensors
        The network whose weights include the normalization. Its first layer has a bias, since
        the fold needs one.
    inputs
        The normalization.
    steps
        Number of steps T if the config fixes it, else None.
    takes_wide
        True if the format can store these weights in float64.
    """

    source: ComparedNetwork
    config: Config
    tensors: Mapping[str, Array]
    inputs: Normalization
    steps: int | None
    takes_wide: bool

    def note(self, read_back: ComparedNetwork) -> str:
        """Describe the fold, and the change that rounding makes to the outputs."""
        dtype = _narrowest(read_back.tensors.values())
        proof = check_equivalence(self.source, read_back, self.steps, dtype, self.inputs)
        biased = self.config.specs != tuple(self.source.layers)
        return (
            "inputs.mean and inputs.scale are folded into the first layer"
            f"{', which has no biases and gets them for the fold' if biased else ''}: on inputs of "
            f"their range, rounding to {dtype} changes outputs by up to "
            f"{proof.relative_difference:.2g} of the largest"
        )

    def warnings(self, read_back: ComparedNetwork) -> tuple[str, ...]:
        """Return a warning on features whose digits the file loses, or nothing."""
        dtype = _narrowest(read_back.tensors.values())
        lost = self.inputs.roundings(dtype)
        if not lost:
            return ()
        hint = "only a native file keeps them"
        if dtype == "float32" and self.takes_wide and not self.inputs.roundings("float64"):
            hint = "--dtype float64 keeps them"
        return (f"the fold loses digits in {dtype}: {itemize(lost)}; {hint}",)


def _folding(
    config: Config, tensors: Mapping[str, Array], source: Imported, target: Format
) -> _Folding | None:
    """Fold the normalization into the weights; None for a network without one.

    Raises
    ------
    WeightsError
        No weights can include the normalization.
    LstmCliError
        The folded network does not compute the same as the source.
    """
    inputs = Normalization.from_tensors(tensors)
    if inputs is None:
        return None
    network = ComparedNetwork(config.specs, tensors)
    config, tensors = with_reading_bias(config, tensors)
    if (why := fold_obstacle(config.specs)) is not None:
        raise WeightsError(
            f"{target.title} cannot store the normalization of the inputs, inputs.mean and "
            "inputs.scale, and no weights can include it",
            expected="a recurrent or dense layer before any other",
            found=why,
            where=str(source.path),
            hint="a native file keeps it: name a DST that ends in .safetensors",
        )
    weights = {name: value for name, value in tensors.items() if name not in TENSOR_NAMES}
    folded = fold(config.specs, weights, inputs)
    check_memory(config, ReferenceEngine("float64"))
    proof = check_fold(ComparedNetwork(config.specs, tensors), config.model.steps, inputs)
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
    return _Folding(network, config, folded, inputs, config.model.steps, wide)


def _fitted(config: Config, imported: Imported, dtype: str | None = None) -> dict[str, Array]:
    """Return the tensors that the layers need, in the layers' order, all of `dtype` if given."""
    source = str(imported.path)
    tensors = renumbered(imported, config.specs).tensors
    fitted = fit_weights(config.specs, tensors, source, misfit_describer(config, source))
    wide = {name: fitted.pop(name).astype(np.float64) for name in TENSOR_NAMES if name in fitted}
    if dtype is None:
        return {name: _as_float(value) for name, value in fitted.items()} | wide
    with np.errstate(over="ignore"):
        cast = {name: value.astype(dtype, copy=False) for name, value in fitted.items()} | wide
    check_values(cast, f"{source}, as {dtype}")
    return cast


def _as_float(value: Array) -> Array:
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


def _holds_tensors_only(target: Format, destination: Path) -> bool:
    """Return True if the layers of such a file follow from its tensors alone."""
    weights_only = destination.name.lower().endswith(".weights.h5")
    return target.name == "pytorch" or (target.name == "keras" and weights_only)


def _prove(
    config: Config,
    tensors: Mapping[str, Array],
    read_back: ComparedNetwork,
    folding: _Folding | None,
) -> Equivalence:
    """Compare the network that was written with the one that was read back."""
    check_memory(config, ReferenceEngine("float64"))
    dtype = _narrowest((*tensors.values(), *read_back.tensors.values()))
    steps = config.model.steps
    if folding is None:
        inputs = Normalization.from_tensors(tensors)
        written = ComparedNetwork(config.specs, tensors)
        return check_equivalence(written, read_back, steps, dtype, inputs)
    # Folded weights are large and their sum is small. Rounding them first keeps the effect of
    # rounding apart from other faults.
    rounded = {name: value.astype(dtype) for name, value in tensors.items()}
    written = ComparedNetwork(config.specs, rounded)
    proof = check_equivalence(written, read_back, steps, dtype, folding.inputs)
    if proof.holds:
        return proof
    # A format that adds two biases rounds their sum.
    noise = SLACK * fold_noise(config.specs, tensors, folding.inputs, dtype)
    return replace(proof, tolerance=proof.tolerance + noise)


def _proof_error(
    proof: Equivalence, source: Path, destination: Path, target: Format
) -> LstmCliError:
    return LstmCliError(
        f"the file for {destination} does not compute what {source} does",
        expected=f"outputs within {proof.tolerance:.1g} of the largest one",
        found=f"{proof.relative_difference:.2g} in {proof.place}",
        where=f"{proof.sequences} random sequences of up to "
        f"{counted(proof.steps, 'step')}, in float64",
        hint=f"nothing was written; this is a fault in how lstm-cli writes or reads {target.title}",
    )


def _converted_file(file: Imported, path: Path, kinds: set[str]) -> ConvertedFile:
    gates = {kind: order for kind, order in file.gate_orders.items() if kind in kinds}
    return ConvertedFile(
        str(path), file.format, file.title, gates, path.stat().st_size, file.sha256
    )


def _converted_layers(config: Config, tensors: Mapping[str, Array]) -> Iterator[ConvertedLayer]:
    for spec in config.specs:
        parameters = sum(tensors[name].size for name in spec.parameters())
        yield ConvertedLayer(spec.index, layer_title(spec), parameters)


def target_format(destination: Path, name: str | None) -> Format:
    """Return the format to write.

    Raises
    ------
    UsageError
        No format has that name, or neither name nor suffix states a format.
    """
    if name is not None:
        return registry.format_named(name)
    target = registry.format_by_suffix(destination)
    if target is None:
        suffixes = ", ".join(s for format in registry.FORMATS.values() for s in format.suffixes)
        raise UsageError(
            f"the name {destination} does not imply a format to write",
            expected=f"a suffix out of {suffixes}",
            hint="--to " + "|".join(registry.FORMATS),
        )
    return target


@contextmanager
def unverified_file(destination: Path, *, force: bool) -> Iterator[AtomicFile]:
    """Open a file under a temporary name, which gets the destination's name at the end.

    An error in the block removes the file, and names the destination, not the temporary name.
    """
    try:
        temporary = AtomicFile(destination, force=force)
    except OSError as error:
        raise write_error(destination, "the weights", error) from None
    with temporary:
        try:
            yield temporary
            try:
                temporary.keep()
            except OSError as error:
                raise write_error(destination, "the weights", error) from None
        except LstmCliError as error:

            def renamed(text: str | None) -> str | None:
                return text and _with_final_name(text, temporary.path, destination)

            problems = [
                Problem(
                    _with_final_name(problem.what, temporary.path, destination),
                    renamed(problem.expected),
                    renamed(problem.found),
                    tuple(_with_final_name(p, temporary.path, destination) for p in problem.where),
                    renamed(problem.hint),
                )
                for problem in error.problems
            ]
            raise type(error)(problems, headline=renamed(error.headline)) from None


def _with_final_name(text: str, temporary: Path, destination: Path) -> str:
    """Replace a temporary name in a text by the destination's name."""
    text = text.replace(str(temporary), str(destination))
    text = text.replace(temporary.name, destination.name)
    mark, part, _ = temporary.name.partition(".part.")
    return text.replace(mark + part, "")  # a name derived from it has another suffix
