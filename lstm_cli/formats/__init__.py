"""Weights files of this program and of others: PyTorch, Keras, ONNX, TMVA.

`registry` lists the formats, `detection` recognizes a file's, and `native` is this program's own.
Each other format is a folder with ``reader.py`` and ``writer.py``; both use the types in
`interchange`.
"""
