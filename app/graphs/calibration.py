"""Statistics of a graph's tensors over calibration images, and the rules that make INT8 ranges of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.vision.preprocess import Pixels

STEPS = 127  # of int8 to either side of 0; -128 is not used

_SAMPLE = 1 << 17  # values of a tensor that are counted for each image
_SHIFT = 17  # of a float's bits: what is left are 8 bits of exponent and 6 of mantissa, so bins are 1.6 % wide
_BINS = 1 << 14
CENTRES = ((np.arange(_BINS, dtype=np.uint32) << _SHIFT) + (1 << (_SHIFT - 1))).view(np.float32)
_CLIPS = np.linspace(0.1, 1, 91)  # shares of the greatest value that are tried as the range


@dataclass(frozen=True, slots=True)
class Statistics:
    """Values of T tensors over F images."""

    peaks: NDArray[np.float32]  # [F, T] greatest absolute value
    lows: NDArray[np.float32]  # [T] least value of all images, at most 0
    counts: NDArray[np.int64]  # [T, _BINS] of absolute values
    means: list[NDArray[np.float32]]  # T times [channels]

    def symmetric(self) -> "Statistics":
        """The same for ranges whose middle is 0."""
        return replace(self, lows=-self.peaks.max(0))


def collect(model: onnx.ModelProto, names: Sequence[str], frames: Iterable[Pixels]) -> Statistics:
    """The statistics of the tensors [1, channels, ...] of these names, of frames uint8 [H, W, 3]."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "mean/axes"))
    for i, name in enumerate(names):
        probe.graph.node.append(helper.make_node("ReduceMean", [name, "mean/axes"], [f"mean/{i}"], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(f"mean/{i}", TensorProto.FLOAT, None))
    run = session(probe.SerializeToString())
    counts = np.zeros((len(names), _BINS), np.int64)
    peaks, lows, means = [], [], []
    for frame in frames:
        outputs = run.run(None, {"images": frame[None]})
        lows.append([min(output.min(), 0) for output in outputs[: len(names)]])
        values = [np.abs(output.ravel()) for output in outputs[: len(names)]]
        peaks.append([each.max() for each in values])
        means.append(np.concatenate(outputs[len(names) :]))
        for i, each in enumerate(values):
            some = np.ascontiguousarray(each[:: -(-each.size // _SAMPLE)])
            counts[i] += np.bincount(some.view(np.uint32) >> _SHIFT, minlength=_BINS)
    channels = np.cumsum([len(output) for output in outputs[len(names) :]])
    return Statistics(
        np.array(peaks, np.float32),
        np.array(lows, np.float32).min(0),
        counts,
        np.split(np.mean(means, axis=0), channels[:-1]),
    )


def session(model: bytes) -> onnxruntime.InferenceSession:
    """An ONNX model on the CPU, which logs errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def greatest(statistics: Statistics) -> NDArray[np.float32]:
    """[T] the greatest value of any image: nothing is clipped."""
    return np.asarray(statistics.peaks.max(0), np.float32)


def mean_of_peaks(statistics: Statistics) -> NDArray[np.float32]:
    """[T] the mean over the images of the greatest value of each."""
    return np.asarray(statistics.peaks.mean(0), np.float32)


def least_square_error(statistics: Statistics) -> NDArray[np.float32]:
    """[T] the range for which clipping and rounding together cost the least, in squares of the values."""
    tensors = zip(statistics.counts, statistics.peaks.max(0), statistics.lows, strict=True)
    return np.array([_best(*each) for each in tensors], np.float32)


def _best(counts: NDArray[np.int64], peak: float, low: float) -> float:
    filled = np.flatnonzero(counts)
    values, weights = CENTRES[filled].astype(np.float64), counts[filled]

    def error(clip: float) -> float:
        step = (peak * clip + min(-low, peak * clip)) / (2 * STEPS)
        rounded = np.where(values < step / 2, values**2, step**2 / 12)
        return float(weights @ np.where(values > peak * clip, (values - peak * clip) ** 2, rounded))

    return float(peak * min(_CLIPS, key=error))


RULES: dict[str, Callable[[Statistics], NDArray[np.float32]]] = {
    "greatest value": greatest,
    "mean of peaks": mean_of_peaks,
    "least square error": least_square_error,
}
