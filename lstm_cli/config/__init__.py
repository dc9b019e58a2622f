"""The YAML config: schema, loading, overrides, and errors with line numbers.

`schema` has every key and its default, and makes the layers that engines compute. `config` loads a
file with `yaml`, and `checks` compares keys with each other.
"""

from lstm_cli.config.config import Config, from_mapping, from_text, load
from lstm_cli.config.schema import (
    INIT_SCHEMES,
    DataSection,
    ModelSection,
    TrainSection,
    json_schema,
)

__all__ = [
    "INIT_SCHEMES",
    "Config",
    "DataSection",
    "ModelSection",
    "TrainSection",
    "from_mapping",
    "from_text",
    "json_schema",
    "load",
]
