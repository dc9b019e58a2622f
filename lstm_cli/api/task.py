"""What is to be learned: config, network and data fitted to each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from lstm_cli.api.class_weights import class_weights
from lstm_cli.api.learning_data import (
    DatasetSource,
    HeldOut,
    Scales,
    fingerprint,
    no_targets,
    nothing_held_out,
)
from lstm_cli.api.model import Model
from lstm_cli.api.resuming import train_section
from lstm_cli.config import Config
from lstm_cli.data import (
    Dataset,
    Sampler,
    feature_statistics,
    hold_out,
    need_same_form,
    target_statistics,
    targets_beyond,
)
from lstm_cli.engines.types import Array, FlattenSpec, RecurrentSpec, array_dtype
from lstm_cli.errors import ConfigError
from lstm_cli.network.network import Network
from lstm_cli.training.criterion import Criterion
from lstm_cli.training.learner import Learner
from lstm_cli.training.loop import Plan
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.normalisation import Scaling, need_foldable, scales_targets
from lstm_cli.training.optimisers import make_optimiser
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.surroundings import Source, Validation
from lstm_cli.training.targets import Targets
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

    Raises
    ------
    ConfigError, DataError
        They do not fit each other.
    """

    def __init__(
        self, model: Model, config: Config, data: Dataset, validation: Dataset | None
    ) -> None:
        self.model, self.config, self.data, self.validation = model, config, data, validation
        self.train = train_section(config)
        self.network = model.network
        self.per_step = self.network.returns_sequences
        self._check()
        self.numbers, self.held_out = self._split()

    @property
    def learned(self) -> int:
        """Sequences that are learned from."""
        return self.data.count if self.numbers is None else len(self.numbers)

    @property
    def measured(self) -> int:
        """Sequences that are held out."""
        return 0 if self.held_out is None else len(self.held_out.numbers)

    def plan(self, checkpoint_every: float) -> Plan:
        """How long, and what counts."""
        monitor = self.train.monitor or ("loss" if self.held_out is None else "val_loss")
        return Plan(self.train.epochs, monitor, self.train.patience, checkpoint_every)

    @cached_property
    def sides(self) -> dict[str, Dataset]:
        """The datasets, by what they are for."""
        sides = {"data": self.data}
        return sides if self.validation is None else sides | {"validation": self.validation}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """What tells these data from others."""
        dtype = array_dtype(self.network.engine)
        return {name: fingerprint(side, dtype, self.per_step) for name, side in self.sides.items()}

    @cached_property
    def scales(self) -> Scales:
        """How the training part is scaled; the same whenever it is measured."""
        method = self.train.scaling
        if method is None:
            return Scales()
        inputs = Scaling.of(method, feature_statistics(self.data, self.numbers))
        if not scales_targets(self.network.layers, self.train.loss):
            return Scales(inputs)
        found = target_statistics(self.data, self.numbers, per_step=self.per_step)
        return Scales(inputs, None if found is None else Scaling.of(method, found))

    @cached_property
    def learner(self) -> Learner:
        """The network with its loss and updates."""
        train, F = self.train, self.network.output_size
        weights = class_weights(self.config, F, self.data, self.numbers, self.per_step)
        updates = Updates(
            make_optimiser(train.optimizer.model_dump()),
            make_schedule(train.schedule.model_dump(exclude_none=True), epochs=train.epochs),
            clip_norm=train.clip_norm,
            clip_value=train.clip_value,
            steps_per_epoch=self._updates_per_epoch(),
        )
        criterion = Criterion(self._targets(), weights, train.label_smoothing)
        return Learner(self.network, criterion, updates, seed=train.seed, truncate=train.truncate)

    @cached_property
    def source(self) -> Source:
        """Batches of the training part."""
        engine = self.network.engine
        source = DatasetSource(self._sampler, array_dtype(engine), self.per_step, self.scales)
        device = getattr(engine, "hardware", None)
        if device is None or self.train.truncate is not None:  # pieces are cut in NumPy's memory
            return source
        from lstm_cli.api.reading_ahead import ReadingAhead

        return ReadingAhead(source, device)

    def validate(self, stop: Callable[[], bool]) -> Validation:
        """Measures what is held out, if anything is."""
        if self.held_out is None:
            return nothing_held_out
        twin = Network(self.network.layers, self.network.weights, self.network.engine)
        return HeldOut(self.held_out, self.per_step, self.scales, twin, self.metrics, stop)

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
                raise targets_beyond(side.files.layouts)
        if self.validation is not None:
            need_same_form(self.data, self.validation, self.per_step)
        if self.train.scaling is not None:
            need_foldable(self.network.layers)
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

    def _targets(self) -> Targets:
        info = self.data.targets
        name = "targets" if info is None else info.name
        return Targets(self.train.loss, self.per_step, self.network.output_size, name)

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
