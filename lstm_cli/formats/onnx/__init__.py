"""ONNX: reads and writes models with a codec of its own."""
