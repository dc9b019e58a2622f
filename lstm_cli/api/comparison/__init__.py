"""Two weights files gate by gate: what differs, why, and where the outputs part."""
