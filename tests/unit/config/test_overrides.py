"""``--set`` and ``--seed``: what they change, what they win over, and how they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lstm_cli.config import Config, from_mapping, from_text
from lstm_cli.errors import Problem

Only = Callable[..., Problem]

TEXT = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 4, clip: 5}
    - {type: dense, units: 2}
train: {loss: mse, optimizer: {type: sgd, momentum: 0.5}}
"""


def overridden(*overrides: str, seed: int | None = None) -> Config:
    return from_text(TEXT, "mine.yaml", Path("configs"), overrides, seed)


def test_an_element_of_a_list() -> None:
    config = overridden("model.layers.0.hidden_size=33")
    assert [spec.output_size for spec in config.specs] == [33, 2]
    assert config.specs[1].input_size == 33


@pytest.mark.parametrize(
    ("override", "same_as"),
    [
        ("train.optimizer.learning_rate=1e-4", "train.optimizer.learning_rate=0.0001"),
        ("model.layers.1.activation=softmax", "model.layers.1.activation={name: softmax}"),
        (
            "model.layers.0={type: gru, hidden_size: 7}",
            "model.layers.0={hidden_size: 7, type: gru}",
        ),
        ("train.optimizer=adam", "train.optimizer={type: adam}"),
        (" model.layers.0.hidden_size =6", "model.layers.0.hidden_size= 6"),
    ],
)
def test_values_are_yaml(override: str, same_as: str) -> None:
    assert overridden(override) == overridden(same_as)
    assert overridden(override) != overridden()


def test_a_value_with_an_equals_sign() -> None:
    assert overridden("weights=a=b.h5").weights == Path("a=b.h5")


def test_sections_that_are_missing_are_made() -> None:
    config = overridden("data.window.length=8", "model.init.scheme=zero")
    assert config.data.window is not None
    assert (config.data.window.length, config.init_scheme) == (8, "zero")
    bare = from_mapping({"model": {"input_size": 1, "layers": [{"type": "dense", "units": 1}]}})
    assert bare.train is None
    assert from_text(bare.to_yaml(), "a", None, ["train.loss=mae"]).train is not None


def test_an_empty_value_takes_away() -> None:
    config = overridden("train=")
    assert config.train is None
    cell = overridden("model.layers.0.clip=").specs[0].cells[0]  # type: ignore[union-attr]
    assert cell.clip is None


def test_the_last_one_wins_and_knows_its_place() -> None:
    config = overridden("model.input_size=5", "model.input_size=6")
    assert config.model.input_size == 6
    assert config.where("model", "input_size") == "--set model.input_size=6"
    assert config.where("model", "layers", 1, "units") == "mine.yaml line 5"


def test_what_is_below_an_override_is_of_the_override() -> None:
    config = overridden("model.layers.0={type: gru, hidden_size: 7}")
    option = "--set model.layers.0={type: gru, hidden_size: 7}"
    assert config.where("model", "layers", 0, "hidden_size") == option
    assert config.where("model", "layers", 0) == option
    assert config.where("model", "layers") == "mine.yaml line 3"


def test_the_mapping_is_not_changed() -> None:
    layer = {"type": "dense", "units": 1}
    given = {"model": {"input_size": 1, "layers": [layer]}}
    from_mapping(given, ["model.layers.0.units=9", "data.inputs=x"], seed=3)
    assert given == {"model": {"input_size": 1, "layers": [layer]}}
    assert layer == {"type": "dense", "units": 1}


@pytest.mark.parametrize(
    ("override", "what", "hint"),
    [
        ("model.layers", "'--set model.layers' is no setting",
         "--set model.layers.0.hidden_size=128"),
        ("=3", "'--set =3' is no setting", None),
        ("model.layers[0]units=3", "'--set model.layers[0]units=3' is no setting",
         "--set 'model.layers[0].units=3'"),
        ("model..input_size=3", "'--set model..input_size=3' is no setting", None),
        ("model.layers.2.units=3", "model.layers[2].units cannot be set",
         "--set model.layers.0.units=…"),
        ("model.layers.-1.units=3", "model.layers[-1].units cannot be set",
         "--set model.layers.1.units=…"),
        ("model.layers[-2].units=3", "model.layers[-2].units cannot be set",
         "--set model.layers.0.units=…"),
        ("model.layers.first.units=3", "model.layers.first.units cannot be set", None),
        ("model.layers.5=3", "model.layers[5] cannot be set", None),
        ("model.input_size.x=3", "model.input_size.x cannot be set", None),
        ("train.loss.x.y=3", "train.loss.x.y cannot be set", None),
        ("model.layers.0.units=[1", "--set model.layers.0.units=[1 is not valid YAML", None),
        ("model.input_size=!!python/none x", "the config has a tag that does not fit", None),
        ("model.input_size={a: 1, a: 2}", "a is given twice", None),
        ("model.inputsize=3", "model.inputsize is not a key of model",
         "did you mean `input_size`?"),
        ("model.3=3", "model[3] is not a key of model", None),
        ("model.input_size=1_0", "model.input_size has a value of the wrong type",
         "write `input_size: 10`, without quotes or separators"),
        ("model.layers.0.clip=yes", "model.layers[0].clip has a value of the wrong type", None),
    ],
)  # fmt: skip
def test_faults_name_the_option(
    problems: Callable[..., list[Problem]], override: str, what: str, hint: str | None
) -> None:
    problem = problems(TEXT, override)[0]
    assert problem.what.startswith(what)
    assert problem.where == (f"--set {override}",)
    assert hint is None or problem.hint == hint


