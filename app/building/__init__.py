"""Builds, evaluates and stores engines. Not part of the image that only serves."""
