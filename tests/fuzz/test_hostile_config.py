"""Any text and any mapping is a config, or a ConfigError lists its problems."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lstm_cli.config import Config, from_mapping, from_text, load
from lstm_cli.config.yaml import parse
from lstm_cli.errors import ConfigError

SOUND = """\
model:
  input_size: 12
  steps: 5
  init: {scheme: orthogonal, seed: 4}
  layers:
    - &first {type: lstm, hidden_size: 3, bidirectional: true, activation: [tanh, relu]}
    - type: gru
      hidden_size: 0x1F
      clip: 1e-3
      recurrent_activation: {name: hard_sigmoid, alpha: .2}
    - {<<: *first, peepholes: true, projection_size: 2}
    - {type: flatten}
    - {type: dropout, rate: 0.5}
    - {type: dense, units: 9, activation: softmax}
weights: "../data/a\\u00e9.safetensors"
data: {inputs: x, window: {length: 3, stride: 2}, layout: series}
train:
  loss: cross_entropy
  optimizer: {type: sgd, momentum: 0.9, nesterov: true}
  schedule: {type: cosine, warmup_epochs: 2}
  class_weights: {0: 1.5, b: 2}
  validation: words.h5:/test
  monitor: val_loss
"""

PIECES = [
    "", " ", "\n", "\t", ":", ": ", "- ", "[", "]", "{", "}", ",", "&a", "*a", "*first", "!",
    "!!int ",
    "!!python/name:os.system ", "|", ">", "'", '"', "#", "%", "@", "`", "?", "<<", "---", "...",
    "~", "null", "true", "yes", "-1", "0", "1e999", ".nan", "9" * 400, "1_0", "é",
    "\u2028", "\0", "\ufeff",
    '"\\ud800"', '"\\x00"', '"\\e[2J"', "lstm", "model", "layers", "type", "softmax",
    "%YAML 1.2\n---\n",
]  # fmt: skip


def config_or_error(read: Callable[[], Config]) -> bool:
    """Whether a text is a config; its error must be complete and printable."""
    try:
        config = read()
    except ConfigError as caught:
        error = caught
    else:
        assert from_text(config.to_yaml(), config.source, None) == config
        return True
    assert error.problems
    assert str(error).encode()
    assert all(problem.what and problem.where for problem in error.problems)
    return False


def mutated(text: str, chance: random.Random) -> str:
    """The text with a few characters or lines replaced, moved, doubled or cut out."""
    for _ in range(chance.randint(1, 3)):
        begin = chance.randrange(len(text) + 1)
        end = min(len(text), begin + chance.choice([0, 1, 1, 2, 5, 20]))
        other = chance.randrange(len(text) + 1)
        new = chance.choice([*PIECES, text[other : other + 9], text[begin:end] * 2])
        text = text[:begin] + new + text[end:]
    return text


def test_the_unchanged_text_is_sound() -> None:
    assert config_or_error(lambda: from_text(SOUND, "a.yaml", None))


@pytest.mark.parametrize("start", range(8))
def test_mutated_configs(start: int) -> None:
    chance = random.Random(start)
    sound = sum(
        config_or_error(lambda: from_text(mutated(SOUND, chance), "a.yaml", None))
        for _ in range(80)
    )
    assert sound < 80, "mutations must break something"


@seed(7)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_any_text(text: str) -> None:
    config_or_error(lambda: from_text(text, "a.yaml", None))


@seed(8)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=40), max_size=3), st.integers(-(2**70), 2**70))
def test_any_override(overrides: list[str], number: int) -> None:
    config_or_error(lambda: from_text(SOUND, "a.yaml", None, overrides, number))


PATHS = st.lists(
    st.sampled_from(
        ["model", "layers", "0", "1", "9", "type", "train", "optimizer", "class_weights", "data",
         "window", "init", "seed", "activation", "name", "steps", "weights", "", "x"]
    ),
    min_size=1,
    max_size=5,
).map(".".join)  # fmt: skip


@seed(9)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.builds("{}={}".format, PATHS, st.sampled_from(PIECES)), max_size=3))
def test_any_value_at_known_paths(overrides: list[str]) -> None:
    config_or_error(lambda: from_text(SOUND, "a.yaml", None, overrides))


KEYS = st.one_of(
    st.sampled_from(
        ["model", "input_size", "layers", "type", "hidden_size", "units", "activation", "name",
         "alpha", "train", "loss", "optimizer", "schedule", "class_weights", "data", "window",
         "validation", "normalize", "init", "seed", "weights", "steps"]
    ),
    st.text(max_size=3),
    st.integers(),
    st.booleans(),
    st.none(),
    st.tuples(st.integers()),
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=2),
    st.sampled_from(["lstm", "dense", "mse", "sgd", "tanh", "softmax", 10**400, 1j, object(), {1}]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=20,
)


@seed(10)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping(mapping: dict[Any, Any]) -> None:
    config_or_error(lambda: from_mapping(mapping))


@seed(11)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_layer_and_training(layer: dict[Any, Any], train: dict[Any, Any]) -> None:
    kinds = ["lstm", "gru", "rnn", "dense", "dropout", "flatten"]
    layers = [{**layer, "type": kind} for kind in kinds] + [layer]
    model = {"input_size": 3, "layers": layers}
    config_or_error(lambda: from_mapping({"model": model, "train": {"loss": "mse", **train}}))


@pytest.mark.parametrize("start", range(40))
def test_any_bytes(tmp_path: Path, start: int) -> None:
    chance = random.Random(start)
    path = tmp_path / "a.yaml"
    heads = [b"", b"\x89HDF", b"PK", b"\xff\xfe", b"\xef\xbb\xbf", b"model:\n  "]
    path.write_bytes(chance.choice(heads) + chance.randbytes(chance.randrange(200)))
    config_or_error(lambda: load(path))


def merges(keys: int) -> str:
    """A mapping of so many keys, merged 300 times into one that is merged 300 times."""
    many = "".join(f"  k{k}: {k}\n" for k in range(keys))
    once, twice = (", ".join([f"*{name}"] * 300) for name in "mn")
    return f"m: &m\n{many}n: &n {{<<: [{once}]}}\nmodel: {{<<: [{twice}]}}\n"


LAYERS = "model:\n  input_size: 3\n  layers:\n"
WRONG = ", ".join(f"hidden_siz{k}: 1" for k in range(40))
GROWING = {
    "merges of 20 keys": merges(20),
    "merges of 900 keys": merges(900),
    "merges of one another": "a0: &a0 {x: 1}\n"
    + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 30)),
    "overridden merges": "a: &a {" + ", ".join(f"k{k}: 1" for k in range(900)) + "}\n"
    "b: &b {<<: [" + ", ".join(["*a"] * 900) + "]}\nc: [" + ", ".join(["*b"] * 900) + "]\n",
    "a flow sequence": "[" + "1," * 200_000 + "]",
    "many keys": LAYERS + "".join(f"  input_siz{k}: 1\n" for k in range(14_000)),
    "duplicate keys": "data: {}\n" * 14_000,
    "long unknown keys": "".join(f"{'a' * 500}{k}: 1\n" for k in range(900)),
    "digits": "model: " + "9" * 400_000,
    "hexadecimal digits": "model: 0x" + "f" * 400_000,
    "an exponent": "model: 1e" + "9" * 400_000,
    "a long text": "model: " + "a " * 200_000,
    "escapes": 'model: "' + "\\n" * 200_000 + '"',
    "deep brackets": "model: " + "[" * 15 + "1," * 9000 + "]" * 15,
    "10,000 layers": LAYERS + "    - {type: lstm, hidden_size: 3}\n" * 10_000,
    "wrong layers": LAYERS + "    - {type: lstm, hiden_size: 3, peephole: 1, clipp: 3}\n" * 500,
    "a wrong layer again": f"{LAYERS}    - &a {{type: lstm, {WRONG}}}\n" + "    - *a\n" * 490,
}  # fmt: skip


@pytest.mark.parametrize("text", GROWING.values(), ids=GROWING)
def test_work_is_bounded_and_so_is_what_is_printed(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        from_text(text, "a.yaml", None)
    assert time.process_time() - began < 5  # about one second on a quiet machine
    assert len(str(caught.value)) < 40_000


def test_a_mapping_with_one_part_in_many_places_is_bounded() -> None:
    value: Any = [1] * 9
    for _ in range(9):
        value = [value] * 9
    with pytest.raises(ConfigError, match="too many values"):
        from_mapping({"model": value})


def test_the_most_layers_there_may_be_are_read_and_read_back() -> None:
    sound = LAYERS + "    - {type: lstm, hidden_size: 3, peepholes: true}\n" * 500
    config = from_text(sound, "a.yaml", None)
    assert from_text(config.to_yaml(), "a.yaml", None) == config
    with pytest.raises(ConfigError) as caught:
        from_text(sound + "    - {type: dense, units: 1}\n", "a.yaml", None)
    (problem,) = caught.value.problems
    assert problem.what == "model.layers is too long"
    assert problem.expected == "a list, not empty and at most 500 items"
    assert problem.found == "a list of 501 items"


LAUGHS = "a: &a [" + "x, " * 9 + "]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(9))}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip
MERGE_LAUGHS = "a: &a {<<: [*a, *a, *a]}"


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGE_LAUGHS, "a: &a [*a]", "[" * 3000, "{a: " * 3000, "- " * 3000],
    ids=["laughs", "merged laughs", "cycle", "brackets", "braces", "dashes"],
)
def test_growth_is_bounded(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=r"too large|too deeply"):
        parse(text, "a.yaml")
    assert time.perf_counter() - began < 10


def test_a_huge_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="too large"):
        parse("#" * (1 << 20) + "#", "a.yaml")
