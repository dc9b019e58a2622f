"""Comparison of two weights files, gate by gate: differences, causes, and first differing step.

Start at `comparison`. `inputs` reads the files, `pairing` and `matching` relate their tensors,
`diagnosis` names the cause, and `first_difference` runs both networks.
"""
