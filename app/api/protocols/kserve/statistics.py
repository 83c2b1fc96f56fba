"""Counters of a model since the start, in the format of Triton's statistics extension."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from app.serving.prediction import FramePrediction, Prediction


class Statistics:
    """Statistics of one model. Stores times in s, reports them in ns."""

    def __init__(self) -> None:
        self._successes, self._failures = 0, 0
        self._success_s = self._failure_s = 0.0
        self._stage_s = defaultdict[str, float](float)  # of each request the slowest image, since they run in parallel
        self._images = Counter[int]()  # number by batch size
        self._batch_s = defaultdict[tuple[int, str], float](float)  # by size and stage; an image adds its share
        self._last_ms = 0

    def fail(self, seconds: float) -> None:
        """Count a request that failed after `seconds`."""
        self._failures += 1
        self._failure_s += seconds

    def succeed(self, seconds: float, images: Sequence[Prediction | FramePrediction]) -> None:
        """Count a request that was answered after `seconds`."""
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
        """Return the statistics. Counts only this model's share of batches shared with other models and protocols."""
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
