"""KServe over gRPC, called by Triton's own client, with a device that the test controls."""

import ast
import queue
import threading

import fakes
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from conftest import eventually, free_port, without_collector
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

FRAME = np.random.default_rng(0).integers(0, 256, (1, 3, 96, 96), np.uint8)
ROWS = fakes.ROWS[:2]  # a dog of 0.9 and a cat of 0.6


@pytest.fixture
def live(serve):
    return serve(grpc_port=free_port())


@pytest.fixture
def url(live) -> str:
    return f"127.0.0.1:{live.service.settings.grpc_port}"


@pytest.fixture
def client(url):
    with triton.InferenceServerClient(url) as client:
        yield client


def images(count: int = 1) -> list[triton.InferInput]:
    data = np.repeat(FRAME, count, axis=0) / np.float32(255)
    given = triton.InferInput("images", list(data.shape), "FP32")
    given.set_data_from_numpy(data)
    return [given]


def encoded(file: bytes) -> list[triton.InferInput]:
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([file], np.object_))
    return [given]


def refusal(call, *arguments, **options) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


def test_with_keys_a_call_without_a_key_gets_only_health(serve):
    key = "key-of-the-tests-0"
    live = serve(grpc_port=free_port(), api_keys=(key,))
    with triton.InferenceServerClient(f"127.0.0.1:{live.service.settings.grpc_port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in (None, {"x-api-key": f"{key}x"}, {"authorization": key}):
            for call in (client.get_server_metadata, client.get_model_repository_index):
                assert refusal(call, headers=headers)[0] == "StatusCode.UNAUTHENTICATED"
            assert refusal(client.infer, "pets", images(), headers=headers)[0] == "StatusCode.UNAUTHENTICATED"
        for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
            assert client.get_server_metadata(headers=headers).name == "yolopard"
            assert client.infer("pets", images(), headers=headers).as_numpy("output0")[0, :2, 5].tolist() == [1, 0]


def test_a_refusal_leaves_no_message_to_the_garbage_collector(live, client, sample):
    cut = sample[: len(sample) // 2] + bytes(1 << 20)
    for given in (cut, bytes(1 << 20)):
        refusal(client.infer, "pets_image", encoded(given))
        with without_collector() as left:
            refusal(client.infer, "pets_image", encoded(given))
            refusal(client.infer, "none", encoded(given))
            eventually(lambda: live.service.inflight.bytes == 0)
        assert set(left) <= {"aborting.<locals>.answer"}  # held by gRPC's own error; it references no message


def test_metadata_config_and_index_are_the_same_as_over_http(live, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.get_server_metadata(as_json=True) == live.client.get("/v2").json()
    reported = client.get_model_metadata("pets_image", as_json=True)
    assert reported["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": ["-1"]}]
    config = client.get_model_config("pets", as_json=True)["config"]
    assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "-1", "-1"]}]
    assert ast.literal_eval(config["parameters"]["metadata"]["string_value"])["names"] == fakes.NAMES
    index = client.get_model_repository_index(as_json=True)["models"]
    assert index == live.client.post("/v2/repository/index").json()
    client.load_model("pets")


def test_the_server_is_live_and_not_ready_until_the_engine_is_loaded(serve):
    source = fakes.Source(fakes.stored())
    source.go.clear()
    live = serve(source, wait=False, grpc_port=free_port())
    assert live.client.get("/healthz").status_code == 200
    with triton.InferenceServerClient(f"127.0.0.1:{live.service.settings.grpc_port}") as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert refusal(client.infer, "pets", images())[0] == "StatusCode.UNAVAILABLE"


def test_tensors_reach_the_engine_unchanged_and_rows_after_nms_are_returned(client, device):
    answer = client.infer("pets", images(), request_id="abc", outputs=[triton.InferRequestedOutput("output0")])
    rows = answer.as_numpy("output0")
    assert rows.shape == (1, 300, 6)
    np.testing.assert_array_equal(rows[0, :2], ROWS)
    np.testing.assert_array_equal(device.frames[0], FRAME[0].transpose(1, 2, 0))
    assert (answer.get_response().id, answer.get_response().model_version) == ("abc", "1")


