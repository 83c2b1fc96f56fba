"""Stores engines on disk."""
