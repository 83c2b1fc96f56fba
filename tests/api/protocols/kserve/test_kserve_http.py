"""KServe over HTTP, called by Triton's own clients and with plain HTTP, with a device that the test controls."""

import ast
import asyncio
import base64
import gzip
import json
import logging
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor

import fakes
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from posts import wait_for
from tritonclient.utils import InferenceServerException

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), np.uint8)
ROWS = fakes.ROWS[:2]  # a dog of 0.9 and a cat of 0.6


@pytest.fixture
def live(serve):
    return serve()


@pytest.fixture
def client(live):
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        yield client


def tensor(data: np.ndarray, datatype: str, name: str = "images", *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, list(data.shape), datatype)
    given.set_data_from_numpy(data, binary_data=binary)
    return given


def images(count: int = 1, datatype: str = "FP32", *, binary: bool = True) -> list[triton.InferInput]:
    floats = PIXELS[:count] / np.float32(255)
    data = {"FP32": floats, "FP16": floats.astype(np.float16), "UINT8": PIXELS[:count]}[datatype]
    return [tensor(data, datatype, binary=binary)]


def encoded(*files: bytes, binary: bool = True) -> list[triton.InferInput]:
    return [tensor(np.array(files, np.object_), "BYTES", "image", binary=binary)]


def refusal(call, *arguments, **options) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


def post(live, body: bytes, headers: dict[str, str] | None = None, model: str = "pets") -> httpx.Response:
    return live.client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def json_body(**changes) -> bytes:
    """Return a JSON request of one input, with these changes. A change to None removes the field."""
    given = {"name": "images", "shape": [1, 3, 32, 32], "datatype": "UINT8", "data": [0] * 3072} | changes
    return json.dumps({"inputs": [{name: value for name, value in given.items() if value is not None}]}).encode()


def test_server_and_models_are_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets_image", "1")
    assert not client.is_model_ready("pets", "2")
    assert client.get_server_metadata()["extensions"] == [
        "binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics",
    ]  # fmt: skip


def test_the_server_is_live_and_not_ready_until_the_engine_is_loaded(serve):
    source = fakes.Source(fakes.stored())
    source.go.clear()
    live = serve(source, wait=False)
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("pets")
        assert client.get_model_repository_index() == []
        status, message = refusal(client.infer, "pets", images())
        assert status == "503"
        assert "not ready" in message
        assert refusal(client.get_inference_statistics)[0] == "503"


def test_metadata_lists_the_inputs_and_outputs_of_both_models(client):
    assert client.get_model_metadata("pets", "1") == {
        "name": "pets",
        "versions": ["1"],
        "platform": "fake",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [{"name": "output0", "datatype": "FP32", "shape": [-1, -1, 6]}],
    }
    image = client.get_model_metadata("pets_image")
    assert image["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in image["outputs"]] == ["num_detections", "boxes", "scores", "classes"]


def test_the_config_holds_metadata_for_ultralytics_as_a_python_literal(client):
    config = client.get_model_config("pets", "1")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, -1, -1]}]
    assert config["output"] == [{"name": "output0", "data_type": "TYPE_FP32", "dims": [-1, 6]}]
    metadata = ast.literal_eval(config["parameters"]["metadata"]["string_value"])
    assert metadata["names"] == fakes.NAMES
    assert (metadata["task"], metadata["stride"], metadata["imgsz"]) == ("detect", 32, [64, 64])
    assert (metadata["end2end"], metadata["args"]["dynamic"]) == (True, True)
    image = client.get_model_config("pets_image")
    assert (image["max_batch_size"], image["input"][0]["data_type"]) == (0, "TYPE_STRING")


def test_an_engine_with_fixed_shapes_is_described_as_static(serve, device):
    live = serve(fakes.Source(fakes.stored(shapes=((32, 64), (64, 64)))))
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        text = client.get_model_config("pets")["parameters"]["metadata"]["string_value"]
        metadata = ast.literal_eval(text)
        assert (metadata["imgsz"], metadata["args"]["dynamic"], metadata["batch"]) == ([64, 64], False, 1)
        status, message = refusal(client.infer, "pets", images())
        assert (status, "96x96 px is not a shape of this engine; it has 32x64,64x64" in message) == ("400", True)
    assert device.batches == []


