"""The Open Inference Protocol (KServe v2) as Triton's clients speak it.

`tensors` are bytes <-> NumPy, `slots` what goes in and comes out for each task, `models` what can be asked,
`statistics` what they count, `repository` all of what is there, `http` and `grpc` the two ways in.
"""