def test_encoded_images_are_predicted_with_the_thresholds_of_the_request(client, sample):
    answer = client.infer("pets_image", encoded(sample), parameters={"conf": 0.7, "classes": "dog", "max_det": 5})
    assert answer.as_numpy("num_detections").tolist() == [1]
    assert answer.as_numpy("classes").tolist() == [[1]]
    assert answer.as_numpy("boxes").shape == (1, 1, 4)


def test_a_message_may_exceed_the_default_grpc_limit_of_4_mib(serve):
    live = serve(fakes.Source(fakes.stored(imgsz=640)), grpc_port=free_port())
    with triton.InferenceServerClient(f"127.0.0.1:{live.service.settings.grpc_port}") as client:
        given = triton.InferInput("images", [2, 3, 640, 640], "FP32")
        given.set_data_from_numpy(np.zeros((2, 3, 640, 640), np.float32))
        assert client.infer("pets", [given]).as_numpy("output0").shape == (2, 300, 6)


def test_a_compressed_message_is_refused_with_its_encoding(client, sample):
    with pytest.raises(InferenceServerException, match="gzip"):
        client.infer("pets_image", encoded(sample), compression_algorithm="gzip")


def test_values_may_be_in_typed_contents(url, device, sample):
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for datatype, contents in (
            ("FP32", {"fp32_contents": (FRAME / 255).ravel()}),
            ("UINT8", {"uint_contents": FRAME.ravel()}),
        ):
            given = {"name": "images", "datatype": datatype, "shape": FRAME.shape, "contents": contents}
            stub.ModelInfer(messages.ModelInferRequest(model_name="pets", inputs=[given]))
            np.testing.assert_array_equal(device.frames[0], FRAME[0].transpose(1, 2, 0))
        given = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [sample]}}
        answer = stub.ModelInfer(messages.ModelInferRequest(model_name="pets_image", inputs=[given]))
        assert [output.name for output in answer.outputs] == ["num_detections", "boxes", "scores", "classes"]


def test_a_stream_answers_in_order_and_an_error_fails_only_its_own_request(client):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for request_id, model in (("1", "pets"), ("2", "cars"), ("3", "pets")):
        client.async_stream_infer(model, images(), request_id=request_id)
    (first, _), (_, error), (third, _) = (answers.get(timeout=10) for _ in range(3))
    client.stop_stream()
    assert [first.get_response().id, third.get_response().id] == ["1", "3"]
    assert "Request for unknown model: 'cars'" in error.message()


