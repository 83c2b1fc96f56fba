"""PyTorch by Ultralytics: in FP32 the reference every engine is checked against, and a slow fallback. On a GPU if any,
and there in FP16 too, to compare with.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.backends import BuildContext
from app.errors import WeightsError
from app.graphs.export import load_module
from app.system import host
from app.vision.postprocess import K, Outputs
from app.vision.preprocess import Pixels

PRECISIONS = ("fp32", "fp16") if torch.cuda.is_available() else ("fp32",)
INSTANCES = 1
ONE_DEVICE = False
STATIC = False

MAX_BATCH = 8  # images at a time: PyTorch gains nothing from more, and 64 at 1280 px would need a GPU of their own

_FILES = {"fp32": "weights.pt", "fp16": "weights-half.pt"}  # the same weights


def require() -> None:
    """It runs wherever it is installed."""


def version() -> str:
    return str(torch.__version__)


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else host.architecture()


def build(context: BuildContext) -> dict[str, Any]:
    if context.weights.suffix != ".pt":
        raise WeightsError(f"BACKEND=pytorch needs .pt weights, not {context.weights}")
    shutil.copyfile(context.weights, context.folder / _FILES[context.precision])
    return {}


def load(folder: Path, instances: int, threads: int) -> "PytorchEngine":
    half = folder / _FILES["fp16"]
    return open_weights(half if half.exists() else folder / _FILES["fp32"], threads, half=half.exists())


def open_weights(weights: Path, threads: int, *, half: bool = False) -> "PytorchEngine":
    """The engine of .pt weights. The number of threads is the process's."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # FP32 means FP32
    return PytorchEngine(load_module(weights), half=half)


class PytorchEngine:
    """The model's own forward and, in torch, the same selection of rows as the serving graph."""

    def __init__(self, module: torch.nn.Module, *, half: bool = False) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = torch.float16 if half else torch.float32
        self._module = module.to(self._device, self._dtype)
        head = list(module.model)[-1]  # type: ignore[arg-type]
        self._head, self._classes = type(head).__name__, len(module.names)  # type: ignore[arg-type]
        self._end_to_end = bool(getattr(head, "end2end", False))

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        return [outputs for i in range(0, len(frames), MAX_BATCH) for outputs in self._infer(frames[i : i + MAX_BATCH])]

    def _infer(self, frames: Sequence[Pixels]) -> list[Outputs]:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(frames)).to(self._device).permute(0, 3, 1, 2).to(self._dtype) / 255
            found = self._serving(self._module(pixels)[0])
            return list(zip(*(output.float().cpu().numpy() for output in found), strict=True))

    def _serving(self, found: Any) -> tuple[torch.Tensor, ...]:
        """The head's own output -> those of the serving graph."""
        if self._head == "Classify":
            return (found,)
        first, *protos = found if isinstance(found, tuple) else (found,)
        if not self._end_to_end:
            first = select_rows(first.float(), self._classes, centred=self._head.startswith("OBB"))
        return first, *protos

    def device_seconds(self, instance: int) -> float | None:
        return None

    def close(self) -> None:
        del self._module


def select_rows(head: torch.Tensor, classes: int, *, centred: bool = False) -> torch.Tensor:
    """Raw head float32 [B, 4 + nc + E, A], cx cy w h, class scores and extras -> rows [B, K, 6 + E]; boxes stay as they
    are if `centred`.
    """
    best, label = head[:, 4 : 4 + classes].max(1)
    score, anchor = best.topk(min(K, best.shape[1]), dim=1)
    picked = head.transpose(1, 2).gather(1, anchor.unsqueeze(-1).expand(-1, -1, head.shape[1]))
    centre, half, extras = picked[..., :2], picked[..., 2:4] / 2, picked[..., 4 + classes :]
    box = (picked[..., :4],) if centred else (centre - half, centre + half)
    return torch.cat((*box, score.unsqueeze(-1), label.gather(1, anchor).unsqueeze(-1).float(), extras), -1)
