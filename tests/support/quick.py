"""What ``python -m pytest -m quick`` leaves out, so that it stays under two minutes."""

SLOW = tuple(
    f"tests/{path}"
    for path in (
        *(
            "cluster/",
            "fuzz/",
            "oracle/",
            "property/",
            "unit/workflows/bench/",
            "unit/test_",
            "unit/training/test_loop",
        ),
        *("engines/test_bfloat16", "engines/test_cells.py::test_activation", "engines/test_cuda"),
        "engines/test_gradients",
        *("engines/test_jit", "unit/engines/cuda/codegen/", "unit/engines/cuda/planning/"),
        "unit/engines/jit/",
        *("cli/test_bench", "cli/test_compare", "cli/test_config_beside", "cli/test_cuda"),
        *("cli/test_errors", "cli/test_files", "cli/test_foreign_text"),
        "cli/test_hints.py::test_a_hint",
        *("cli/test_normalization", "cli/test_other", "cli/test_readings", "cli/test_resume"),
        *("cli/test_shards", "cli/test_signals", "cli/test_train", "cli/test_windows_and_targets"),
        "cli/test_workers",
        "cli/test_engines.py::test_a_fallback",
        "unit/cells/test_expression.py::test_a_node",
        "unit/data/test_windows.py::test_targets",
        "unit/formats/onnx/test_interpreter.py::test_open_sizes",
        "architecture/test_imports.py::test_what_needs_no_kernels",
        "unit/hdf5/test_dataset.py::TestChunkSlabs",
    )
)
"""Where tests begin processes, measure, compile much, or compare with other frameworks."""

QUICK_ENGINES = {("reference", "float64"), ("jit", "float32")}
"""Engines and dtypes that quick tests run on."""
