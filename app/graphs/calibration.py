"""Collects statistics of tensors over calibration images, and derives INT8 ranges from them by several rules."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.vision.preprocess import Pixels

STEPS = 127  # int8 steps on each side of 0; -128 is not used

_MAX_SAMPLES = 1 << 17  # values counted per tensor and image
_SHIFT = 17  # drops these bits of a float: 8 bits of exponent and 6 of mantissa remain, so bins are 1.6 % wide
_BINS = 1 << 14
CENTRES = ((np.arange(_BINS, dtype=np.uint32) << _SHIFT) + (1 << (_SHIFT - 1))).view(np.float32)
_CLIP_RATIOS = np.linspace(0.1, 1, 91)  # ratios of range to maximum that are tried


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the values of T tensors over F images."""

    peaks: NDArray[np.float32]  # [F, T] maximum absolute value
    lows: NDArray[np.float32]  # [T] minimum over all images, at most 0
    counts: NDArray[np.int64]  # [T, _BINS] histogram of the absolute values
    means: list[NDArray[np.float32]]  # T arrays [channels]

    def symmetric(self) -> "Statistics":
        """Return a copy for ranges that are symmetric about 0."""
        return replace(self, lows=-self.peaks.max(0))


def collect(model: onnx.ModelProto, names: Sequence[str], frames: Iterable[Pixels]) -> Statistics:
    """Return the statistics of the tensors `names`, each [1, channels, ...], over frames uint8 [H, W, 3]."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "mean/axes"))
    for i, name in enumerate(names):
        probe.graph.node.append(helper.make_node("ReduceMean", [name, "mean/axes"], [f"mean/{i}"], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(f"mean/{i}", TensorProto.FLOAT, None))
    runtime = session(probe.SerializeToString())
    counts = np.zeros((len(names), _BINS), np.int64)
    peaks, lows, means = [], [], []
    for frame in frames:
        outputs = runtime.run(None, {"images": frame[None]})
        lows.append([min(output.min(), 0) for output in outputs[: len(names)]])
        values = [np.abs(output.ravel()) for output in outputs[: len(names)]]
        peaks.append([each.max() for each in values])
        means.append(np.concatenate(outputs[len(names) :]))
        for i, each in enumerate(values):
            sampled = np.ascontiguousarray(each[:: -(-each.size // _MAX_SAMPLES)])
            counts[i] += np.bincount(sampled.view(np.uint32) >> _SHIFT, minlength=_BINS)
    channels = np.cumsum([len(output) for output in outputs[len(names) :]])
    return Statistics(
        np.array(peaks, np.float32),
        np.array(lows, np.float32).min(0),
        counts,
        np.split(np.mean(means, axis=0), channels[:-1]),
    )


def session(model: bytes) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session on the CPU that logs errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def greatest(statistics: Statistics) -> NDArray[np.float32]:
    """Return ranges [T]: the maximum over all images, so nothing is clipped."""
    return np.asarray(statistics.peaks.max(0), np.float32)


def mean_of_peaks(statistics: Statistics) -> NDArray[np.float32]:
    """Return ranges [T]: the mean of the maxima of the images."""
    return np.asarray(statistics.peaks.mean(0), np.float32)


def least_square_error(statistics: Statistics) -> NDArray[np.float32]:
    """Return ranges [T]: those with the least squared error of clipping and rounding."""
    tensors = zip(statistics.counts, statistics.peaks.max(0), statistics.lows, strict=True)
    return np.array([_best_range(*each) for each in tensors], np.float32)


def _best_range(counts: NDArray[np.int64], peak: float, low: float) -> float:
    filled = np.flatnonzero(counts)
    values, weights = CENTRES[filled].astype(np.float64), counts[filled]

    def error(clip: float) -> float:
        step = (peak * clip + min(-low, peak * clip)) / (2 * STEPS)
        rounded = np.where(values < step / 2, values**2, step**2 / 12)
        return float(weights @ np.where(values > peak * clip, (values - peak * clip) ** 2, rounded))

    return float(peak * min(_CLIP_RATIOS, key=error))


RULES: dict[str, Callable[[Statistics], NDArray[np.float32]]] = {
    "greatest value": greatest,
    "mean of peaks": mean_of_peaks,
    "least square error": least_square_error,
}
