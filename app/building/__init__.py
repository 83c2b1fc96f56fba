"""Weights to a proven engine in the store. Not in the image that serves."""
