"""The detections of Ultralytics itself."""

import cv2
import numpy as np
import torch
from ultralytics.data.augment import LetterBox
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

CONF = 0.1  # below the default, to compare more boxes


def by_ultralytics(model, data: bytes) -> np.ndarray:
    """Return the boxes of an image file, [N, 6] x1 y1 x2 y2 score class, in px of the image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    frame = LetterBox((640, 640), auto=True, stride=32)(image=image)
    pixels = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1))).float()[None] / 255
    with torch.inference_mode():
        (found,) = non_max_suppression(model(pixels), CONF, 0.7, max_det=300)
        found[:, :4] = scale_boxes(frame.shape[:2], found[:, :4], image.shape)
    return found.numpy()
