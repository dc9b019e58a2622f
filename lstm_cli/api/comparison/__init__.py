"""Comparison of two weights files, gate by gate: differences, causes, and first differing step."""
