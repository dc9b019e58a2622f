"""The YAML config: schema, loading, overrides, and errors with line numbers."""

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
