"""The training loop without files: interrupted and resumed anywhere, it ends in the same bits."""

from __future__ import annotations

import json

import networks
import numpy as np
import pytest

from lstm_cli.cells.activations import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec
from lstm_cli.errors import ConfigError, DataError
from lstm_cli.network.network import Network
from lstm_cli.training.checkpoint import Checkpoint, Progress
from lstm_cli.training.interfaces import TrainingBatch
from lstm_cli.training.loop import Loop, LoopIO, StopRule
from lstm_cli.training.losses import Criterion
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

N, T, D, F, SIZE, EPOCHS = 11, 6, 3, 2, 4, 3


class DeadError(Exception):
    """The process is gone."""


class Source:
    """Ragged sequences in memory; the order of an epoch is a function of its number."""

    def __init__(self, stateful=False, classes=False):
        rng = np.random.default_rng(4)
        self.x = rng.standard_normal((N, T, D))
        self.lengths = networks.random_lengths(N, T, 2)
        self.targets = rng.integers(0, F, (N, T)) if classes else rng.standard_normal((N, T, F))
        self.stateful = stateful
        self.places = None

    def order(self, epoch):
        numbers = np.random.default_rng(epoch).permutation(N)
        if self.stateful:
            numbers = np.arange(N)
        return [numbers[k : k + SIZE] for k in range(0, N, SIZE)]

    def read(self, numbers):
        lengths = self.lengths[numbers]
        file = 1 if self.stateful and numbers[0] >= 2 * SIZE else 0
        return TrainingBatch(self.x[numbers], self.targets[numbers], lengths, numbers, file)

    def raw(self, values):
        return values


class Store:
    """A disk: what was written last, copied; may die before or after a write."""

    def __init__(self, disk=None, dies_at=None):
        self.disk = disk if disk is not None else {"rows": [], "best": None, "checkpoint": None}
        self.dies_at, self.writes = dies_at, 0

    def _write(self):
        if self.dies_at is not None and self.writes >= self.dies_at:
            raise DeadError
        self.writes += 1

    def save_best(self, weights):
        self._write()
        self.disk["best"] = {name: value.copy() for name, value in weights.items()}

    def append(self, row):
        self._write()
        self.disk["rows"].append({k: v for k, v in row.items() if k != "seconds"})

    def save(self, checkpoint):
        self._write()
        numbers = json.loads(json.dumps(checkpoint.progress.numbers()))
        tensors = {name: np.array(value) for name, value in checkpoint.tensors.items()}
        self.disk["checkpoint"] = Checkpoint(Progress.from_numbers(numbers), tensors)


class Nobody:
    def on_batch_end(self, progress, batches, loss):
        self.last = loss

    def on_epoch_end(self, progress, row, improved):
        self.row = row


class After:
    """Asks to stop after so many questions."""

    def __init__(self, questions):
        self.left = questions

    def __call__(self):
        self.left -= 1
        return self.left < 0


def make(store, *, stop=lambda: False, kind="plain", plan=None, validation=None):
    stateful, classes = kind == "stateful", kind == "classes"
    spec = networks.recurrent("lstm", 5, D, stateful=stateful, recurrent_dropout=0.2)
    last = DenseSpec(1, 5, F, None if classes else Activation("identity"))
    specs = (spec, last)
    network = Network(specs, networks.random_weights(specs), ReferenceEngine("float32", 1))
    loss = "cross_entropy" if classes else "mse"
    updates = Updates(
        make_optimizer({"type": "adam", "learning_rate": 0.02}),
        make_schedule({"type": "reduce_on_plateau", "patience": 1}, epochs=EPOCHS),
        clip_norm=0.7,
    )
    truncate = 4 if kind == "truncated" else None
    criterion = Criterion(TargetFormat(loss, True, F, "targets"))
    train_step = TrainStep(network, criterion, updates, seed=3, truncate=truncate)
    io = LoopIO(
        Source(stateful, classes), validation or (lambda weights: {}), store, Nobody(), stop
    )
    loop = Loop(
        train_step,
        plan or StopRule(EPOCHS, "loss", checkpoint_every=0),
        io,
        lambda: Metrics(loss, per_step=True, features=F, name="targets"),
    )
    if store.disk["checkpoint"] is not None:
        epochs = store.disk["checkpoint"].progress.epoch
        store.disk["rows"] = [row for row in store.disk["rows"] if row["epoch"] <= epochs]
        loop.resume(store.disk["checkpoint"])
    return loop


def assert_same(actual, expected):
    assert actual["rows"] == expected["rows"]
    for name, value in expected["best"].items():
        assert actual["best"][name].tobytes() == value.tobytes(), name
    a, b = actual["checkpoint"], expected["checkpoint"]
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in b.tensors.items():
        assert a.tensors[name].tobytes() == value.tobytes(), name
    told = [{**one.progress.numbers(), "seconds": None} for one in (a, b)]
    assert told[0] == told[1]


@pytest.fixture(scope="module", params=["plain", "classes", "truncated", "stateful"])
def undisturbed(request):
    store = Store()
    assert make(store, kind=request.param).run() == "epochs"
    return request.param, store


