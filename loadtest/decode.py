"""Measures the time that DECODE=fast saves and the change of the boxes.

    .venv/bin/python loadtest/decode.py

Demo scenes of 640x480 are enlarged 2, 4 and 8 times, encoded as JPEG, decoded both ways and inferred by the demo model
on OpenVINO FP32 at 640. Prints a Markdown table: CPU time of decode and letterbox, the share of exact decoding's boxes
that fast decoding finds too, the distance between them, and mAP50-95 of both.
"""

import runpy
import statistics
import sys
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app import backends  # noqa: E402
from app.building.builder import build, find  # noqa: E402
from app.evaluation.datasets import Sample  # noqa: E402
from app.evaluation.datasets.annotations import Labels  # noqa: E402
from app.evaluation.gate import Gate  # noqa: E402
from app.serving.spec import BuildRequest  # noqa: E402
from app.settings import DEMO, DEMO_WEIGHTS, ENGINES_DIR  # noqa: E402
from app.system import host  # noqa: E402
from app.vision.preprocess import Preprocessor  # noqa: E402

SCENES, FIRST, QUALITY = 40, 700_000, 92


def main() -> None:
    host.keep_freed_memory()
    request = BuildRequest(str(DEMO_WEIGHTS), None, 8, "fp32", "openvino", ENGINES_DIR)
    stored = find(request) or build(request, lambda _: None)
    model = stored.manifest.model
    engine = backends.get("openvino").load(stored.folder, 1, host.cpus())
    preprocessors = {
        fast: Preprocessor(model.imgsz, model.stride, shapes=None, fast=fast, max_pixels=10**9)
        for fast in (False, True)
    }
    scene = runpy.run_path(str(DEMO / "scenes.py"))["scene"]
    heads = ("image", "exact, ms", "fast, ms", "boxes found", "mean distance, px", "max distance, px")
    print(f"| {' | '.join(heads)} | mAP50-95 exact | mAP50-95 fast |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for factor in (2, 4, 8):
        gate, spent = Gate("fp32", model), {False: list[float](), True: list[float]()}
        for seed in range(FIRST, FIRST + SCENES):
            item = scene(seed, 640, 480)
            image = cv2.resize(item.image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
            rows = {}
            for fast, prepare in preprocessors.items():
                started = time.thread_time()
                transform, frame = prepare(data)
                spent[fast].append((time.thread_time() - started) * 1000)
                rows[fast] = engine.infer(0, [frame])[0]
            gate.add(Sample(image, Labels(item.classes, item.boxes * factor)), transform, rows[False], rows[True])
        found = gate.figures()
        cells = [
            f"{640 * factor}x{480 * factor}",
            *(f"{statistics.median(spent[fast]):.1f}" for fast in (False, True)),
            f"{found.agreement:.2%}",
            f"{found.box_px_mean:.3f}",
            f"{found.box_px:.2f}",
            f"{found.reference_map50_95:.4f}",
            f"{found.map50_95:.4f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
