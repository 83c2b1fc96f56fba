"""Engines of TensorRT: building them, running them, and the CUDA calls for both."""
