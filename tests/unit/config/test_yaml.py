"""Texts and files of a config: scalars of YAML 1.2, lines, and files that are no config."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from lstm_cli.config import load
from lstm_cli.config.yaml import dump, parse
from lstm_cli.errors import ConfigError, Problem

NAME = "a.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+2", 100.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("010", 10),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("", None),
        ("nUll", "nUll"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
        ("1e", "1e"),
        (".", "."),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"key: {text}\n", NAME).value["key"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse(".NaN", NAME).value)


@pytest.mark.parametrize("text", ["yes", "0o17", "1_000", "010", "1e-3", "true", "~", "", "é\n ü"])
def test_dumped_strings_come_back_as_strings(text: str) -> None:
    assert parse(dump({"key": text}), NAME).value == {"key": text}


def test_every_key_and_item_knows_its_line() -> None:
    text = "a:\n  b: 1\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n"
    lines = parse(text, NAME).lines
    assert lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
        ("a", "c", 1, "e"): 6,
    }


def test_a_duplicate_key_names_both_lines_and_the_rest_is_read() -> None:
    parsed = parse("a:\n  b: 1\n  c: 2\n  b: 3\nd: 4\n", NAME)
    (problem,) = parsed.problems
    assert problem.what == "a.b is given twice"
    assert problem.where == ("a.yaml line 2", "a.yaml line 4")
    assert parsed.value == {"a": {"b": 1, "c": 2}, "d": 4}


def test_merge_keys_bring_in_what_is_not_given() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: &two {b: 3, c: 4}\nall: {<<: [*one, *two], a: 9}\n"
    parsed = parse(text, NAME)
    assert parsed.value["all"] == {"a": 9, "b": 2, "c": 4}
    assert parsed.lines["all", "c"] == 2
    assert parsed.lines["all", "a"] == 3


def test_merging_no_mapping_is_a_problem() -> None:
    (problem,) = parse("a: {<<: 3}", NAME).problems
    assert "merges a value that is no mapping" in problem.what


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system [ls]", "a: !!int x", "a: !mine {b: 1}", "!!set {a}"],
)
def test_tags_are_problems(text: str) -> None:
    (problem,) = parse(text, NAME).problems
    assert problem.found is not None
    assert problem.found.startswith("!")
    assert problem.where == ("a.yaml line 1",)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("a: 1\nb: c: d", "a.yaml line 2, column 5", "one `key: value` a line"),
        ("a:\n\t- b", "a.yaml line 2, column 1", "spaces"),
        ("a: [1, 2", "a.yaml line 1, column 9", "`,` or a closing bracket"),
        ("a:\n  - 1\n b: 2", "a.yaml line 3, column 2", "the indentation of the lines above"),
        ('a: "b', "a.yaml line 1, column 6", "the end of a quote or bracket"),
        ("a: *b", "a.yaml line 1, column 4", "an alias (`*name`) after its anchor (`&name`)"),
        ("--- 1\n--- 2", "a.yaml line 2, column 1", "one document"),
    ],
)
def test_a_syntax_error_has_line_column_and_what_was_expected(
    text: str, place: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, NAME)
    (problem,) = caught.value.problems
    assert problem.what.startswith("a.yaml is not valid YAML")
    assert problem.where == (place,)
    assert problem.expected == expected


@pytest.mark.parametrize("text", ["a: \x01", '"\\UFFFFFFFF"', "%YAML 9.9\n---\na", "a: \ud800"])
def test_what_pyyaml_chokes_on_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, NAME)


def test_half_a_character_is_a_problem_and_never_reaches_a_message() -> None:
    parsed = parse('a: "\\ud800"', NAME)
    assert "lone surrogate" in parsed.problems[0].what
    parsed.value["a"].encode()


def test_an_alias_used_twice_is_fine() -> None:
    assert parse("a: &a [1]\nb: [*a, *a]", NAME).value["b"] == [[1], [1]]


def test_integers_beyond_pythons_limit_on_digits_are_read() -> None:
    assert parse("9" * 5000, NAME).value == math.inf


SOUND = "model: {input_size: 3, layers: [{type: lstm, hidden_size: 4}]}\n"


def refused(path: Path) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    return problem


def test_a_missing_file_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "vowels.yaml").write_text(SOUND)
    problem = refused(tmp_path / "vowel.yaml")
    assert problem.what == f"there is no file {tmp_path / 'vowel.yaml'}"
    assert problem.hint == "did you mean `vowels.yaml`?"


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "does not exist either" in str(refused(tmp_path / "no" / "a.yaml").hint)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vowels.yaml").write_text(SOUND)
    problem = refused(tmp_path)
    assert problem.what == f"{tmp_path} is a folder"
    assert problem.hint == f"did you mean {tmp_path / 'vowels.yaml'}?"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(SOUND)
    path.chmod(0)
    assert "cannot be read" in refused(path).what


def test_a_name_no_file_can_have() -> None:
    assert "cannot be read" in refused(Path("a\0b")).what


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    problem = refused(path)
    assert problem.what == f"{path} is empty"
    assert "model:" in str(problem.hint)


@pytest.mark.parametrize(
    ("text", "found"), [("- a", "a list of 1 item"), ("just words", "'just words'"), ("3", "3")]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    problem = refused(path)
    assert problem.expected == "a mapping with the key model"
    assert problem.found == found


def test_an_hdf5_file_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["inputs"] = np.arange(6.0)
    problem = refused(path)
    assert problem.found == "an HDF5 file"
    assert "CONFIG DATA" in str(problem.hint)


def test_a_safetensors_file_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"layers.0.bias": np.arange(8.0)}, path)
    problem = refused(path)
    assert problem.found == "a safetensors file"
    assert "--weights" in str(problem.hint)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"CDF\x01", "a NetCDF file"),
        ("model: ü".encode("utf-16"), "text in UTF-16"),
        (b"abc\0def", "a binary file"),
    ],
)
def test_other_binaries(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert str(refused(path).found).startswith(found)


def test_text_in_latin_1_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("model:\n  # gr\u00fcn\n".encode("latin-1"))
    problem = refused(path)
    assert problem.what == f"{path} is not text in UTF-8"
    assert problem.where == (f"{path} line 2",)
    assert problem.found == "byte 0xfc"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.replace("\n", "\r\n").encode() + b"weights: w\r\n")
    config = load(path)
    assert config.name == "a"
    assert config.weights == tmp_path / "w"
    assert config.where("weights") == f"{path} line 2"


def test_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    layers = [{"type": "lstm", "hidden_size": 4}]
    path.write_text(json.dumps({"model": {"input_size": 3, "layers": layers}}))
    assert load(path).specs == load_text(tmp_path, SOUND)


def load_text(folder: Path, text: str) -> object:
    path = folder / "sound.yaml"
    path.write_text(text)
    return load(path).specs
