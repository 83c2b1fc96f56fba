"""The Open Inference Protocol (KServe v2) as Triton's clients use it.

`tensors` converts bytes and JSON to NumPy and back, `specs` lists inputs and outputs per task, `models` has the two
models, `statistics` their counters, `repository` both for any transport, `http` and `grpc` the transports.
"""
