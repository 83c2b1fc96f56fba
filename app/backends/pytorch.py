"""PyTorch FP32 by Ultralytics: the reference every engine is checked against, and a slow fallback."""

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.errors import WeightsError
from app.export import load_module
from app.graph import K

PRECISIONS = ("fp32",)

_FILE = "weights.pt"


def version() -> str:
    return str(torch.__version__)


def build(weights: Path, graph: Path, folder: Path) -> None:
    if weights.suffix != ".pt":
        raise WeightsError(f"BACKEND=pytorch needs .pt weights, not {weights}")
    shutil.copyfile(weights, folder / _FILE)


def load(folder: Path, lanes: int, threads: int) -> "PytorchEngine":
    return open_weights(folder / _FILE, threads)


def open_weights(weights: Path, threads: int) -> "PytorchEngine":
    """The engine of .pt weights. The number of threads is the process's."""
    torch.set_num_threads(threads)
    return PytorchEngine(load_module(weights))


class PytorchEngine:
    """The model's own forward and, in torch, the same selection of rows as the serving graph."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def infer(self, lane: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            return select_rows(self._module(pixels)[0]).numpy()

    def close(self) -> None:
        del self._module


def select_rows(head: torch.Tensor) -> torch.Tensor:
    """Raw head float32 [B, 4 + nc, A], cx cy w h and class scores -> rows [B, K, 6]."""
    best, label = head[:, 4:].max(1)
    score, anchor = best.topk(min(K, best.shape[1]), dim=1)
    box = head[:, :4].transpose(1, 2).gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
    centre, half = box[..., :2], box[..., 2:] / 2
    columns = (score.unsqueeze(-1), label.gather(1, anchor).unsqueeze(-1).float())
    return torch.cat((centre - half, centre + half, *columns), -1)
