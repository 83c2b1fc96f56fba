"""Reads requests: bodies, forms, images by URL, and client disconnects."""
