"""ONNX models: reader and writer, without the onnx package.

`reader` runs the graph with symbolic values (`interpreter`, and one ``ops_`` module per kind of
operator), and `layers` extracts the layers. `ops_recurrent` reads LSTM, GRU and RNN; `unroll`
recognizes loops that an exporter unrolled.
"""