def test_every_answer_of_a_stream_is_marked_as_the_final_response(client):
    """perf_analyzer sets this parameter in every gRPC call, and was refused."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("pets", images(), enable_empty_final_response=True)
    answer, error = answers.get(timeout=10)
    client.stop_stream()
    assert error is None
    assert answer.get_response().parameters["triton_final_response"].bool_param is True


def test_a_refused_stream_is_counted_as_one_request(serve):
    """Streams without a key or above the limit of open streams were in no metric."""
    live = serve(grpc_port=free_port(), api_keys=("0123456789abcdef",))
    live.client.headers["X-API-Key"] = "0123456789abcdef"
    with grpc.insecure_channel(f"127.0.0.1:{live.service.settings.grpc_port}") as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", request_serializer=bytes)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as error:
                next(call(iter([])))
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert live.value("requests_total", protocol="kserve", code="401") == 2


def test_an_open_stream_does_not_block_the_stop_of_the_server(live, client):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("pets", images())
    assert answers.get(timeout=10)[1] is None
    live.server.should_exit = True
    live.thread.join(10)
    assert not live.thread.is_alive()


def test_refusals_have_a_status_and_the_reason(client):
    unknown = refusal(client.infer, "cars", images())
    assert (unknown[0], "'cars' is not found" in unknown[1]) == ("StatusCode.NOT_FOUND", True)
    assert refusal(client.get_model_config, "pets", "2")[0] == "StatusCode.NOT_FOUND"
    assert refusal(client.infer, "pets", images(), parameters={"conf": 2})[0] == "StatusCode.INVALID_ARGUMENT"
    assert refusal(client.infer, "pets_image", encoded(b"no image"))[0] == "StatusCode.INVALID_ARGUMENT"
    assert refusal(client.unload_model, "pets")[0] == "StatusCode.UNIMPLEMENTED"
    assert refusal(client.get_system_shared_memory_status)[0] == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"raw_input_contents": [b"", b""]}, "has 2 entries for 1 inputs"),
        ({"raw_input_contents": [b"1234"]}, "is 12288 bytes, and there are 4"),
        ({}, "is 3072 values, and there are 0"),
        ({"inputs": []}, "the request has none"),
        ({"inputs": [{"name": "images", "datatype": "FP16", "shape": [1]}]}, "sent as raw_input_contents"),
        ({"inputs": [{"name": "images", "datatype": "FP32", "shape": [-1]}]}, "not a valid tensor shape"),
    ],
)
def test_a_wrong_message_is_an_invalid_argument_with_its_reason(url, device, changes, words):
    given = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 32, 32]}]} | changes
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(messages.ModelInferRequest(model_name="pets", **given))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()
    assert device.batches == []


@pytest.mark.parametrize("method", ["ModelInfer", "ModelConfig", "RepositoryModelUnload"])
def test_an_unreadable_message_is_an_invalid_argument_and_not_logged(live, url, method, caplog):
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", request_serializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\n")
    reported = (grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a {method}Request")
    assert (caught.value.code(), caught.value.details()) == reported
    assert caplog.text == ""


def test_an_unreadable_message_in_a_stream_fails_only_its_own_request(live, url):
    right = messages.ModelInferRequest(model_name="pets", id="2").SerializeToString()
    with grpc.insecure_channel(url) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", request_serializer=bytes)
        answers = map(messages.ModelStreamInferResponse.FromString, call(iter([b"\n", right])))
        reported = [(answer.error_message, answer.infer_response.id) for answer in answers]
    assert reported[0] == ("the message is not a ModelInferRequest", "")
    assert reported[1][1] == "2"
    assert live.value("requests_total", model="pets", engine="fake", protocol="kserve", code="400") == 1


def test_a_passed_deadline_is_an_error_and_the_image_never_reaches_the_engine(live, client, device):
    device.gate.clear()
    first = client.async_infer("pets", images(), callback=lambda result, error: None)
    assert device.busy.acquire(timeout=10)
    status, message = refusal(client.infer, "pets", images(), timeout=50_000)
    assert (status, "deadline" in message) == ("StatusCode.DEADLINE_EXCEEDED", True)
    assert refusal(client.infer, "pets", images(), client_timeout=0.05)[0] == "StatusCode.DEADLINE_EXCEEDED"
    device.gate.set()
    assert first is not None
    assert client.infer("pets", images()).as_numpy("output0").shape == (1, 300, 6)
    assert [len(batch) for batch in device.batches] == [1, 1]


def test_overload_is_unavailable_and_counted(serve, device):
    live = serve(max_pending=1, grpc_port=free_port())
    device.gate.clear()
    answered = threading.Event()
    with triton.InferenceServerClient(f"127.0.0.1:{live.service.settings.grpc_port}") as client:
        client.async_infer("pets", images(), callback=lambda result, error: answered.set())
        assert device.busy.acquire(timeout=10)
        assert refusal(client.infer, "pets", images())[0] == "StatusCode.UNAVAILABLE"
        device.gate.set()
        assert answered.wait(10)
    assert live.value("rejected_total", reason="overloaded") == 1
    assert live.value("requests_total", model="pets", engine="fake", protocol="kserve", code="503") == 1
    assert live.value("requests_total", model="pets", engine="fake", protocol="kserve", code="200") == 1


def test_a_defect_is_an_internal_error_and_logged(live, client, monkeypatch, caplog):
    monkeypatch.setattr("app.api.protocols.kserve.grpc.read_request", lambda *_: 1 / 0)
    assert refusal(client.infer, "pets", images()) == (
        "StatusCode.INTERNAL", "an internal error; the server's log has more",
    )  # fmt: skip
    assert "ZeroDivisionError" in caplog.text


def test_a_stop_answers_requests_in_flight(live, client, device):
    device.gate.clear()
    answers = queue.Queue()
    client.async_infer("pets", images(), callback=lambda result, error: answers.put((result, error)))
    assert device.busy.acquire(timeout=10)
    live.server.should_exit = True
    device.gate.set()
    result, error = answers.get(timeout=10)
    assert error is None
    assert result.as_numpy("output0").shape == (1, 300, 6)
