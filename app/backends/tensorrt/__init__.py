"""Builds and runs TensorRT engines, and makes the CUDA calls for both."""
