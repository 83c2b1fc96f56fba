"""A plain export -> what its model is: task, names, stride, sizes, by its metadata and by the shapes of its outputs."""

import logging
from pathlib import Path

import onnx

from app.errors import WeightsError
from app.model import TASKS, ModelInfo, Shape, format_shapes
from app.weights import metadata

log = logging.getLogger("yolopard.graph")

_NMS = "export it again with nms=False"


def describe(
    model: onnx.ModelProto, weights: Path, name: str, imgsz: int | None, shapes: tuple[Shape, ...] | None
) -> ModelInfo:
    """The model of an export as app/graphs/normalize.py reads it, for frames of this size or these shapes if any.

    Raises WeightsError, which names the `weights`, for other tasks and heads, and for sizes that the export has not.
    """
    facts = {fact.key: fact.value for fact in model.metadata_props}
    if not facts.keys() & {"task", "names"}:
        raise WeightsError(f"{weights} is not an Ultralytics export: its metadata has neither task nor names")
    found = [dims(output) for output in model.graph.output]
    task = facts.get("task") or _task_of(found)
    require_task(weights, task)
    if len(model.graph.input) != 1 or len(found) != (2 if task == "segment" else 1):
        raise WeightsError(f"{weights}: its inputs and outputs are not those of a {task} export")
    _, channels, height, width = dims(model.graph.input[0])
    if channels != 3:
        raise WeightsError(f"{weights} takes {channels} channels; only RGB models are served")
    stride = metadata.largest(facts.get("stride"), metadata.STRIDE)
    kpt_shape = metadata.kpt_shape(facts.get("kpt_shape")) if task == "pose" else None
    extras = _extras(task, found, kpt_shape)
    end_to_end = _is_end_to_end(model, facts, found[0], 6 + extras)
    classes = None if end_to_end else _count_classes(model, weights, task, extras, stride)
    if classes is not None and (problem := metadata.names_problem(facts.get("names"), classes)):
        log.warning("%s: %s", weights, problem)
    names = metadata.names(facts.get("names"), classes)
    size = imgsz or metadata.largest(facts.get("imgsz"), metadata.IMGSZ)
    if height and width:
        own, size = (height, width), max(height, width)
        requested = f"IMGSZ={format_shapes(*shapes)}" if shapes else f"IMGSZ={imgsz}"
        if shapes not in (None, (own,)) or imgsz not in (None, size):
            raise WeightsError(
                f"{weights} was exported for {format_shapes(own)} only, not {requested}: export it again with "
                "dynamic=True"
            )
        shapes = (own,)
    if task == "classify":
        shapes = shapes or ((size, size),)
        if shapes != ((shapes[0][0],) * 2,):
            raise WeightsError(
                f"{weights} classifies squares; IMGSZ={format_shapes(*shapes)} is not one: give one number"
            )
    for each in shapes or (size,):
        require_multiples(each, stride)
    longest = max(map(max, shapes)) if shapes else size
    return ModelInfo(name, task, names, stride, longest, shapes, kpt_shape, end_to_end)


def dims(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of a tensor; 0 where they are dynamic."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _task_of(found: list[list[int]]) -> str:
    """By the outputs, of an export that is older than the entry `task`."""
    if len(found) == 2:
        return "segment"
    return "classify" if len(found[0]) == 2 else "detect"


def _extras(task: str, found: list[list[int]], kpt_shape: tuple[int, int] | None) -> int:
    """Values of a box beside its sides and class scores."""
    match task:
        case "segment":
            return found[1][1] if len(found[1]) == 4 else 0
        case "pose":
            return kpt_shape[0] * kpt_shape[1] if kpt_shape else 0
    return int(task == "obb")


def _is_end_to_end(model: onnx.ModelProto, facts: dict[str, str], found: list[int], columns: int) -> bool:
    """Whether the head selects its boxes itself, without NMS. Exports of YOLOv10 by 8.2 do not say so."""
    if len(found) != 3 or found[2] != columns or facts.get("task") == "classify":
        return False
    if "end2end" in facts:
        return metadata.flag(facts["end2end"])
    return not any(node.op_type == "NonMaxSuppression" for node in model.graph.node) and "'nms': True" not in str(
        facts.get("args")
    )


def _count_classes(model: onnx.ModelProto, weights: Path, task: str, extras: int, stride: int) -> int:
    """By the first output: [B, classes] of classify, else [B, 4 + classes + extras, anchors]."""
    declared = dims(model.graph.output[0])
    if task == "classify":
        if len(declared) == 2 and declared[1]:
            return declared[1]
        raise WeightsError(f"{weights} gives {declared[1:]} an image, not the probabilities of classes")
    height, width = dims(model.graph.input[0])[2:]
    channels, anchors = (*declared, 0, 0, 0)[1:3]
    fits = anchors in _anchors(height, width, stride) if height and width else not anchors
    needs = task in ("segment", "pose") and not extras
    if len(declared) != 3 or not fits or needs or channels <= 4 + extras:
        raise WeightsError(
            f"{weights} gives {declared[1:]} an image, not the {task} head of YOLOv8 and later, [4 + classes + "
            f"{extras}, anchors]: if it has NMS inside, {_NMS}; other models are not served"
        )
    return channels - 4 - extras


def _anchors(height: int, width: int, stride: int) -> set[int]:
    """All numbers of anchors that heads on one to five levels, the last one of this stride, have."""
    levels = [(height // each) * (width // each) for each in (stride >> level for level in range(5)) if each]
    return {sum(levels[:count]) for count in range(1, len(levels) + 1)}


def require_task(weights: Path, task: str) -> None:
    """Raise WeightsError for another task."""
    if task not in TASKS:
        raise WeightsError(f"{weights} is a {task} model; served are {', '.join(TASKS)}")


def require_multiples(size: int | Shape, stride: int) -> None:
    """Raise WeightsError, with the nearest that would do, for a side that the stride does not divide."""
    for side in (size,) if isinstance(size, int) else size:
        if side % stride:
            nearest = max(stride, round(side / stride) * stride)
            text = f"IMGSZ={side}" if isinstance(size, int) else f"IMGSZ={format_shapes(size)}: {side}"
            raise WeightsError(f"{text} is not a multiple of the model's stride {stride}: use {nearest}")
