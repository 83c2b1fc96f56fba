"""One module a protocol that clients speak."""
