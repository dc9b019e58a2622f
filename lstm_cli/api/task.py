"""What is to be learned: config, network and data fitted to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from lstm_cli.api.class_weights import class_weights
from lstm_cli.api.fit import (
    SAMPLE_LOSS,
    listed,
    lost_digits,
    lost_targets,
    misplaced_states,
    reading_dtype,
)
from lstm_cli.api.learning_data import (
    DatasetSource,
    HeldOut,
    fingerprint,
    no_targets,
    nothing_held_out,
)
from lstm_cli.api.model import Model
from lstm_cli.api.resuming import train_section
from lstm_cli.config import Config
from lstm_cli.data import (
    Sampler,
    SequenceData,
    class_counts,
    feature_statistics,
    hold_out,
    require_same_form,
    target_statistics,
    targets_beyond_error,
)
from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    FlattenSpec,
    RecurrentSpec,
    array_dtype,
    biased,
    lacks_bias,
)
from lstm_cli.errors import ConfigError
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import (
    SCALED_LOSSES,
    Normalization,
    fold,
    fold_obstacle,
    scales_targets,
)
from lstm_cli.training.interfaces import TrainingSource, Validation
from lstm_cli.training.loop import StopRule
from lstm_cli.training.losses import Criterion
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates


class Task:
    """A network, what it learns from, and how.

    Parameters
    ----------
    model
        Its weights change as it learns.
    config
        Of the run; its places are those of errors.
    data, validation
        What is learned from, and what is measured on; None: a share of `data`, or nothing.
    trained
        The model's weights were trained before: they take inputs, and give outputs, in the units
        of the data. Drawn ones, and those of a run that goes on, are for scaled targets.

    Raises
    ------
    ConfigError, DataError
        They do not fit each other.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        data: SequenceData,
        validation: SequenceData | None,
        *,
        trained: bool = False,
    ) -> None:
        self.model, self.config, self.data, self.validation = model, config, data, validation
        self.train = train_section(config)
        self.network = model.network
        self.per_step = self.network.returns_sequences
        self.trained = trained
        self.notes: list[str] = []
        self._check()
        self.numbers, self.held_out = self._split()
        size = self.train.batch_size
        if (misplaced := misplaced_states(self.network, data, size, self.numbers)) is not None:
            self.notes.append(misplaced)

    @property
    def learned(self) -> int:
        """Sequences that are learned from."""
        return self.data.count if self.numbers is None else len(self.numbers)

    @property
    def measured(self) -> int:
        """Sequences that are held out."""
        return 0 if self.held_out is None else len(self.held_out.numbers)

    def plan(self, checkpoint_every: float) -> StopRule:
        """How long, and what counts."""
        monitor = self.train.monitor or ("loss" if self.held_out is None else "val_loss")
        return StopRule(self.train.epochs, monitor, self.train.patience, checkpoint_every)

    @cached_property
    def sides(self) -> dict[str, SequenceData]:
        """The datasets, by what they are for."""
        sides = {"data": self.data}
        return sides if self.validation is None else sides | {"validation": self.validation}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """What tells these data from others."""
        return {
            name: fingerprint(side, self._dtype(side), self.per_step)
            for name, side in self.sides.items()
        }

    @cached_property
    def normalized(self) -> Network:
        """The network, normalizing as `train.normalize` says; the same whenever it is measured.

        One that normalizes its inputs already goes on doing so. Weights that were trained before
        come to compute the same from normalized inputs, for scaled targets.
        """
        network, method = self.network, self.train.scaling
        if method is None:
            return network
        inputs = None
        if network.normalization is None:
            inputs = Normalization.from_statistics(
                method, feature_statistics(self.data, self.numbers)
            )
        if self.trained:
            back = [None if one is None else one.inverse for one in (inputs, self.targets)]
            network.set_weights(fold(network.layers, network.weights, *back))
        network.normalization = network.normalization or inputs
        return network

    @cached_property
    def targets(self) -> Normalization | None:
        """How targets are scaled while training; None: not at all."""
        method = self.train.scaling
        if method is None or not scales_targets(self.network.layers, self.train.loss):
            return None
        found = target_statistics(self.data, self.numbers, per_step=self.per_step)
        return None if found is None else Normalization.from_statistics(method, found)

    def written(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """All tensors of the trained network, for outputs in the units of the data."""
        scaling = self.normalized.normalization
        own = fold(self.network.layers, weights, None, self.targets)
        return own if scaling is None else own | scaling.tensors

    @cached_property
    def learner(self) -> TrainStep:
        """The network with its loss and updates."""
        train, F = self.train, self.network.output_size
        weights = class_weights(self.config, F, self.data, self.numbers, self.per_step)
        updates = Updates(
            make_optimizer(train.optimizer.model_dump()),
            make_schedule(train.schedule.model_dump(exclude_none=True), epochs=train.epochs),
            clip_norm=train.clip_norm,
            clip_value=train.clip_value,
            steps_per_epoch=self._updates_per_epoch(),
        )
        criterion = Criterion(self._targets(), weights, train.label_smoothing)
        return TrainStep(
            self.normalized, criterion, updates, seed=train.seed, truncate=train.truncate
        )

    @contextmanager
    def reading(self) -> Iterator[TrainingSource]:
        """Batches of the training part, as long as the context lasts."""
        engine = self.network.engine
        dtype = self._dtype(self.data)
        source = DatasetSource(self._sampler, dtype, self.per_step, self.targets)
        device = getattr(engine, "hardware", None)
        if device is None or self.train.truncate is not None:  # pieces are cut in NumPy's memory
            yield source
            return
        from lstm_cli.api.reading_ahead import ReadingAhead

        with ReadingAhead(source, device) as ahead:
            yield ahead

    def check_classes(self) -> None:
        """Read all targets that are classes, so that a wrong one is not found after hours.

        Raises
        ------
        DataError
            A class that the network does not have.
        """
        units = self.network.output_size
        classes = {"cross_entropy": units, "binary_cross_entropy": 2 if units == 1 else None}
        count = classes.get(self.train.loss)
        for side in self.sides.values():
            if count is not None and side.targets is not None and side.targets.kind == "class":
                class_counts(side, classes=count, per_step=self.per_step)

    def validate(self, stop: Callable[[], bool]) -> Validation:
        """Measures what is held out, if anything is."""
        if self.held_out is None:
            return nothing_held_out
        twin = Network(self.network.layers, self.normalized.tensors, self.network.engine)
        dtype = self._dtype(self.held_out.dataset)
        return HeldOut(self.held_out, dtype, self.per_step, twin, self.targets, self.metrics, stop)

    def metrics(self) -> Metrics:
        """Empty metrics of an epoch."""
        targets = self._targets()
        return Metrics(
            targets.loss,
            per_step=targets.per_step,
            features=targets.features,
            name=targets.name,
        )

    def _check(self) -> None:
        for side in self.sides.values():
            if side.targets is None:
                raise no_targets(side)
            if not len(side.numbers):
                raise targets_beyond_error(side.files.layouts)
        if self.validation is not None:
            require_same_form(self.data, self.validation, self.per_step)
        self._check_normalization()
        self._check_truncation()
        stateful = [spec.index for spec in self.network.recurrent if spec.stateful]
        if stateful and isinstance(self.train.validation, float):
            raise ConfigError(
                f"layer {stateful[0]} is stateful: a sequence that is held out would be missing "
                "from its row",
                expected="other data for validation, or none",
                found=f"a share of {self.train.validation:g}",
                where=self.config.where("train", "validation"),
                hint="--set train.validation=FILE.h5:/group",
            )

    def _dtype(self, data: SequenceData) -> str:
        """The type in which inputs are read: where they are normalized, one that holds them."""
        if self.train.scaling is None:
            return reading_dtype(self.network, data)
        return data.dtype_for_inputs(array_dtype(self.network.engine))

    def _check_normalization(self) -> None:
        """Weights that were trained on raw inputs must come to compute the same without them."""
        if self.train.scaling is None:
            return
        last = [spec for spec in self.network.layers if not isinstance(spec, DropoutSpec)][-1]
        if lacks_bias(last) and scales_targets([biased(last)], self.train.loss):
            setting = f"; --set model.layers.{last.index}.bias=true scales them"
            self.notes.append(
                f"the targets are not scaled: layer {last.index} ({last.kind}) has no bias to take "
                f"their mean in{'' if self.trained else setting}"
            )
        if not self.trained:
            return
        if self.network.normalization is not None:
            self.notes.append(
                f"{self.model.weights_name} normalizes its inputs by inputs.mean and inputs.scale: "
                "train.normalize keeps these, and takes none from the new data"
            )
        elif (why := fold_obstacle(self.network.layers)) is not None:
            raise ConfigError(
                f"train.normalize cannot go on from {self.model.weights_name}, which was trained "
                "on inputs as they are",
                found=why,
                where=self.config.where("train", "normalize"),
                hint="--set train.normalize=false",
            )

    def lost(self) -> tuple[str, ...]:
        """Notes on inputs and targets of which the engine's dtype loses digits."""
        dtype, notes = array_dtype(self.network.engine), []
        normalized = self.train.scaling is not None
        if not normalized and (inputs := lost_digits(self.network, self.data)) is not None:
            notes.append(f"{inputs}; --set train.normalize=true keeps them")
        targets = []
        if self.targets is not None:
            targets = self.targets.roundings(dtype, SAMPLE_LOSS, "target")
        elif self.train.loss in SCALED_LOSSES:
            targets = lost_targets(self.network, self.data)
        if targets:
            notes.append(
                f"outputs in {dtype} cannot tell the targets apart: {listed(targets)}; --dtype "
                "float64, in `train` and in `run`, keeps the digits"
            )
        return tuple(notes)

    def _check_truncation(self) -> None:
        """Errors that travel back some steps need states that go forward, step by step."""
        if self.train.truncate is None:
            return
        for spec in self.network.layers:
            both = isinstance(spec, RecurrentSpec) and spec.directions == 2
            if both or isinstance(spec, FlattenSpec):
                raise ConfigError(
                    f"train.truncate cuts sequences, and layer {spec.index} ({spec.kind}) needs "
                    "them whole" + (": it reads them from both ends" if both else ""),
                    where=(
                        f"train.truncate, {self.config.where('train', 'truncate')}",
                        f"layer {spec.index}, {self.config.where('model', 'layers', spec.index)}",
                    ),
                    hint="leave `train.truncate` out",
                )

    def _split(self) -> tuple[Array | None, Sampler | None]:
        """What is learned from, None for all; and what is held out."""
        share, size = self.train.validation, self.train.batch_size
        every = self.data.numbers
        learned_all = None if len(every) == self.data.count else every
        if self.validation is not None:
            held = self.validation.numbers
            stateful = self.model.stateful
            return learned_all, Sampler(self.validation, size, indices=held, stateful=stateful)
        if not isinstance(share, float):
            return learned_all, None
        learned, held = hold_out(
            self.data,
            share,
            self.train.seed,
            per_step=self.per_step,
            classes=self.train.loss == "cross_entropy",
        )
        return learned, Sampler(self.data, size, indices=held)

    def _targets(self) -> TargetFormat:
        info = self.data.targets
        name = "targets" if info is None else info.name
        return TargetFormat(self.train.loss, self.per_step, self.network.output_size, name)

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler(
            self.data,
            self.train.batch_size,
            self.train.seed,
            indices=self.numbers,
            stateful=self.model.stateful,
        )

    def _updates_per_epoch(self) -> int:
        """Updates of the first epoch: a batch makes several where its steps are truncated."""
        k = self.train.truncate
        if k is None or not self.per_step:
            return self._sampler.batches
        lengths = self.data.lengths()
        longest = [int(lengths[numbers].max()) for numbers in self._sampler.order(0)]
        return sum(max(1, -(-steps // k)) for steps in longest)