def test_the_index_lists_both_models_and_load_confirms_a_served_model(client):
    assert client.get_model_repository_index() == [
        {"name": "pets", "version": "1", "state": "READY"},
        {"name": "pets_image", "version": "1", "state": "READY"},
    ]
    client.load_model("pets")
    assert refusal(client.load_model, "pets", config="{}")[0] == "501"
    assert refusal(client.unload_model, "pets")[0] == "501"
    assert refusal(client.load_model, "cars")[0] == "404"


@pytest.mark.parametrize(
    ("datatype", "binary"), [("FP32", True), ("FP16", True), ("UINT8", True), ("FP32", False), ("UINT8", False)]
)
def test_tensors_reach_the_engine_unchanged_and_rows_after_nms_are_returned(client, device, datatype, binary):
    selected = [triton.InferRequestedOutput("output0", binary_data=binary)]
    answer = client.infer("pets", images(1, datatype, binary=binary), outputs=selected, request_id="abc")
    rows = answer.as_numpy("output0")
    assert rows.shape == (1, 300, 6)
    np.testing.assert_array_equal(rows[0, :2], ROWS)
    assert not rows[0, 2:].any()
    np.testing.assert_array_equal(device.frames[0], PIXELS[0].transpose(1, 2, 0))
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("abc", "pets", "1")


def test_values_are_rounded_to_the_nearest_level_and_clipped_to_the_range(client, device):
    data = np.zeros((1, 3, 32, 32), np.float32)
    data[0, 0, 0, :6] = [0.5, 0.2 / 255, -3, 7, np.nan, 1.001]
    client.infer("pets", [tensor(data, "FP32")])
    assert device.frames[0][0, :6, 0].tolist() == [128, 0, 0, 255, 0, 255]


def test_images_of_one_request_share_a_batch_and_keep_their_order(serve, device):
    device.rows = None  # every value of a row is the first pixel
    live = serve(max_wait_ms=10_000, profile=fakes.profile(2))
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        data = np.zeros((2, 3, 32, 32), np.uint8)
        data[0], data[1] = 3, 1
        rows = client.infer("pets", [tensor(data, "UINT8")]).as_numpy("output0")
    assert [len(batch) for batch in device.batches] == [2]
    assert rows[:, 0, 5].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, 2),
        ({"conf": 0.7}, 1),
        ({"classes": "dog"}, 1),
        ({"classes": 0}, 1),
        ({"max_det": 1}, 1),
        ({"conf": 0.95, "iou": 0.5, "agnostic": True}, 0),
    ],
)
def test_thresholds_are_parameters_of_the_request(client, sample, parameters, found):
    rows = client.infer("pets", images(), parameters=parameters).as_numpy("output0")
    assert np.count_nonzero(rows[0, :, 4]) == found
    answer = client.infer("pets_image", encoded(sample), parameters=parameters)
    assert answer.as_numpy("num_detections").tolist() == [found]


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images_give_boxes_in_their_own_pixels(live, client, sample, binary):
    native = live.client.post("/v1/detect", content=sample).json()["images"][0]["results"]
    selected = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("boxes", "scores", "classes")]
    file = sample if binary else base64.b64encode(sample)
    answer = client.infer("pets_image", encoded(file, file, binary=binary), outputs=selected)
    boxes, classes = answer.as_numpy("boxes"), answer.as_numpy("classes")
    assert boxes.shape == (2, 2, 4)
    np.testing.assert_allclose(boxes[1], [list(found["box"].values()) for found in native], atol=1e-4)
    assert classes.tolist() == [[1, 0]] * 2
    np.testing.assert_allclose(answer.as_numpy("scores"), [[0.9, 0.6]] * 2, atol=1e-6)
    assert answer.as_numpy("num_detections") is None  # it was not requested


def test_an_image_without_boxes_has_empty_outputs(client, sample):
    answer = client.infer("pets_image", encoded(sample), parameters={"conf": 0.99})
    assert answer.as_numpy("boxes").shape == (1, 0, 4)
    assert answer.as_numpy("num_detections").tolist() == [0]


def test_a_body_without_a_json_header_is_one_image(live, sample):
    response = post(live, sample, {"Inference-Header-Content-Length": "0"}, "pets_image")
    size = int(response.headers["Inference-Header-Content-Length"])
    outputs = json.loads(response.content[:size])["outputs"]
    assert response.headers["content-type"] == "application/octet-stream"
    assert [output["shape"] for output in outputs] == [[1], [1, 2, 4], [1, 2], [1, 2]]
    assert np.frombuffer(response.content[size : size + 4], np.int32) == 2
    assert len(response.content) == size + sum(output["parameters"]["binary_data_size"] for output in outputs)


