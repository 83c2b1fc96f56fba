"""For every task /v1/predict returns what Ultralytics' `Results.summary()` returns, with Ultralytics' preprocessing,
forward pass in PyTorch FP32 and NMS.
"""

import io
import os
from types import SimpleNamespace

import cv2
import fakes
import fuzz
import numpy as np
import pytest
import scenes
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from clients import tasks
from conftest import Live, serve_engine
from mask_arrays import decoded
from PIL import Image
from ultralytics.data.augment import LetterBox
from ultralytics.engine.results import Results
from ultralytics.models.yolo.obb.predict import OBBPredictor
from ultralytics.models.yolo.pose.predict import PosePredictor
from ultralytics.models.yolo.segment.predict import SegmentationPredictor
from ultralytics.utils import ops

from app.backends import onnxruntime
from app.graphs import export

PREDICTORS = {"segment": SegmentationPredictor, "pose": PosePredictor, "obb": OBBPredictor}
SIZES = [(320, 320), (333, 517), (640, 480), (200, 900)]
CONF = 0.1


@pytest.fixture(scope="module")
def pictures(served) -> list[np.ndarray]:
    if served.task == "classify":
        return [scenes.crop(800_000 + i)[0] for i in range(12)]
    return [scenes.scene(800_000 + i, *SIZES[i % len(SIZES)], task=served.task).image for i in range(12)]


@pytest.fixture(scope="module")
def files(pictures) -> list[bytes]:
    return [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in pictures]


@pytest.fixture(scope="module", params=["segment", "pose", "obb", "classify"])
def served(request, of_task):
    """The demo model of a task, served by ONNX Runtime."""
    made = of_task(request.param)
    engine, port = onnxruntime.OnnxruntimeEngine(made.graph, 2), tasks.GRPC_PORTS[request.param]
    with serve_engine(engine, fakes.stored(model=made.model), grpc_port=port) as live:
        yield SimpleNamespace(task=request.param, live=live, **vars(made))


@pytest.fixture(scope="module")
def theirs(served, pictures) -> list[Results]:
    """The results of Ultralytics for each image."""
    torch.set_num_threads(2)
    module = export.load_module(served.weights)
    predict = classified if served.task == "classify" else detected
    return [predict(served, module, image) for image in pictures]


@pytest.fixture(scope="module")
def expected(theirs) -> list[list[dict]]:
    return [results.summary() for results in theirs]


def forward(module, frame: np.ndarray):
    pixels = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1))).float()[None] / 255
    with torch.inference_mode():
        return pixels, module(pixels)


def detected(served, module, image: np.ndarray) -> Results:
    predictor = PREDICTORS[served.task](overrides={"conf": CONF, "verbose": False})
    kpt_shape = getattr(module, "kpt_shape", None)
    predictor.model = SimpleNamespace(names=module.names, kpt_shape=kpt_shape, end2end=False)
    predictor.batch = [""], None, None
    letterbox = LetterBox((served.model.imgsz,) * 2, auto=True, stride=32)
    pixels, found = forward(module, letterbox(image=image))
    return predictor.postprocess(found, pixels, [image[..., ::-1]])[0]


