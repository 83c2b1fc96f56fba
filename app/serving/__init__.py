"""The running service: loads engines, batches images, and returns detections."""
