"""Compares an engine with its reference. Not part of the image that only serves."""
