"""Yolopard: YOLOv8 weights in, boxes over HTTP at the speed of the engine out."""

__version__ = "0.1.0"