def test_a_json_request_gets_a_json_response_by_default(live):
    response = post(live, json_body())
    assert response.headers["content-type"] == "application/json"
    assert "Inference-Header-Content-Length" not in response.headers
    assert response.json()["outputs"][0]["data"][4:6] == pytest.approx([0.9, 1])
    assert "id" not in response.json()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_and_responses_may_be_compressed(live, client, algorithm):
    both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    np.testing.assert_array_equal(client.infer("pets", images(), **both).as_numpy("output0")[0, :2], ROWS)
    assert post(live, json_body(), {"Accept-Encoding": algorithm}).headers["Content-Encoding"] == algorithm
    assert "Content-Encoding" not in post(live, json_body(), {"Accept-Encoding": "gzip, deflate"}).headers


async def test_the_asynchronous_client_works_too(live, sample):
    async with triton_aio.InferenceServerClient(live.url.removeprefix("http://")) as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("pets")
        assert (await client.get_model_config("pets"))["name"] == "pets"
        assert (await client.get_model_metadata("pets"))["name"] == "pets"
        assert len(await client.get_model_repository_index()) == 2
        answers = await asyncio.gather(
            client.infer("pets", images(2)), client.infer("pets_image", encoded(sample), request_id="7")
        )
        assert answers[0].as_numpy("output0").shape == (2, 300, 6)
        assert answers[1].get_response()["id"] == "7"
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            await client.infer("cars", images())
        assert len((await client.get_inference_statistics())["model_stats"]) == 2


WRONG_PATHS = [
    ("/v2/nothing", 404, "no such path"),
    ("/v2/models/cars", 404, "Request for unknown model: 'cars' is not found; there is pets"),
    ("/v2/models/pets/versions/2/config", 404, "'pets' version 2"),
    ("/v2/models/pets/infer", 405, "GET is not allowed"),
    ("/v2/logging", 501, "is not supported"),
    ("/v2/models/pets/trace/setting", 501, "is not supported"),
    ("/v2/systemsharedmemory/status", 501, "is not supported"),
    ("/v2/cudasharedmemory/region/x/status", 501, "is not supported"),
]


def test_every_error_is_json_with_one_text(live):
    for path, status, words in WRONG_PATHS:
        response = live.client.get(path)
        assert (response.status_code, response.json().keys()) == (status, {"error"})
        assert words in response.json()["error"], path


WRONG_INPUTS = [
    ({"name": "image"}, "model 'pets' has one input, 'images'; the request has image"),
    ({"datatype": "FP64"}, "datatype 'FP64' is not supported"),
    ({"datatype": "BYTES", "shape": [1], "data": ["AAAA"]}, "BYTES where numbers are expected"),
    ({"datatype": "INT32"}, "INT32 where one of FP32, FP16, UINT8 is expected"),
    ({"shape": [1, 3, 32, -32]}, "inputs.0.shape.3"),
    ({"shape": [1, 3, 32, 32.5]}, "inputs.0.shape.3"),
    ({"shape": [3, 32, 32]}, "[3, 32, 32] is not [images, 3, height, width]"),
    ({"shape": [1, 1, 32, 96]}, "[1, 1, 32, 96] is not [images, 3, height, width]"),
    ({"shape": [1, 3, 16, 64]}, "a side is a multiple of 32 px, at most 128"),
    ({"shape": [0, 3, 32, 32], "data": []}, "images: 0 images"),
    ({"shape": [1] * 70, "data": [0]}, "is not a valid tensor shape"),
    ({"shape": [2**62, 2**62, 3, 32]}, "is not a valid tensor shape"),
    ({"shape": [0, 2**62], "data": []}, "is not a valid tensor shape"),
    ({"shape": [0, 2**63], "data": []}, "is not a valid tensor shape"),
    ({"data": [0] * 3071}, "is 3072 values, and there are 3071"),
    ({"data": [256] + [0] * 3071}, "data is not a list of UINT8"),
    ({"data": "zero"}, "data is not a list of UINT8"),
    ({"data": {"b64": ""}}, "data is not a list of UINT8"),
    ({"data": [[0], [0, 1]]}, "data is not a list of UINT8"),
    ({"data": None}, "give its data, or the binary_data_size"),
    ({"parameters": {"binary_data_size": 3072}}, "give its data, or the binary_data_size"),
    ({"data": None, "parameters": {"binary_data_size": 3072}}, "not a length within the 0 remaining bytes"),
    ({"data": None, "parameters": {"binary_data_size": "x"}}, "not a length within"),
]


