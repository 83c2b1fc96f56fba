"""Weights of every task that find the demo's things: backbone, boxes and classes are those of the demo model, and the
part of the head that is the task's own is random. What that part gives depends on the image, so masks, keypoints and
angles are as different as can be.
"""

from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.nn import tasks

from app.settings import DEMO_WEIGHTS

MODELS = {
    "segment": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
    "classify": tasks.ClassificationModel,
}
CONFIGS = {"segment": "yolov8n-seg", "pose": "yolov8n-pose", "obb": "yolov8n-obb", "classify": "yolov8n-cls"}


def graft(task: str, folder: Path, *, config: str | None = None, kpt_shape: tuple[int, int] = (5, 3)) -> Path:
    """A .pt file of this task."""
    torch.manual_seed(1)
    trained = YOLO(DEMO_WEIGHTS).model
    options = {"data_kpt_shape": kpt_shape} if task == "pose" else {}
    model = MODELS[task](f"{config or CONFIGS[task]}.yaml", nc=len(trained.names), verbose=False, **options)
    own = model.state_dict()
    same = {
        name: value for name, value in trained.state_dict().items() if name in own and own[name].shape == value.shape
    }
    model.load_state_dict(same, strict=False)
    model.names, model.args, model.task = trained.names, {}, task
    for name, parameter in model.named_parameters():
        if name not in same and parameter.dim() > 1:
            parameter.data *= 3  # so that it is heard
    whole = YOLO(f"{config or CONFIGS[task]}.yaml")
    whole.model, whole.task = model.float().eval(), task
    path = folder / f"{task}.pt"
    whole.save(path)
    return path
