"""Compares an engine with its reference on the images of a data set."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from app.backends import Backend
from app.evaluation.datasets import Dataset, Sample
from app.evaluation.gate import Gate, worst
from app.model import ModelInfo, Shape
from app.store.accuracy import AccuracyReport
from app.system import host
from app.vision import preprocess
from app.vision.postprocess import Outputs
from app.vision.preprocess import LetterboxTransform, Pixels

Framed = tuple[Sample, LetterboxTransform, Pixels]


def figures(
    backend: Backend, folder: Path, weights: Path, model: ModelInfo, precision: str, dataset: Dataset, batch: int
) -> AccuracyReport:
    """Return the accuracy report of the engine in `folder`, against the reference.

    The engine gets batches of `batch` images, and every other batch image by image, which may use other kernels. The
    reference gets single images. If the model lists shapes, each image is tried in each shape, and the worst counts.
    """
    threads = host.cpus()
    reference = _reference(weights, model, threads)
    engine = backend.load(folder, 1, threads)
    reports = []
    for shapes in [(shape,) for shape in model.shapes] if model.shapes else [None]:
        gate = Gate(precision, model)
        for number, batch_frames in enumerate(_batches(frames(dataset, model, shapes), batch)):
            inputs = [frame for _, _, frame in batch_frames]
            outputs = [engine.infer(0, [frame])[0] for frame in inputs] if number % 2 else engine.infer(0, inputs)
            for (sample, transform, frame), engine_outputs in zip(batch_frames, outputs, strict=True):
                gate.add(sample, transform, reference([frame])[0], engine_outputs)
        reports.append(gate.figures())
    engine.close()
    return worst(reports)


def _reference(weights: Path, model: ModelInfo, threads: int) -> Callable[[list[Pixels]], list[Outputs]]:
    """Return the reference as a function: PyTorch for .pt, the plain export in ONNX Runtime for .onnx.

    Both run in FP32: boxes of an FP16 export differ by up to 0.25 px at 640 px.
    """
    if weights.suffix == ".pt":
        from app.backends import pytorch

        return partial(pytorch.open_weights(weights, threads).infer, 0)
    from app.backends import onnxruntime
    from app.graphs import normalize

    return onnxruntime.PlainExport(normalize.load(weights).SerializeToString(), model, threads).infer


def frames(dataset: Dataset, model: ModelInfo, shapes: Sequence[Shape] | None) -> Iterator[Framed]:
    """Yield the samples as frames, made as the server makes them for these shapes."""
    for sample in dataset:
        height, width = sample.pixels.shape[:2]
        if model.task == "classify":
            transform = preprocess.center_crop_transform(height, width, model.imgsz)
            yield sample, transform, preprocess.crop(sample.pixels, transform)
        else:
            transform = preprocess.place(height, width, model.imgsz, model.stride, shapes)
            yield sample, transform, preprocess.letterbox(sample.pixels, transform)


def _batches(frames: Iterator[Framed], size: int) -> Iterator[list[Framed]]:
    """Yield batches of `size` frames of one shape; the last batch of a shape may be smaller."""
    waiting: dict[tuple[int, ...], list[Framed]] = {}
    for framed in frames:
        batch = waiting.setdefault(framed[2].shape, [])
        batch.append(framed)
        if len(batch) == size:
            yield waiting.pop(framed[2].shape)
    yield from waiting.values()
