"""Setup of a training run: config, network and data, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

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
from lstm_cli.engines.protocols import array_dtype
from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    FlattenSpec,
    RecurrentSpec,
    biased,
    lacks_bias,
)
from lstm_cli.errors import ConfigError, UsageError, counted
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import (
    SCALED_LOSSES,
    Normalization,
    fold,
    fold_obstacle,
    scales_targets,
)
from lstm_cli.training.interfaces import Exchange, TrainingSource, Validation
from lstm_cli.training.loop import StopRule
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.micro_batches import ONE_RANK
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.workflows.data_notes import (
    SAMPLE_LOSS,
    input_dtype,
    itemize,
    lost_digits_note,
    lost_target_digits,
    misplaced_state_note,
)
from lstm_cli.workflows.model import Model
from lstm_cli.workflows.train.trainer import class_weights, make_train_step, train_section
from lstm_cli.workflows.train.training_data import (
    DatasetSource,
    Validator,
    fingerprint,
    missing_targets,
    no_validation,
)


class TrainingSetup:
    """A network, the data that it learns from, and the options of its training.

    Parameters
    ----------
    model
        Model to train: its weights change.
    config
        Config of the run, with the source of each value for errors.
    data, validation
        Datasets for training and validation. Without `validation`, a share of `data` is held
        out, or nothing.
    trained
        The model's weights were trained before, on inputs and targets in the units of the data.
        Random weights, and weights of a resumed run, are for scaled targets.
    exchange
        Exchange with other ranks.

    Attributes
    ----------
    train
        Section `train` of the config.
    numbers
        Indices of the training sequences; None: all.
    held_out
        Sampler of the validation sequences; None: there are none.
    notes
        Notes for the user.

    Raises
    ------
    ConfigError, DataError
        Model, config and data do not fit each other.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        data: SequenceData,
        validation: SequenceData | None,
        *,
        trained: bool = False,
        exchange: Exchange = ONE_RANK,
    ) -> None:
        self.exchange = exchange
        self.model, self.config, self.data, self.validation = model, config, data, validation
        self.train = train_section(config)
        self.network = model.network
        self.per_step = self.network.returns_sequences
        self.trained = trained
        self.notes: list[str] = []
        self._check()
        self.numbers, self.held_out = self._split()
        size = self.train.batch_size
        if (misplaced := misplaced_state_note(self.network, data, size, self.numbers)) is not None:
            self.notes.append(misplaced)

    @property
    def training_count(self) -> int:
        """Number of training sequences."""
        return self.data.count if self.numbers is None else len(self.numbers)

    @property
    def validation_count(self) -> int:
        """Number of sequences that are held out."""
        return 0 if self.held_out is None else len(self.held_out.numbers)

    def plan(self, checkpoint_every: float) -> StopRule:
        """Return the rule for the end of the run, with the metric that picks the best epoch."""
        monitor = self.train.monitor or ("loss" if self.held_out is None else "val_loss")
        return StopRule(self.train.epochs, monitor, self.train.patience, checkpoint_every)

    @cached_property
    def datasets(self) -> dict[str, SequenceData]:
        """Datasets by role, ``data`` and ``validation``."""
        datasets = {"data": self.data}
        return datasets if self.validation is None else datasets | {"validation": self.validation}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprints of the datasets, by role."""
        return {
            role: fingerprint(data, self._dtype(data), self.per_step)
            for role, data in self.datasets.items()
        }

    @cached_property
    def normalized_network(self) -> Network:
        """The network, with the normalization of its inputs by `train.normalize`.

        A network that normalizes its inputs already keeps its normalization. Weights that were
        trained before are changed to compute the same from normalized inputs, for scaled targets.
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
            x, y = (
                None if scaling is None else scaling.inverse for scaling in (inputs, self.targets)
            )
            network.set_weights(fold(network.layers, network.weights, x, y))
        network.normalization = network.normalization or inputs
        return network

    @cached_property
    def targets(self) -> Normalization | None:
        """Scaling of the targets while training; None: no scaling."""
        method = self.train.scaling
        if method is None or not scales_targets(self.network.layers, self.train.loss):
            return None
        statistics = target_statistics(self.data, self.numbers, per_step=self.per_step)
        return None if statistics is None else Normalization.from_statistics(method, statistics)

    def exported_tensors(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return all tensors of the trained network, for outputs in the units of the data."""
        scaling = self.normalized_network.normalization
        tensors = fold(self.network.layers, weights, None, self.targets)
        return tensors if scaling is None else tensors | scaling.tensors

    @cached_property
    def train_step(self) -> TrainStep:
        """The network with its loss, optimizer and schedule."""
        F, targets = self.network.output_size, self._targets()
        weights = class_weights(self.config, F, self.data, self.numbers, self.per_step)
        updates = self._updates_per_epoch()
        network, exchange = self.normalized_network, self.exchange
        return make_train_step(self.train, network, targets, weights, updates, exchange)

    @contextmanager
    def source(self) -> Iterator[TrainingSource]:
        """Open the source of training batches, which reads ahead where that pays."""
        dtype = self._dtype(self.data)
        source = DatasetSource(self._sampler, dtype, self.per_step, self.targets)
        # Truncation and micro-batches cut NumPy arrays.
        if self.train.truncate is not None or self.train.micro_batches > 1:
            yield source
            return
        from lstm_cli.workflows.pipeline import PrefetchingSource

        with PrefetchingSource(source, self.network.engine.feed()) as prefetching:
            yield prefetching

    def check_classes(self) -> None:
        """Read all class targets, so that a wrong class is an error before the run starts.

        Raises
        ------
        DataError
            A target is a class that the network does not have.
        """
        units = self.network.output_size
        classes = {"cross_entropy": units, "binary_cross_entropy": 2 if units == 1 else None}
        count = classes.get(self.train.loss)
        for data in self.datasets.values():
            if count is not None and data.targets is not None and data.targets.kind == "class":
                class_counts(data, classes=count, per_step=self.per_step)

    def validator(self, stop: Callable[[], bool]) -> Validation:
        """Return the validation on the held-out sequences; without any, it returns no metrics."""
        if self.held_out is None:
            return no_validation
        tensors = self.normalized_network.tensors
        network = Network(self.network.layers, tensors, self.network.engine)
        dtype = self._dtype(self.held_out.dataset)
        return Validator(
            self.held_out,
            dtype,
            self.per_step,
            network,
            self.targets,
            self.metrics,
            stop,
            self.exchange,
        )

    def metrics(self) -> Metrics:
        """Return empty metrics for an epoch."""
        targets = self._targets()
        return Metrics(
            targets.loss,
            per_step=targets.per_step,
            features=targets.features,
            name=targets.name,
        )

    def _check(self) -> None:
        for data in self.datasets.values():
            if data.targets is None:
                raise missing_targets(data)
            if not len(data.numbers):
                raise targets_beyond_error(data.files.layouts)
        if self.validation is not None:
            require_same_form(self.data, self.validation, self.per_step)
        self._check_normalization()
        self._check_truncation()
        self._check_ranks()
        stateful = [spec.index for spec in self.network.recurrent if spec.stateful]
        if stateful and isinstance(self.train.validation, float):
            raise ConfigError(
                f"layer {stateful[0]} is stateful: a held-out sequence would be missing from its "
                "row",
                expected="other data for validation, or none",
                found=f"a share of {self.train.validation:g}",
                where=self.config.where("train", "validation"),
                hint="--set train.validation=FILE.h5:/group",
            )

    def _dtype(self, data: SequenceData) -> str:
        if self.train.scaling is None:
            return input_dtype(self.network, data)
        return data.dtype_for_inputs(
            array_dtype(self.network.engine)
        )  # the stored values, to normalize

    def _check_normalization(self) -> None:
        """Raise if weights trained on raw inputs cannot be changed to take normalized ones."""
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
                f"train.normalize cannot continue from {self.model.weights_name}, which was "
                "trained on inputs that were not normalized",
                found=why,
                where=self.config.where("train", "normalize"),
                hint="--set train.normalize=false",
            )

    def lost_digits(self) -> tuple[str, ...]:
        """Return notes on inputs and targets whose digits the engine's dtype loses."""
        dtype, notes = array_dtype(self.network.engine), []
        normalized = self.train.scaling is not None
        if not normalized and (inputs := lost_digits_note(self.network, self.data)) is not None:
            notes.append(f"{inputs}; --set train.normalize=true keeps them")
        targets = []
        if self.targets is not None:
            targets = self.targets.roundings(dtype, SAMPLE_LOSS, "target")
        elif self.train.loss in SCALED_LOSSES:
            targets = lost_target_digits(self.network, self.data)
        if targets:
            notes.append(
                f"outputs in {dtype} cannot tell the targets apart: {itemize(targets)}; --dtype "
                "float64, in `train` and in `run`, keeps the digits"
            )
        return tuple(notes)

    def _check_truncation(self) -> None:
        """Raise if a layer reads whole sequences, which truncated backpropagation cuts."""
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

    def _check_ranks(self) -> None:
        """Raise if a rank would have no micro-batch in any batch."""
        ranks, parts = self.exchange.size, self.train.micro_batches
        if ranks > parts:
            raise UsageError(
                f"{counted(ranks, 'rank')} cannot share batches of {counted(parts, 'micro-batch')}",
                expected=f"train.micro_batches of at least {ranks}; it decides the bits of the "
                "result, the number of ranks does not",
                hint=f"--set train.micro_batches={ranks}",
            )

    def _split(self) -> tuple[Array | None, Sampler | None]:
        """Return the training sequences, None for all, and the sampler for validation."""
        share, size = self.train.validation, self.train.batch_size
        numbers = self.data.numbers
        usable = None if len(numbers) == self.data.count else numbers
        if self.validation is not None:
            indices, stateful = self.validation.numbers, self.model.stateful
            return usable, Sampler(self.validation, size, indices=indices, stateful=stateful)
        if not isinstance(share, float):
            return usable, None
        training, validation = hold_out(
            self.data,
            share,
            self.train.seed,
            per_step=self.per_step,
            classes=self.train.loss == "cross_entropy",
        )
        return training, Sampler(self.data, size, indices=validation)

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
        """Count the updates of the first epoch; with truncation, a batch makes several updates."""
        k = self.train.truncate
        if k is None or not self.per_step:
            return self._sampler.batches
        lengths = self.data.lengths()
        longest = [int(lengths[numbers].max()) for numbers in self._sampler.order(0)]
        return sum(max(1, -(-steps // k)) for steps in longest)
