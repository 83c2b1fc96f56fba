"""What a model has done since the start, in the words of Triton's statistics extension."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from app.serving.prediction import FramePrediction, Prediction


class Statistics:
    """Of one model. Times are kept in s and told in ns."""

    def __init__(self) -> None:
        self._successes, self._failures = 0, 0
        self._success_s = self._failure_s = 0.0
        self._stage_s = defaultdict[str, float](float)  # of each request its slowest image: they run at the same time
        self._images = Counter[int]()  # by size of their batch
        self._batch_s = defaultdict[tuple[int, str], float](float)  # the same; each image its share of the batch
        self._last_ms = 0

    def fail(self, seconds: float) -> None:
        """A request took so long and failed."""
        self._failures += 1
        self._failure_s += seconds

    def succeed(self, seconds: float, images: Sequence[Prediction | FramePrediction]) -> None:
        """A request took so long and was answered."""
        self._successes += 1
        self._success_s += seconds
        self._last_ms = time.time_ns() // 1_000_000
        stages = [_stages(image) for image in images]
        for stage in stages[0]:
            self._stage_s[stage] += max(each[stage] for each in stages)
        for image, each in zip(images, stages, strict=True):
            self._images[image.batch_size] += 1
            for stage, stage_s in each.items():
                self._batch_s[image.batch_size, stage] += stage_s / image.batch_size

    def to_json(self) -> dict[str, Any]:
        """Of a batch that is shared with other models and protocols, only this model's share is counted."""
        batches = {size: round(count / size) for size, count in sorted(self._images.items())}
        return {
            "last_inference": self._last_ms,
            "inference_count": self._images.total(),
            "execution_count": sum(batches.values()),
            "inference_stats": {
                "success": _duration(self._successes, self._success_s),
                "fail": _duration(self._failures, self._failure_s),
                **{
                    stage: _duration(self._successes, self._stage_s[stage])
                    for stage in ("queue", "compute_input", "compute_infer", "compute_output")
                },
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    **{
                        stage: _duration(count, self._batch_s[size, stage])
                        for stage in ("compute_input", "compute_infer", "compute_output")
                    },
                }
                for size, count in batches.items()
            ],
            "memory_usage": [],
        }


def _stages(image: Prediction | FramePrediction) -> dict[str, float]:
    timings = image.timings
    return {
        "queue": timings.queue,
        "compute_input": timings.decode,
        "compute_infer": timings.infer,
        "compute_output": timings.postprocess,
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