def test_whichever_write_a_process_dies_at(undisturbed):
    kind, whole = undisturbed
    for dies_at in range(whole.writes):
        store = Store(dies_at=dies_at)
        with pytest.raises(DeadError):
            make(store, kind=kind).run()
        again = Store(store.disk)
        assert make(again, kind=kind).run() == "epochs"
        assert_same(again.disk, whole.disk)


def test_after_whichever_batch_it_is_asked_to_stop(undisturbed):
    kind, whole = undisturbed
    ends = []
    for questions in range(14):
        store = Store()
        end = make(store, kind=kind, stop=After(questions)).run()
        ends.append(end)
        if end == "interrupted":
            assert store.disk["checkpoint"] is not None or questions == 0
            assert make(store, kind=kind).run() == "epochs"
        assert_same(store.disk, whole.disk)
    assert ends[0] == "interrupted"
    assert ends[-1] == "epochs"


def test_how_often_it_is_saved_changes_nothing(undisturbed):
    kind, whole = undisturbed
    store = Store()
    make(store, kind=kind, plan=StopRule(EPOCHS, "loss", checkpoint_every=1e9)).run()
    assert store.writes < whole.writes
    assert_same(store.disk, whole.disk)


def test_the_run_learns(undisturbed):
    _, whole = undisturbed
    losses = [row["loss"] for row in whole.disk["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert [row["epoch"] for row in whole.disk["rows"]] == [1, 2, 3]


def test_stateful_layers_start_anew_with_each_file_and_epoch():
    loop = make(Store(), kind="stateful", plan=StopRule(2, "loss"))
    starts, ends = [], []
    step = loop.train_step.step

    def watched(x, targets, lengths, state, **more):
        report = step(x, targets, lengths, state, **more)
        starts.append(state)
        ends.append(report.states())
        return report

    loop.train_step.step = watched
    loop.run()
    # Batches 0 and 1 are of one file, 2 of another; then comes the next epoch.
    assert [state is None for state in starts] == [True, False, True] * 2
    for k in (1, 4):
        for actual, expected in zip(starts[k][0], ends[k - 1][0], strict=True):
            np.testing.assert_array_equal(actual, expected)
            assert np.abs(actual).max() > 0


def scripted(values):
    """Validation that gives these losses."""
    left = iter(values)
    return lambda weights: {"loss": next(left)}


def test_the_best_weights_are_kept_and_patience_ends():
    store = Store()
    plan = StopRule(50, "val_loss", patience=2)
    losses = [3.0, 2.0, 2.5, 2.0, 1.0]  # as good as the best is not better
    loop = make(store, plan=plan, validation=scripted(losses))
    assert loop.run() == "patience"
    assert loop.progress.epoch == 4
    assert (loop.progress.best, loop.progress.best_epoch) == (2.0, 2)
    at_two = Store()
    make(at_two, plan=StopRule(2, "val_loss"), validation=scripted(losses)).run()
    for name, value in at_two.disk["best"].items():
        np.testing.assert_array_equal(store.disk["best"][name], value)
        assert not np.array_equal(value, loop.train_step.weights[name])


def test_a_larger_accuracy_is_better():
    store = Store()
    values = iter([0.5, 0.7, 0.6, 0.8])
    plan = StopRule(4, "val_accuracy")
    loop = make(store, plan=plan, validation=lambda weights: {"accuracy": next(values)})
    loop.run()
    assert (loop.progress.best, loop.progress.best_epoch) == (0.8, 4)


def test_more_epochs_go_on_where_fewer_ended():
    whole = Store()
    make(whole, plan=StopRule(5, "loss")).run()
    store = Store()
    make(store, plan=StopRule(2, "loss")).run()
    assert make(store, plan=StopRule(2, "loss")).run() == "epochs"
    make(store, plan=StopRule(5, "loss")).run()
    assert_same(store.disk, whole.disk)


def test_an_interrupted_validation_is_done_again():
    whole = Store()
    make(whole, plan=StopRule(2, "val_loss"), validation=scripted([1.0, 2.0])).run()
    store, answers = Store(), iter([{"loss": 1.0}, None])
    loop = make(store, plan=StopRule(2, "val_loss"), validation=lambda weights: next(answers))
    assert loop.run() == "interrupted"
    assert store.disk["checkpoint"].progress.batch == 3
    make(store, plan=StopRule(2, "val_loss"), validation=scripted([2.0])).run()
    assert_same(store.disk, whole.disk)


def test_a_metric_that_does_not_exist():
    with pytest.raises(ConfigError, match="val_auc"):
        make(Store(), plan=StopRule(2, "val_auc"), validation=scripted([1.0])).run()


def test_nothing_counts():
    loop = make(Store())
    loop.io.source.lengths[:] = 0
    loop.io.source.places = type("Places", (), {"sequence": lambda self, n: f"sequence {n}"})()
    with pytest.raises(DataError, match="nothing can be learned"):
        loop.run()
