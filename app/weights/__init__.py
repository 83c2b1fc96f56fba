"""Identifies weights files without loading them."""
