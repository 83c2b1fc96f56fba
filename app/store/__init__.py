"""Engines on disk."""
