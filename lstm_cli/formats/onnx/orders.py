"""ONNX's orders of gates and peepholes, in native letters."""

GATES = {"lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n"), "rnn": ("h",)}
PEEPHOLES = ("i", "o", "f")
