"""Images and detections as arrays: pure functions."""
