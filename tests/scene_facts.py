"""Facts about the scenes of the demo model."""

import scenes

TASKS = ["segment", "pose", "obb"]


def side_of(item: scenes.Scene, i: int) -> float:
    """Return a value that is positive if the second of two points is clockwise of the first, seen along the arrow."""
    tip, left, right = item.keypoints[i, :3, :2]
    along, across = tip - (left + right) / 2, right - left
    return along[0] * across[1] - along[1] * across[0]
