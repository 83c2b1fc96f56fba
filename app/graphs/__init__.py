"""ONNX exports and graphs: makes the serving graph that every engine runs, in FP32, FP16 and INT8."""