def test_a_wrong_input_is_400_with_its_reason(live, device):
    for changes, words in WRONG_INPUTS:
        response = post(live, json_body(**changes))
        assert (response.status_code, response.json().keys()) == (400, {"error"})
        assert words in response.json()["error"], changes
    assert device.batches == []


@pytest.mark.parametrize("shape", [[2, 0], [3, 2**20, 0], [0, 5], []])
def test_a_shape_without_images_is_400(live, shape):
    body = json.dumps({"inputs": [{"name": "image", "shape": shape, "datatype": "BYTES", "data": []}]})
    response = post(live, body.encode(), model="pets_image")
    assert response.status_code == 400
    assert "image: " in response.json()["error"]


def test_a_parameter_for_shared_memory_or_classification_is_501(live):
    assert post(live, json_body(parameters={"shared_memory_region": "x"})).status_code == 501
    body = json.loads(json_body()) | {"outputs": [{"name": "output0", "parameters": {"classification": 3}}]}
    assert post(live, json.dumps(body).encode()).status_code == 501


UNREADABLE = [
    (b"", {}, 400, "not JSON"),
    (b"{", {}, 400, "not JSON"),
    (b"[]", {}, 400, "Input should be"),
    (b'{"inputs": []}', {}, 400, "the request has none"),
    (b'{"inputs": [1]}', {}, 400, "inputs.0"),
    (b"{}", {}, 400, "inputs: Field required"),
    (json_body(), {"Inference-Header-Content-Length": "99999"}, 400, "not a length within the body"),
    (json_body(), {"Inference-Header-Content-Length": "-1"}, 400, "not a length within the body"),
    (json_body(), {"Inference-Header-Content-Length": "0"}, 400, "takes tensors"),
    (json_body() + b"more", {"Inference-Header-Content-Length": str(len(json_body()))}, 400, "additional input data"),
    (json_body(), {"Content-Encoding": "br"}, 501, "use gzip or deflate"),
    (json_body(), {"Content-Encoding": "gzip"}, 400, "the body is not gzip"),
    (gzip.compress(json_body())[:-9], {"Content-Encoding": "gzip"}, 400, "cut short"),
    (zlib.compress(bytes(30_000)), {"Content-Encoding": "deflate"}, 413, "when it is inflated"),
    (bytes(30_000), {}, 413, "larger than 20000 bytes"),
    (json_body() + bytes(500), {}, 413, "send images and tensors as bytes"),
    (json_body(), {"X-Deadline-Ms": "soon"}, 400, "X-Deadline-Ms"),
]


def test_an_unreadable_body_is_refused_with_its_reason(serve, device):
    live = serve(max_tensor_bytes=20_000, max_body_bytes=20_000, max_json_bytes=len(json_body()) + 100)
    for body, headers, status, words in UNREADABLE:
        response = post(live, body, headers)
        assert (response.status_code, response.json().keys()) == (status, {"error"})
        assert words in response.json()["error"], body
    assert device.batches == []


WRONG_PARAMETERS = [
    ({"conf": 2}, "conf"),
    ({"confidence": 0.5}, "confidence: no such parameter"),
    ({"classes": "bird"}, "has no class 'bird'"),
    ({"timeout": -5}, "timeout: -5 is not a number of microseconds"),
    ({"sequence_id": 7}, "sequence_id: no such parameter"),
]


def test_a_wrong_parameter_is_400_with_its_reason(live):
    for parameters, words in WRONG_PARAMETERS:
        response = post(live, json.dumps(json.loads(json_body()) | {"parameters": parameters}).encode())
        assert response.status_code == 400
        assert words in response.json()["error"], parameters


def test_triton_s_client_gets_the_reason_of_other_refusals(client, sample):
    assert refusal(client.infer, "pets", images(), outputs=[triton.InferRequestedOutput("output1")]) == (
        "400", "unexpected inference output 'output1' for model 'pets'",
    )  # fmt: skip
    twice = [triton.InferRequestedOutput("output0")] * 2
    assert "each may be requested once" in refusal(client.infer, "pets", images(), outputs=twice)[1]
    assert refusal(client.infer, "pets_image", encoded(b"%PDF-1.7"))[0] == "400"  # 415 in other protocols
    assert refusal(client.infer, "pets_image", encoded(sample[:5000]))[0] == "400"  # 422 in other protocols
    assert "image 2 of 2: not an image" in refusal(client.infer, "pets_image", encoded(sample, b"no image"))[1]
    assert "base64" in refusal(client.infer, "pets_image", encoded(b"?", binary=False))[1]
    assert "cut short" in refusal(client.infer, "pets_image", cut_short())[1]
    assert "a request has 1 to 64" in refusal(client.infer, "pets_image", encoded(*[b"x"] * 65))[1]


