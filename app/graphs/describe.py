"""Reads the ModelInfo of a plain export (task, names, stride, sizes) from its metadata and its output shapes."""

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
    """Return the ModelInfo of an export that normalize.py has read. `imgsz` and `shapes` are the requested frame sizes.

    Raises WeightsError, which names `weights`, for tasks, heads and frame sizes that are not supported.
    """
    facts = {fact.key: fact.value for fact in model.metadata_props}
    if not facts.keys() & {"task", "names"}:
        raise WeightsError(f"{weights} is not an Ultralytics export: its metadata has neither task nor names")
    output_shapes = [dims(output) for output in model.graph.output]
    task = facts.get("task") or _task_of(output_shapes)
    require_task(weights, task)
    if len(model.graph.input) != 1 or len(output_shapes) != (2 if task == "segment" else 1):
        raise WeightsError(f"{weights}: its inputs and outputs are not those of a {task} export")
    _, channels, height, width = dims(model.graph.input[0])
    if channels != 3:
        raise WeightsError(f"{weights} takes {channels} channels; only RGB models are supported")
    stride = metadata.largest(facts.get("stride"), metadata.STRIDE)
    kpt_shape = metadata.kpt_shape(facts.get("kpt_shape")) if task == "pose" else None
    extras = _extras(task, output_shapes, kpt_shape)
    end_to_end = _is_end_to_end(model, facts, output_shapes[0], 6 + extras)
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
                f"{weights} classifies square frames; IMGSZ={format_shapes(*shapes)} is not square: set one number"
            )
    for each in shapes or (size,):
        require_multiples(each, stride)
    longest = max(map(max, shapes)) if shapes else size
    return ModelInfo(name, task, names, stride, longest, shapes, kpt_shape, end_to_end)


def dims(value: onnx.ValueInfoProto) -> list[int]:
    """Return the sizes of a tensor; 0 for a dynamic size."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _task_of(output_shapes: list[list[int]]) -> str:
    """Return the task by the output shapes, for old exports whose metadata has no `task`."""
    if len(output_shapes) == 2:
        return "segment"
    return "classify" if len(output_shapes[0]) == 2 else "detect"


def _extras(task: str, output_shapes: list[list[int]], kpt_shape: tuple[int, int] | None) -> int:
    """Return the number of values per box other than the 4 of the box and the class scores."""
    match task:
        case "segment":
            return output_shapes[1][1] if len(output_shapes[1]) == 4 else 0
        case "pose":
            return kpt_shape[0] * kpt_shape[1] if kpt_shape else 0
    return int(task == "obb")


def _is_end_to_end(model: onnx.ModelProto, facts: dict[str, str], output_shape: list[int], columns: int) -> bool:
    """Return True if the head selects its boxes without NMS. YOLOv10 exports of Ultralytics 8.2 have no `end2end`."""
    if len(output_shape) != 3 or output_shape[2] != columns or facts.get("task") == "classify":
        return False
    if "end2end" in facts:
        return metadata.flag(facts["end2end"])
    return not any(node.op_type == "NonMaxSuppression" for node in model.graph.node) and "'nms': True" not in str(
        facts.get("args")
    )


def _count_classes(model: onnx.ModelProto, weights: Path, task: str, extras: int, stride: int) -> int:
    """Return the number of classes. Raises WeightsError if the first output is not that of a supported head.

    It is [B, classes] for classify, else [B, 4 + classes + extras, anchors].
    """
    declared = dims(model.graph.output[0])
    if task == "classify":
        if len(declared) == 2 and declared[1]:
            return declared[1]
        raise WeightsError(f"{weights} outputs {declared[1:]} per image, not class probabilities")
    height, width = dims(model.graph.input[0])[2:]
    channels, anchors = (*declared, 0, 0, 0)[1:3]
    fits = anchors in _anchors(height, width, stride) if height and width else not anchors
    no_extras = task in ("segment", "pose") and not extras
    if len(declared) != 3 or not fits or no_extras or channels <= 4 + extras:
        raise WeightsError(
            f"{weights} outputs {declared[1:]} per image, not the {task} head of YOLOv8 and later, [4 + classes + "
            f"{extras}, anchors]: if it has NMS inside, {_NMS}; other models are not supported"
        )
    return channels - 4 - extras


def _anchors(height: int, width: int, stride: int) -> set[int]:
    """Return the possible numbers of anchors: of heads with one to five levels, the last one with this stride."""
    levels = [(height // each) * (width // each) for each in (stride >> level for level in range(5)) if each]
    return {sum(levels[:count]) for count in range(1, len(levels) + 1)}


def require_task(weights: Path, task: str) -> None:
    """Raise WeightsError for an unsupported task."""
    if task not in TASKS:
        raise WeightsError(f"{weights} is a {task} model; supported tasks are {', '.join(TASKS)}")


def require_multiples(size: int | Shape, stride: int) -> None:
    """Raise WeightsError for a side that is not a multiple of the stride; the message has the nearest valid side."""
    for side in (size,) if isinstance(size, int) else size:
        if side % stride:
            nearest = max(stride, round(side / stride) * stride)
            text = f"IMGSZ={side}" if isinstance(size, int) else f"IMGSZ={format_shapes(size)}: {side}"
            raise WeightsError(f"{text} is not a multiple of the model's stride {stride}: use {nearest}")
