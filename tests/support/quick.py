"""What ``python -m pytest -m quick`` leaves out, so that it stays under two minutes."""

SLOW = tuple(
    f"tests/{path}"
    for path in (
        *("fuzz/", "oracle/", "property/", "unit/bench/", "unit/test_", "unit/training/test_loop"),
        *("engines/test_bfloat16", "engines/test_cuda", "engines/test_gradients"),
        *("engines/test_jit", "unit/engines/cuda/codegen/", "unit/engines/cuda/planning/"),
        "unit/engines/jit/",
        *("cli/test_bench", "cli/test_compare", "cli/test_cuda", "cli/test_files"),
        "cli/test_hints.py::test_a_hint",
        *("cli/test_normalization", "cli/test_other", "cli/test_readings", "cli/test_resume"),
        "cli/test_signals",
        "cli/test_train",
    )
)
"""Where tests begin processes, measure, compile much, or compare with other frameworks."""

QUICK_ENGINES = {("reference", "float64"), ("jit", "float32")}
"""Engines and dtypes that quick tests run on."""
