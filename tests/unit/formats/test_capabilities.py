"""The table of what a format can store: its page in the docs, and what writers refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_cases import FILES, export_of, gru, lstm

from lstm_cli.cells import GRU
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.capabilities import LIMITS
from lstm_cli.formats.gates import ONNX_PEEPHOLES, PEEPHOLE_GATES
from lstm_cli.formats.interchange import Export

PAGE = Path(__file__).parents[3] / "docs" / "formats" / "README.md"
EXAMPLES: dict[str, dict[str, Any]] = {
    "bidirectional": lstm(bidirectional=True),
    "stateful": lstm(stateful=True),
    "clip": lstm(clip=0.75),
    "peepholes": lstm(peepholes=True),
    "coupled_input_forget": lstm(coupled_input_forget=True),
    "projection_size": lstm(5, projection_size=5),
    "reset_after": gru(reset_after=False),
}
"""A layer with a value of each option that some format lacks."""


def table_of_page() -> dict[str, dict[str, str]]:
    """Words of the docs by option and format."""
    lines = PAGE.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("| option | native |"))
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : lines.index("", start)]
    ]
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def limits_of(key: str, format: str) -> list[str]:
    return [limit.table for limit in LIMITS[format] if limit.key == key]


def test_every_format_has_its_limits() -> None:
    assert LIMITS.keys() == registry.FORMATS.keys()


def test_the_page_says_what_the_table_says() -> None:
    keys = {limit.key for limits in LIMITS.values() for limit in limits}
    keys = {key for key in keys if not key.endswith("activation")}
    assert table_of_page() == {
        key: {format: "; ".join(limits_of(key, format)) or "yes" for format in registry.FORMATS}
        for key in keys
    }


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("key", EXAMPLES)
def test_writers_refuse_what_the_table_refuses(key: str, format: str, tmp_path: Path) -> None:
    export, path = export_of([EXAMPLES[key]]), tmp_path / FILES[format][0]
    if not limits_of(key, format):
        registry.write(path, format, export)
        assert path.is_file()
        return
    with pytest.raises(WeightsError) as caught:
        registry.write(path, format, export)
    assert re.search(rf"{key}: \S", str(caught.value))
    assert not path.exists()


def test_examples_cover_the_page() -> None:
    assert EXAMPLES.keys() == table_of_page().keys()


def test_peepholes_of_onnx_follow_its_gates() -> None:
    """ONNX's specification has P in the order i, o, f, and cells in the order i, f, o."""
    assert (ONNX_PEEPHOLES, PEEPHOLE_GATES) == (("i", "o", "f"), ("i", "f", "o"))


@pytest.mark.parametrize("format", [name for name in registry.FORMATS if name != "native"])
def test_a_cell_that_a_format_does_not_know_is_refused_before_anything_is_written(tmp_path, format):
    class Minimal(GRU):
        kind = "minimal"

    spec = RecurrentSpec(0, 3, (Minimal(hidden_size=2),))
    weights = {name: np.zeros(p.shape, np.float32) for name, p in spec.parameters().items()}
    export = Export("net", 3, None, (spec,), weights, "")
    with pytest.raises(WeightsError, match="has no minimal: layer 0 cannot be written"):
        registry.write(tmp_path / "out", format, export)
    assert not list(tmp_path.iterdir())
