"""What lives while the server lives: from images to detections."""