def cut_short() -> list[triton.InferInput]:
    (given,) = encoded(b"abc")
    given._raw_data = given._raw_data[:-1]
    given._parameters["binary_data_size"] -= 1
    return [given]


def test_the_timeout_parameter_is_a_deadline(live, client, device):
    device.gate.clear()
    status, message = refusal(client.infer, "pets", images(), timeout=50_000)
    assert (status, "deadline" in message) == ("504", True)
    assert live.value("rejected_total", reason="deadline_exceeded") == 1


def test_overload_is_503_with_retry_after(serve, device):
    live = serve(max_pending=1)
    device.gate.clear()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(post, live, json_body())
        assert device.busy.acquire(timeout=10)
        refused = post(live, json_body())
        device.gate.set()
        assert waiting.result().status_code == 200
    assert (refused.status_code, refused.json().keys()) == (503, {"error"})
    assert int(refused.headers["Retry-After"]) >= 1


def test_the_image_of_a_client_that_disconnects_leaves_the_queue_and_is_counted(live, device):
    device.gate.clear()
    batcher = live.service.predictor._batchers["fake"]
    with ThreadPoolExecutor(1) as other:
        first = other.submit(post, live, json_body())
        assert device.busy.acquire(timeout=10)
        with socket.create_connection(("127.0.0.1", live.port)) as gone:
            head = b"POST /v2/models/pets/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            gone.sendall(head % len(json_body()) + json_body())
            wait_for(lambda: batcher.depth() == 1)
        wait_for(lambda: batcher.depth() == 0)
        device.gate.set()
        assert first.result().status_code == 200
    wait_for(lambda: live.value("rejected_total", reason="client_gone") == 1)
    assert len(device.batches) == 1
    assert live.value("requests_total", protocol="kserve", code="499") == 1


def test_a_failing_engine_and_a_defect_are_500_with_one_text(live, device, monkeypatch, caplog):
    device.failure = RuntimeError("on fire")
    with caplog.at_level(logging.CRITICAL):
        response = post(live, json_body())
    assert (response.status_code, response.json()) == (500, {"error": "the engine failed on this batch"})
    device.failure = None
    monkeypatch.setattr("app.api.protocols.kserve.http.parse", lambda *_, **__: 1 / 0)
    response = post(live, json_body())
    assert (response.status_code, response.json().keys()) == (500, {"error"})
    assert "ZeroDivisionError" in caplog.text


def test_requests_are_counted_by_protocol_and_status(live, client):
    client.infer("pets", images(2))
    post(live, b"{")
    assert live.value("requests_total", model="pets", engine="fake", protocol="kserve", code="200") == 1
    assert live.value("requests_total", model="pets", engine="fake", protocol="kserve", code="400") == 1
    assert live.value("images_total", model="pets", engine="fake") == 2


def test_statistics_count_the_requests_of_each_model(live, client, sample):
    live.client.post("/v1/detect", content=sample)  # a request of another protocol
    for _ in range(3):
        client.infer("pets", images())
    client.infer("pets", images(2))
    client.infer("pets_image", encoded(sample))
    refusal(client.infer, "pets_image", encoded(b"no image"))
    tensors, files = client.get_inference_statistics()["model_stats"]
    assert client.get_inference_statistics("pets", "1")["model_stats"] == [tensors]
    assert (tensors["name"], tensors["inference_count"]) == ("pets", 5)
    stats = tensors["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"], stats["queue"]["count"]) == (4, 0, 4)
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert tensors["execution_count"] == sum(size["compute_infer"]["count"] for size in tensors["batch_stats"])
    assert sum(size["batch_size"] * size["compute_infer"]["count"] for size in tensors["batch_stats"]) == 5
    assert tensors["last_inference"] > 1.7e12
    assert (files["name"], files["inference_count"], files["execution_count"]) == ("pets_image", 1, 1)
    assert (files["inference_stats"]["success"]["count"], files["inference_stats"]["fail"]["count"]) == (1, 1)