@pytest.mark.parametrize(
    ("overrides", "same_as"),
    [
        (["train.optimizer.learning_rate=1"], ["train.optimizer={type: adam, learning_rate: 1}"]),
        (["train.optimizer=sgd", "train.optimizer.momentum=0.5"],
         ["train.optimizer={type: sgd, momentum: 0.5}"]),
        (["train.optimizer={l2: 1}"], ["train.optimizer={type: adam, l2: 1}"]),
        (["train.schedule.warmup_steps=3"], ["train.schedule={type: constant, warmup_steps: 3}"]),
        (["train.schedule=step", "train.schedule.every=3"],
         ["train.schedule={type: step, every: 3}"]),
        (["model.layers.0.activation=elu", "model.layers.0.activation.alpha=2"],
         ["model.layers.0.activation={name: elu, alpha: 2}"]),
        (["model.layers[0].bidirectional=true", "model.layers[0].cell_activation=[tanh, elu]",
          "model.layers[0].cell_activation[1].alpha=2"],
         ["model.layers.0.bidirectional=true",
          "model.layers.0.cell_activation=[tanh, {name: elu, alpha: 2}]"]),
    ],
)  # fmt: skip
def test_a_key_below_a_default_or_a_bare_name_keeps_the_kind(
    overrides: list[str], same_as: list[str]
) -> None:
    first = ["train={loss: mse}"]
    assert overridden(*first, *overrides) == overridden(*first, *same_as)
    assert overridden(*first, *overrides) != overridden(*first)


@pytest.mark.parametrize(
    "element", ["layers[0]", "layers.[0]", "layers[ 0 ]", "layers.0", "layers. 0"]
)
def test_an_element_as_messages_print_it(element: str) -> None:
    assert overridden(f"model.{element}.hidden_size=33").specs[0].output_size == 33


def test_a_path_begins_where_it_is_written() -> None:
    text = TEXT.replace("mse,", "mse, validation: v.h5:/a,") + "weights: ../w.h5\n"
    folder = Path("configs")
    config = from_text(text, "mine.yaml", folder)
    assert (config.weights, config.validation) == (Path("w.h5"), "configs/v.h5:/a")
    typed = from_text(text, "mine.yaml", folder, ["weights=x/w.h5", "train.validation=../v.h5:/b"])
    assert (typed.weights, typed.validation) == (Path("x/w.h5"), "../v.h5:/b")
    whole = from_text(text, "mine.yaml", folder, ["train={loss: mse, validation: v.h5}"])
    assert (whole.weights, whole.validation) == (Path("w.h5"), "v.h5")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_path_is_shortened_unless_a_link_makes_it_another(tmp_path: Path) -> None:
    (tmp_path / "far" / "configs").mkdir(parents=True)
    (tmp_path / "configs").symlink_to(tmp_path / "far" / "configs")
    config = from_text(TEXT + "weights: ../w.h5", "mine.yaml", tmp_path / "configs")
    assert config.weights == (tmp_path / "far" / "w.h5").resolve()
    straight = from_text(TEXT + "weights: ../w.h5", "mine.yaml", tmp_path / "far" / "configs")
    assert straight.weights == tmp_path / "far" / "w.h5"
    drive = from_text(TEXT, "mine.yaml", tmp_path, ["train.validation=v.h5:/"])
    assert drive.validation == "v.h5:/"


def test_seed_replaces_every_seed() -> None:
    config = overridden("model.init.seed=1", "train.seed=2", seed=99)
    assert config.train is not None
    assert (config.init_seed, config.train.seed) == (99, 99)
    assert config.where("train", "seed") == "--seed 99"


def test_seed_makes_no_section_of_training() -> None:
    config = overridden("train=", seed=7)
    assert config.train is None
    assert config.init_seed == 7


def test_no_seed_changes_nothing() -> None:
    config = overridden("model.init.seed=5")
    assert config.train is not None
    assert (config.init_seed, config.train.seed) == (5, 0)


def test_a_seed_out_of_range_is_the_options_fault(problems: Callable[..., list[Problem]]) -> None:
    problem = problems(TEXT, seed=-1)
    assert {p.what for p in problem} == {
        "model.init.seed is out of range",
        "train.seed is out of range",
    }
    assert {p.where for p in problem} == {("--seed -1",)}
