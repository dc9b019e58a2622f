"""The JSON Schema for editors: descriptions everywhere, nothing unknown let through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lstm_cli.cells import FORMULAS
from lstm_cli.config import json_schema
from lstm_cli.config.schema import LAYERS, OPTIMIZERS, SCHEDULES


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def objects(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "top", schema
    yield from schema["$defs"].items()


def test_it_is_json_and_says_which_dialect(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {"model", "weights", "data", "train"}
    assert schema["required"] == ["model"]


def test_every_key_is_described_and_no_other_allowed(schema: dict[str, Any]) -> None:
    count = 0
    for name, section in objects(schema):
        assert section["additionalProperties"] is False, name
        for key, value in section["properties"].items():
            assert value.get("description", "").endswith("."), f"{name}.{key}"
            count += 1
    assert count > 80


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    used = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert used == set(schema["$defs"])


def test_kinds_of_layers_and_optimizers(schema: dict[str, Any]) -> None:
    for kinds in (LAYERS, OPTIMIZERS, SCHEDULES):
        for kind, model in kinds.items():
            section = schema["$defs"][model.__name__]
            assert section["properties"]["type"]["const"] == kind
            assert "type" in section["required"]


def test_a_bare_name_and_activations_are_choices(schema: dict[str, Any]) -> None:
    optimizer = schema["$defs"]["TrainSection"]["properties"]["optimizer"]
    assert {"enum": list(OPTIMIZERS)} in optimizer["anyOf"]
    assert optimizer["default"]["type"] == "adam"
    bare = optimizer["anyOf"][2]  # without a type, it is the default's
    assert set(bare["properties"]) == set(schema["$defs"]["Adam"]["properties"]) - {"type"}
    assert bare["additionalProperties"] is False
    assert "required" not in bare
    recurrent = schema["$defs"]["LSTMLayer"]["properties"]["activation"]
    assert recurrent["anyOf"][0] == {"enum": sorted(FORMULAS)}
    assert recurrent["default"] == "tanh"
    dense = schema["$defs"]["DenseLayer"]["properties"]["activation"]
    assert "softmax" in dense["anyOf"][0]["enum"]


def test_bounds(schema: dict[str, Any]) -> None:
    lstm = schema["$defs"]["LSTMLayer"]["properties"]
    assert (lstm["hidden_size"]["minimum"], lstm["hidden_size"]["maximum"]) == (1, 2**24)
    assert (lstm["dropout"]["minimum"], lstm["dropout"]["exclusiveMaximum"]) == (0, 1)
