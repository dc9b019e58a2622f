"""Field types of the schema whose values come from a table or have several notations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lstm_cli.cells import FORMULAS, Activation
from lstm_cli.cells.activations import SYNONYMS
from lstm_cli.config.problems import KeyPath, describe_value, did_you_mean, one_of, shorten
from lstm_cli.errors import ConfigError, nearest, nearest_first

REFUSED = "lstm_cli"
"""Pydantic's type of the errors that `refuse` raises; their context holds a `Problem`'s parts."""

EXPECTED_ACTIVATION = "a name such as tanh, or {name, alpha, beta}"


def refuse(
    what: str,
    *,
    expected: str | None = None,
    found: str | None = None,
    hint: str | None = None,
    path: KeyPath = (),
) -> NoReturn:
    """Reject a value from within a pydantic validator.

    Parameters
    ----------
    what
        The rest of a sentence that begins with the path: ``has an unknown value``.
    path
        Path of the fault within the value.
    """
    context = {"what": what, "expected": expected, "found": found, "hint": hint, "path": path}
    raise PydanticCustomError(REFUSED, "{what}", context)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, which booleans are not."""
    # isfinite raises an error for an integer that no float can hold.
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1000
    return isinstance(value, float) and math.isfinite(value)


@dataclass(frozen=True)
class Choice:
    """Marks a text as one of the names in a table."""

    names: Iterable[str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


@dataclass(frozen=True)
class KindChoice:
    """Marks a mapping whose ``type`` names one of the classes in a table.

    Attributes
    ----------
    kinds
        Classes by type.
    default
        Type of a mapping without ``type``. The field may then be written as a name alone. None:
        the field needs a mapping with ``type``.
    """

    kinds: Mapping[str, type[BaseModel]] = field(hash=False)
    default: str | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {name: handler.generate_schema(kind) for name, kind in self.kinds.items()}
        schema = core_schema.tagged_union_schema(choices, "type")
        if self.default is None:
            return schema
        return core_schema.no_info_before_validator_function(self._expand, schema)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        typed = handler(schema)
        if self.default is None:
            return typed
        named = {"$ref": typed["discriminator"]["mapping"][self.default]}
        bare = dict(handler.resolve_ref_schema(named))
        del bare["required"]
        bare["properties"] = {k: v for k, v in bare["properties"].items() if k != "type"}
        return {"anyOf": [{"enum": list(self.kinds)}, typed, bare]}

    def _expand(self, value: Any) -> Any:
        if isinstance(value, dict) and "type" not in value:
            return {"type": self.default, **value}
        return {"type": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class ActivationOption:
    """Marks a field as one or more activations that `parse` reads."""

    parse: Callable[[Any], Any]
    schema: dict[str, Any] = field(hash=False)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(to_yaml_value),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


def parse_directions(value: Any) -> tuple[Activation, ...]:
    """Read a recurrent layer's activation: one for both directions, or a pair."""
    if not isinstance(value, list):
        return (_activation(value, ()),)
    if len(value) != 2:
        refuse(
            "is a list, but not a pair",
            expected="two activations: forward and reverse",
            found=describe_value(value),
        )
    return tuple(_activation(item, (index,)) for index, item in enumerate(value))


def parse_dense_activation(value: Any) -> Activation | Literal["softmax"]:
    """Read a dense layer's activation; softmax, which is not elementwise, stays a name."""
    if value in ("softmax", {"name": "softmax"}):
        return "softmax"
    return _activation(value, (), (*FORMULAS, "softmax"))


def to_yaml_value(value: Any) -> Any:
    """A parsed option in YAML's plain values."""
    if isinstance(value, tuple):
        return [to_yaml_value(v) for v in value] if len(value) > 1 else to_yaml_value(value[0])
    if not isinstance(value, Activation):
        return value
    parameters = {"alpha": value.alpha, "beta": value.beta}
    if value == Activation(value.name):
        return value.name
    return {"name": value.name, **{k: v for k, v in parameters.items() if v is not None}}


def _activation(value: Any, path: KeyPath, choices: Iterable[str] = FORMULAS) -> Activation:
    keys = {"name": value} if isinstance(value, str) else value
    if not isinstance(keys, dict):
        refuse(
            "is no activation", expected=EXPECTED_ACTIVATION, found=describe_value(value), path=path
        )
    for key in keys:
        if key not in ("name", "alpha", "beta"):
            refuse(
                "is not a key of an activation",
                hint=did_you_mean(key, ("name", "alpha", "beta")) or "keys: name, alpha, beta",
                path=(*path, key),
            )
    for key in ("alpha", "beta"):
        if key in keys and not is_number(keys[key]):
            found = describe_value(keys[key])
            refuse("is no number", expected="a finite number", found=found, path=(*path, key))
    name = keys.get("name")
    if not isinstance(name, str):
        refuse(
            "names no activation",
            expected=EXPECTED_ACTIVATION,
            found=describe_value(value),
            path=path,
        )
    return _named(name, keys, path, choices)


def _named(name: str, keys: dict[str, Any], path: KeyPath, choices: Iterable[str]) -> Activation:
    if name not in FORMULAS and name not in SYNONYMS:
        if name == "softmax" and name in choices:
            refuse("is softmax, which has no parameters", expected="softmax", path=path)
        if nearest(name, ["softmax"]) and not (nearest(name, FORMULAS) or "softmax" in choices):
            refuse(
                f"is {shorten(name)}, and only a dense layer has softmax",
                expected=one_of(sorted(FORMULAS)),
                hint="add a last layer {type: dense, units: …, activation: softmax}",
                path=path,
            )
        refuse(
            f"does not fit: {describe_value(name)} is not an activation",
            expected=one_of(nearest_first(name, sorted(choices))),
            hint=did_you_mean(name, (*choices, *SYNONYMS)),
            path=path,
        )
    try:
        return Activation(name, keys.get("alpha"), keys.get("beta"))
    except ConfigError as error:
        fault = error.problems[0]
        # The error of `Activation` continues this sentence.
        refuse(
            f"does not fit: {fault.what}",
            expected=fault.expected,
            found=fault.found,
            hint=fault.hint,
            path=path,
        )


_NUMBER = {"type": "number"}
_NAMED = {
    "type": "object",
    "properties": {"name": {"enum": sorted(FORMULAS)}, "alpha": _NUMBER, "beta": _NUMBER},
    "required": ["name"],
    "additionalProperties": False,
}
_ONE = {"anyOf": [{"enum": sorted(FORMULAS)}, _NAMED]}
_PAIR = {"type": "array", "items": _ONE, "minItems": 2, "maxItems": 2}

RecurrentActivation = ActivationOption(parse_directions, {"anyOf": [*_ONE["anyOf"], _PAIR]})
DenseActivation = ActivationOption(
    parse_dense_activation, {"anyOf": [{"enum": [*sorted(FORMULAS), "softmax"]}, _NAMED]}
)
