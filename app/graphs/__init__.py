"""Exports and graphs in ONNX: the one graph that every engine runs, and its precisions."""
