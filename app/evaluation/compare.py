"""An engine beside its reference, on the images of a data set."""

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
    """Each image alone in the reference; in the engine of this folder in batches, but those of every other batch alone,
    as that may run through other kernels. Where shapes are listed each image goes into every one of them, and the
    figures are those of the worst.
    """
    threads = host.cpus()
    reference = _reference(weights, model, threads)
    engine = backend.load(folder, 1, threads)
    found = []
    for shapes in [(shape,) for shape in model.shapes] if model.shapes else [None]:
        gate = Gate(precision, model)
        for number, together in enumerate(_batches(frames(dataset, model, shapes), batch)):
            taken = [frame for _, _, frame in together]
            outputs = [engine.infer(0, [frame])[0] for frame in taken] if number % 2 else engine.infer(0, taken)
            for (sample, transform, frame), its_outputs in zip(together, outputs, strict=True):
                gate.add(sample, transform, reference([frame])[0], its_outputs)
        found.append(gate.figures())
    engine.close()
    return worst(found)


def _reference(weights: Path, model: ModelInfo, threads: int) -> Callable[[list[Pixels]], list[Outputs]]:
    """PyTorch for .pt; for .onnx, where there is no PyTorch, the plain export in ONNX Runtime. Both in FP32: boxes of
    an FP16 export are off by up to 0.25 px at 640 px.
    """
    if weights.suffix == ".pt":
        from app.backends import pytorch

        return partial(pytorch.open_weights(weights, threads).infer, 0)
    from app.backends import onnxruntime
    from app.graphs import normalize

    return onnxruntime.PlainExport(normalize.load(weights).SerializeToString(), model, threads).infer


def frames(dataset: Dataset, model: ModelInfo, shapes: Sequence[Shape] | None) -> Iterator[Framed]:
    """The pictures, made into frames as they are served where these are the shapes."""
    for sample in dataset:
        height, width = sample.pixels.shape[:2]
        if model.task == "classify":
            transform = preprocess.center_crop_transform(height, width, model.imgsz)
            yield sample, transform, preprocess.crop(sample.pixels, transform)
        else:
            transform = preprocess.place(height, width, model.imgsz, model.stride, shapes)
            yield sample, transform, preprocess.letterbox(sample.pixels, transform)


def _batches(frames: Iterator[Framed], size: int) -> Iterator[list[Framed]]:
    """Batches of frames of one shape, of `size` each but the last of a shape."""
    waiting: dict[tuple[int, ...], list[Framed]] = {}
    for framed in frames:
        batch = waiting.setdefault(framed[2].shape, [])
        batch.append(framed)
        if len(batch) == size:
            yield waiting.pop(framed[2].shape)
    yield from waiting.values()
