"""How near an engine is to its reference. Not in the image that serves."""
