"""Pure functions on images and detections as arrays."""
