"""Do two engines give the same boxes? Rows against rows, so that NMS cannot hide or make a difference."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ParityFailed
from app.results import Rows

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # frames [n, H, W, 3] -> rows [n, K, 6]

MAX_BOX_PX = 0.5
MAX_SCORE = 0.005
CONF = 0.25  # every row above it is compared,
TOP = 30  # and at least so many of each image: weights that see nothing in the images are compared as well
CLASS_CONF = 0.01  # below it all classes are about as unlikely, and which is the most likely is noise


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an engine is from its reference on the check images."""

    images: int
    rows: int
    matched: int  # rows with a partner: same class (above CLASS_CONF), within MAX_BOX_PX and MAX_SCORE
    box_px: float  # greatest difference of a box corner between a row and its nearest partner
    score: float  # greatest difference of their scores

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require(self) -> None:
        """Raise ParityFailed, with the figures, unless every row is matched and there are rows."""
        if not self.rows:
            raise ParityFailed("there are no check images: models/demo/samples is missing, and so is ultralytics")
        if self.matched < self.rows:
            raise ParityFailed(
                f"the engine does not give the reference's boxes: {self.rows - self.matched} of {self.rows} rows on "
                f"{self.images} images differ, by up to {self.box_px:.2f} px and {self.score:.4f} in score (allowed "
                f"{MAX_BOX_PX} px, {MAX_SCORE}). The engine was not kept"
            )


def compare(pairs: Iterable[tuple[Rows, Rows]]) -> Parity:
    """Of (reference rows, engine rows) pairs, one an image."""
    images = rows = matched = 0
    box_px = score = 0.0
    for reference, engine in pairs:
        wanted = reference[: max(TOP, int(np.count_nonzero(reference[:, 4] >= CONF)))]
        box_diff, score_diff = _nearest(wanted, engine)
        images += 1
        rows += len(wanted)
        matched += int(np.count_nonzero((box_diff <= MAX_BOX_PX) & (score_diff <= MAX_SCORE)))
        box_px = max(box_px, float(box_diff.max(initial=0)))
        score = max(score, float(score_diff.max(initial=0)))
    return Parity(images, rows, matched, box_px, score)


def _nearest(wanted: Rows, offered: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per wanted row: the box difference in px and the score difference to the nearest offered row of its class."""
    boxes = np.abs(wanted[:, None, :4] - offered[None, :, :4]).max(2)
    boxes[(wanted[:, None, 5] != offered[None, :, 5]) & (wanted[:, None, 4] >= CLASS_CONF)] = np.inf
    boxes[np.isnan(boxes)] = np.inf
    partner = boxes.argmin(1)
    each = np.arange(len(wanted))
    return boxes[each, partner], np.abs(wanted[:, 4] - offered[partner, 4])
