"""Messages for pydantic's validation errors, with path, expected value, found value and hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import ValidationError

from lstm_cli.config.field_types import REFUSED
from lstm_cli.config.problems import (
    KeyPath,
    ProblemReport,
    describe_value,
    did_you_mean,
    format_path,
    one_of,
    to_flow_yaml,
    with_article,
)
from lstm_cli.config.schema import (
    LAYERS,
    OPTIMIZERS,
    SCHEDULES,
    ConfigDocument,
    DataSection,
    InitSection,
    ModelSection,
    Section,
    TrainSection,
    WindowSection,
)
from lstm_cli.errors import nearest, nearest_first

SECTIONS: dict[KeyPath, tuple[type[Section], str]] = {
    (): (ConfigDocument, "a config"),
    ("model",): (ModelSection, "model"),
    ("model", "init"): (InitSection, "model.init"),
    ("data",): (DataSection, "data"),
    ("data", "window"): (WindowSection, "data.window"),
    ("train",): (TrainSection, "train"),
}
"""Schema of each section, and its name in messages, by path."""
KINDS: dict[KeyPath, tuple[Mapping[str, type[Section]], str]] = {
    ("model", "layers"): (LAYERS, "layer"),
    ("train", "optimizer"): (OPTIMIZERS, "optimizer"),
    ("train", "schedule"): (SCHEDULES, "schedule"),
}
"""Schemas by ``type``, and the noun in messages, of values that have a type."""
DEFAULTS: dict[KeyPath, str] = {
    path: TrainSection.model_fields[str(path[1])].default.type for path in list(KINDS)[1:]
}
"""Default ``type`` of a mapping, by path."""
EXPLAINED = 200
"""Most problems that get a hint with the nearest key."""
FOREIGN_KEYS = {
    "units": "hidden_size", "hidden_size": "units", "size": "hidden_size", "lr": "learning_rate",
    "eps": "epsilon", "alpha": "rho", "features": "input_size", "input_dim": "input_size",
    "max_norm": "clip_norm", "clipnorm": "clip_norm", "clipvalue": "clip_value", "name": "type",
    "optimiser": "optimizer", "go_backwards": "bidirectional", "p": "rate", "gamma": "factor",
    "step_size": "every", "use_peepholes": "peepholes", "proj_size": "projection_size",
}  # fmt: skip
"""Name of a key, by the name in another program or section."""


def report_validation_errors(error: ValidationError, raw: Any, report: ProblemReport) -> None:
    """Add every error that pydantic reports for the plain values `raw` to `report`."""
    findings = error.errors(include_url=False)
    misspelled = _misspelled(findings, raw)
    for finding in findings:
        path = _user_path(finding["loc"])
        if finding["type"] == REFUSED:
            _refused(path, finding.get("ctx", {}), report)
        elif finding["type"] in ("extra_forbidden", "invalid_key"):
            _unknown_key(path, raw, report)
        elif finding["type"] == "missing":
            if path not in misspelled:
                _missing(path, raw, report)
        elif finding["type"].startswith("union_tag"):
            _unknown_kind(path, value_at(raw, path), report)
        else:
            _wrong_value(path, finding["type"], raw, report)


def _misspelled(findings: Sequence[Mapping[str, Any]], raw: Any) -> set[KeyPath]:
    """Paths of missing keys that are misspelled: `units` if the config has `unit`."""
    paths = set()
    unknown = (finding for finding in findings if finding["type"] == "extra_forbidden")
    for finding in islice(unknown, EXPLAINED):
        path = _user_path(finding["loc"])
        owner, _ = _owner(path[:-1], raw)
        guess = nearest(str(path[-1]), owner.model_fields) or FOREIGN_KEYS.get(str(path[-1]))
        paths.add((*path[:-1], guess or ""))
    return paths


def value_at(raw: Any, path: KeyPath) -> Any:
    """The value at a path; None if the path does not exist."""
    for key in path:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _kind_path(path: KeyPath) -> KeyPath | None:
    """The part of `path` that leads to a value with a `type`: a layer or the optimizer."""
    size = 3 if path[:2] == ("model", "layers") else 2
    prefix = path[:2] if len(path) >= size else ()
    return path[:size] if prefix in KINDS else None


def _user_path(loc: KeyPath) -> KeyPath:
    # pydantic inserts a tag after a value with a `type`.
    prefix = _kind_path(loc)
    return loc if prefix is None else (*prefix, *loc[len(prefix) + 1 :])


def _owner(path: KeyPath, raw: Any) -> tuple[type[Section], str]:
    """The schema of the mapping at `path`, and its name in messages."""
    if path in SECTIONS:
        return SECTIONS[path]
    kinds, noun = KINDS[path[:2]]
    value = value_at(raw, path)
    name = value if isinstance(value, str) else value.get("type", DEFAULTS.get(path[:2]))
    return kinds[name], f"{with_article(name)} {noun}"


def _refused(path: KeyPath, context: Mapping[str, Any], report: ProblemReport) -> None:
    path = (*path, *context["path"])
    report.add(
        path,
        f"{format_path(path)} {context['what']}",
        expected=context["expected"],
        found=context["found"],
        hint=context["hint"],
    )


def _unknown_key(path: KeyPath, raw: Any, report: ProblemReport) -> None:
    owner, noun = _owner(path[:-1], raw)
    key, keys = path[-1], list(owner.model_fields)
    hint = None
    if report.count < EXPLAINED:
        hint = did_you_mean(key, keys)
        if hint is None and FOREIGN_KEYS.get(str(key)) in keys:
            hint = f"here it is called `{FOREIGN_KEYS[str(key)]}`"
        hint = hint or _belongs_elsewhere(key, path)
        keys = nearest_first(key, keys)
    hint = hint or f"keys: {', '.join(keys)}"
    report.add(path, f"{format_path(path)} is not a key of {noun}", hint=hint)


def _belongs_elsewhere(key: str | int, path: KeyPath) -> str | None:
    """A hint if `key` belongs to another section or another type."""
    for prefix, (kinds, noun) in KINDS.items():
        types = [name for name, kind in kinds.items() if key in kind.model_fields]
        if types and _kind_path(path[:-1]) == path[:-1] and path[:2] == prefix:
            return f"`{key}` belongs to the type{'s' * (len(types) > 1)} {', '.join(types)}"
        if types and key != "type" and path[:-1] == prefix[:1]:
            place = (
                f"a {noun}: {format_path((*prefix, 0, key))}"
                if noun == "layer"
                else format_path(prefix)
            )
            return f"`{key}` belongs to {place}"
    for section, (owner, noun) in SECTIONS.items():
        if section != path[:-1] and key in owner.model_fields:
            return f"`{key}` belongs to {noun if section else 'the top level'}"
    return None


def _missing(path: KeyPath, raw: Any, report: ProblemReport) -> None:
    owner, _ = _owner(path[:-1], raw)
    field = owner.model_fields[str(path[-1])]
    report.add(
        path,
        f"{format_path(path)} is missing",
        expected=_expected(owner, str(path[-1])),
        hint=f"add `{path[-1]}: {to_flow_yaml(field.examples[0])}`" if field.examples else None,
    )


def _unknown_kind(path: KeyPath, value: Any, report: ProblemReport) -> None:
    kinds, noun = KINDS[path[:2]]
    name = value.get("type") if isinstance(value, dict) else value
    if isinstance(value, dict) and "type" not in value:  # a layer; others have a default type
        what = f"{format_path((*path, 'type'))} is missing"
        hint = f"add `type: {next(iter(kinds))}`"
        report.add((*path, "type"), what, expected=one_of(kinds), hint=hint)
        return
    at = (*path, "type") if isinstance(value, dict) else path
    report.add(
        at,
        f"{format_path(at)} names no {noun}",
        expected=one_of(nearest_first(name, kinds)),
        found=describe_value(name),
        hint=did_you_mean(name, kinds),
    )


def _wrong_value(path: KeyPath, kind: str, raw: Any, report: ProblemReport) -> None:
    value = value_at(raw, path)
    if _kind_path(path) == path:
        _no_mapping(path, value, report)
        return
    if path in SECTIONS:
        what = f"{format_path(path)} is no mapping"
        report.add(path, what, expected="keys and values", found=describe_value(value))
        return
    owner, _ = _owner(path[:-1], raw)
    fragment = _fragment(owner, str(path[-1]))
    if kind.endswith(("_type", "_from_float")):
        what = "has a value of the wrong type"
    elif kind in ("literal_error", "enum"):
        what = "has an unknown value"
    else:
        lengths = {"too_short": "is too short", "too_long": "is too long"}
        what = lengths.get(kind.removeprefix("string_"), "is out of range")
    report.add(
        path,
        f"{format_path(path)} {what}",
        expected=_describe(fragment, value),
        found=describe_value(value),
        hint=_suggested_value(str(path[-1]), value, fragment),
    )


def _no_mapping(path: KeyPath, value: Any, report: ProblemReport) -> None:
    kinds, noun = KINDS[path[:2]]
    name = value if isinstance(value, str) and value in kinds else next(iter(kinds))
    name = DEFAULTS.get(path, name)
    required = {
        key: field.examples[0]
        for key, field in kinds[name].model_fields.items()
        if field.is_required() and field.examples
    }
    report.add(
        path,
        f"{format_path(path)} is no {noun}",
        expected="a mapping with the key type",
        found=describe_value(value),
        hint=f"write {to_flow_yaml({'type': name, **required})}",
    )


@lru_cache
def _fragment(owner: type[Section], key: str) -> dict[str, Any]:
    fragment: dict[str, Any] = owner.model_json_schema()["properties"][key]
    choices = [c for c in fragment.get("anyOf", []) if c.get("type") != "null"]
    return choices[0] if len(choices) == 1 else fragment


def _expected(owner: type[Section], key: str) -> str:
    return _describe(_fragment(owner, key))


def _describe(fragment: Mapping[str, Any], value: Any = None) -> str:
    """Expected values in words, from a JSON Schema; choices nearest to `value` come first."""
    if "enum" in fragment or "const" in fragment:
        return one_of(nearest_first(value, fragment.get("enum") or [fragment["const"]]))
    nouns = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text",
        "array": "a list",
    }
    noun = nouns.get(fragment.get("type", ""), "a mapping")
    return noun + _bounds(fragment)


def _bounds(fragment: Mapping[str, Any]) -> str:
    bounds = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    phrases = [f"{words} {fragment[key]}" for key, words in bounds if key in fragment]
    if fragment.get("minItems") or fragment.get("minLength"):
        phrases.append("not empty")
    if "maxItems" in fragment:
        phrases.append(f"at most {fragment['maxItems']:,} items")
    return f", {' and '.join(phrases)}" if phrases else ""


TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _suggested_value(key: str, value: Any, fragment: Mapping[str, Any]) -> str | None:
    """A hint with the value that the user probably meant."""
    kind = fragment.get("type")
    if isinstance(value, str):
        if kind == "boolean" and value.lower() in TRUTH:
            return f"write `{key}: {TRUTH[value.lower()]}`"
        if kind in ("integer", "number") and (number := _number_in(value)) is not None:
            return f"write `{key}: {number}`, without quotes or separators"
        return did_you_mean(value, map(str, fragment.get("enum", ())))
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return f"write `{key}: {value:.0f}`" if abs(value) < 1e15 else None
    if kind == "string" and isinstance(value, bool | int | float):
        return f"write `{key}: '{describe_value(value)}'`, with quotes, if that is the name"
    return None


def _number_in(text: str) -> str | None:
    """The number in a text such as ``1_000`` or ``"12"``, in the notation of YAML 1.2."""
    plain = text.strip().replace("_", "").replace(",", "")
    digits = plain.lstrip("+-").replace(".", "", 1)
    return plain if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