def classified(served, module, image: np.ndarray) -> Results:
    """Classify the image after torchvision's Resize and CenterCrop of a PIL image."""
    (height, width), side = image.shape[:2], served.model.imgsz
    size = (int(side * width / height), side) if height <= width else (side, int(side * height / width))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (round((each - side) / 2) for each in size)
    _, (probs, _) = forward(module, np.asarray(resized.crop((left, top, left + side, top + side))))
    return Results(image, "", module.names, probs=probs[0])


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    """Assert equal fields in the same order; coordinates within 0.01 px, scores within 0.001."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        assert (ours["name"], ours["class"]) == (theirs["name"], theirs["class"])
        assert abs(ours["confidence"] - theirs["confidence"]) < 1e-3
        for part in ("box", "segments", "keypoints"):
            assert list(ours.get(part, ())) == list(theirs.get(part, ()))
            for name, values in theirs.get(part, {}).items():
                np.testing.assert_allclose(ours[part][name], values, atol=0.01)


def post(live: Live, query: str, *files: bytes, path: str = "/v1/predict"):
    response = live.client.post(f"{path}?conf={CONF}&{query}", files=[("file", file) for file in files])
    assert response.status_code == 200, response.text
    return response


def test_there_are_enough_results_to_compare(served, expected):
    assert sum(map(len, expected)) >= 12
    if served.task == "segment":
        assert max(len(found["segments"]["x"]) for each in expected for found in each) > 50


def test_results_of_one_and_of_many_files_equal_those_of_ultralytics(served, files, expected):
    for file, summary in zip(files, expected, strict=True):
        assert_equal(post(served.live, "", file).json()["images"][0]["results"], summary)
    batch = post(served.live, "", *files).json()["images"]
    for image, summary in zip(batch, expected, strict=True):
        assert_equal(image["results"], summary)


def test_shapes_are_those_of_the_images(served, files, pictures):
    found = post(served.live, "", *files).json()["images"]
    assert [image["shape"] for image in found] == [list(image.shape[:2]) for image in pictures]


def test_detect_returns_the_results_of_predict(served, files):
    ours, theirs = (post(served.live, "", files[0], path=path).json() for path in ("/v1/predict", "/v1/detect"))
    assert ours["images"][0]["results"] == theirs["images"][0]["results"]


def test_format_image_returns_the_image_with_the_results_drawn(served, files, pictures):
    answer = served.live.client.post(f"/v1/predict?format=image&conf={CONF}", content=files[0])
    drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert drawn.shape == pictures[0].shape
    assert np.count_nonzero(np.abs(drawn.astype(int) - pictures[0]).max(2) > 50) > 200


def test_masks_rle_adds_the_run_lengths_and_changes_only_the_segments(served, files, theirs, expected):
    for file, results, summary in zip(files[:6], theirs, expected, strict=False):
        found = post(served.live, "masks=rle", file).json()["images"][0]["results"]
        coded = [each.pop("mask") for each in found if served.task == "segment"]
        assert_equal(found, [{name: each[name] for name in each if name != "segments"} for each in summary])
        for mask, pixels in zip(coded, results.masks.data if coded else (), strict=True):
            resized = ops.scale_masks(pixels[None, None], results.orig_shape)[0, 0].numpy()
            undecided = np.abs(resized - 0.5) < 1e-3
            assert mask["size"] == list(results.orig_shape)
            given = decoded(mask["counts"], *results.orig_shape)
            np.testing.assert_array_equal(given[~undecided], resized[~undecided] > 0.5)


def test_masks_of_another_kind_are_refused(served, files):
    answer = served.live.client.post("/v1/predict?masks=png", content=files[0])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_parameter")


@pytest.mark.parametrize("i", range(6), ids=["http", "aio", "grpc", "http url", "grpc url", "val by url"])
def test_a_client_of_the_table_gets_the_results_of_the_native_api(served, i):
    *_, run = tasks.CHECKS[served.task][i]
    assert run(served.live.url)


def test_outputs_of_both_kserve_models_have_the_shapes_and_types_of_their_metadata(served, files):
    with triton.InferenceServerClient(served.live.url.removeprefix("http://")) as client:
        name, side = served.model.name, served.model.imgsz
        frames = triton.InferInput("images", [2, 3, side, side], "UINT8")
        frames.set_data_from_numpy(np.zeros((2, 3, side, side), np.uint8))
        encoded = triton.InferInput("image", [2], "BYTES")
        encoded.set_data_from_numpy(np.array(files[:2], np.object_))
        for model, given in ((name, frames), (f"{name}_image", encoded)):
            answer, reported = client.infer(model, [given]), client.get_model_metadata(model)["outputs"]
            assert [output["name"] for output in answer.get_response()["outputs"]] == [
                each["name"] for each in reported
            ]
            for each in reported:
                found = answer.get_output(each["name"])
                assert found["datatype"] == each["datatype"]
                assert len(found["shape"]) == len(each["shape"])
                assert all(wanted in (-1, size) for wanted, size in zip(each["shape"], found["shape"], strict=True))
            assert {each["name"] for each in reported} < client.get_model_config(model)["parameters"].keys()
            (statistics,) = client.get_inference_statistics(model)["model_stats"]
            assert (statistics["name"], statistics["inference_count"] >= 2) == (model, True)


def test_grpc_describes_both_kserve_models_as_http_does(served):
    port, address = tasks.GRPC_PORTS[served.task], served.live.url.removeprefix("http://")
    with (
        triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as grpc_client,
        triton.InferenceServerClient(address) as http_client,
    ):
        for model in (served.model.name, f"{served.model.name}_image"):
            reported, expected = (
                grpc_client.get_model_metadata(model, as_json=True),
                http_client.get_model_metadata(model),
            )
            shapes = {each["name"]: [str(side) for side in each["shape"]] for each in expected["outputs"]}
            assert {each["name"]: each["shape"] for each in reported["outputs"]} == shapes
            config = grpc_client.get_model_config(model, as_json=True)["config"]
            assert config["parameters"] == http_client.get_model_config(model)["parameters"]
            assert grpc_client.get_inference_statistics(model, as_json=True)["model_stats"][0]["name"] == model


def test_an_image_without_results_has_empty_outputs(served):
    with triton.InferenceServerClient(served.live.url.removeprefix("http://")) as client:
        encoded = triton.InferInput("image", [1], "BYTES")
        encoded.set_data_from_numpy(np.array([cv2.imencode(".png", np.zeros((64, 64, 3)))[1].tobytes()], np.object_))
        answer = client.infer(f"{served.model.name}_image", [encoded], parameters={"conf": 1.0})
        found = 5 if served.task == "classify" else 0  # classify always returns five classes
        for output in answer.get_response()["outputs"]:
            assert answer.as_numpy(output["name"]).shape[1:2] in ((), (found,))


def test_malformed_requests_get_no_5xx(served):
    server = fuzz.Server(served.live.url, f"127.0.0.1:{tasks.GRPC_PORTS[served.task]}", os.getpid())
    outcome = fuzz.run(server, 300, senders=("web", "kserve", "grpc"), parts=2)
    assert [failure for failure in outcome.failures if "growth" not in failure] == []
    assert {"200", "400", "405", "422", "OK", "INVALID_ARGUMENT"} <= {status for _, status in outcome.statuses}
