"""Checkpoints, read without torch."""

from collections import OrderedDict

import numpy as np
import odd_weights
import pytest
import torch

from app.settings import DEMO_WEIGHTS
from app.weights import checkpoint


def test_read_returns_model_names_and_size_of_a_checkpoint():
    found = checkpoint.read(DEMO_WEIGHTS)
    assert found.model == "ultralytics.nn.tasks.DetectionModel"
    assert found.attributes["names"][0] == "red circle"
    assert (found.imgsz, found.stride, found.legacy, found.classifies) == (640, 32, False, False)
    assert "torch.nn.modules.conv.Conv2d" in found.classes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64], ids=str)
def test_the_size_is_rounded_up_to_a_multiple_of_the_largest_stride(tmp_path, dtype):
    """The stride is 32 if its tensor has an unknown type."""
    state = odd_weights.checkpoint()
    odd_weights.model_of(state).stride = torch.tensor([0, 8, 64, 16], dtype=dtype)[1:]
    state["train_args"]["imgsz"] = 600
    torch.save(state, tmp_path / "w.pt")
    found = checkpoint.read(tmp_path / "w.pt")
    assert (found.stride, found.imgsz) == ((32, 608) if dtype == torch.int64 else (64, 640))


def test_tensors_are_found_at_the_top_and_one_level_below(tmp_path):
    for content, expected in (
        (OrderedDict(w=torch.ones(1)), True),
        ({"model": {"w": torch.ones(1)}}, True),
        ({"model": {"w": 1}}, False),
        ([torch.ones(1)], False),
    ):
        torch.save(content, tmp_path / "w.pt")
        assert checkpoint.holds_tensors(checkpoint.read(tmp_path / "w.pt").root) is expected


def test_a_damaged_pickle_raises_not_pickled(tmp_path):
    """The bytes are random."""
    import zipfile

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(DEMO_WEIGHTS) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        valid = archive.read(name)
    for i in range(200):
        damaged = bytearray(valid[:4000])
        for place in rng.integers(0, len(damaged), 20):
            damaged[place] = rng.integers(0, 256)
        with zipfile.ZipFile(tmp_path / f"{i}.pt", "w") as archive:
            archive.writestr("w/data.pkl", bytes(damaged))
        with pytest.raises(checkpoint.NotPickled):
            checkpoint.read(tmp_path / f"{i}.pt")
