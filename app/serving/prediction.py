"""What a prediction holds, and how it is made of an engine's outputs."""

from dataclasses import dataclass, replace

from app.model import ModelInfo
from app.vision import matching, postprocess, preprocess
from app.vision.postprocess import Detections, Outputs, Thresholds
from app.vision.preprocess import LetterboxTransform


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one image went, in seconds."""

    decode: float
    queue: float
    infer: float
    postprocess: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image holds. Boxes and keypoints are px of the upright original, masks are its frame's, and `transform`
    leads from there to the original, whose pixels are not kept: they may be 150 MB.
    """

    transform: LetterboxTransform
    detections: Detections
    timings: Timings
    batch_size: int
    engine: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the original."""
        return self.transform.image


@dataclass(frozen=True, slots=True)
class FramePrediction:
    """What one frame holds: the engine's outputs, in frame px, with only those rows that are left after NMS."""

    outputs: Outputs
    timings: Timings
    batch_size: int
    engine: str


def detections_of(
    outputs: Outputs, transform: LetterboxTransform, thresholds: Thresholds, model: ModelInfo
) -> Detections:
    """The detections of an image, in px of its upright original."""
    found = postprocess.select(outputs, thresholds, model)
    match model.task:
        case "classify":
            return found
        case "obb":
            return replace(found, boxes=preprocess.rotated_to_image(found.boxes, transform))
    keypoints = None if found.keypoints is None else preprocess.points_to_image(found.keypoints, transform)
    return replace(found, boxes=preprocess.to_image(found.boxes, transform), keypoints=keypoints)


def difference_of(ours: Outputs, theirs: Outputs, model: ModelInfo) -> tuple[int, int, int]:
    """Boxes that two engines find in one frame: both of them, only the first, only the second."""
    first, second = (
        postprocess.select(outputs, Thresholds(matching.MIN_MATCH_CONF), model) for outputs in (ours, theirs)
    )
    return matching.difference(first, second)
