"""The protocols that clients use, one module or package each."""
