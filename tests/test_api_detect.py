"""POST /v1/detect over a real socket, with a device that the test holds."""

import http.client
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image


def jpeg(width: int = 64, height: int = 64, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "JPEG", **options)
    return file.getvalue()


def post(live, data: bytes | None = None, path: str = "/v1/detect", **options):
    return live.client.post(path, content=jpeg() if data is None else data, **options)


def error(response) -> tuple[int, str]:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "request_id"}
    assert body["error"]["message"]
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    return response.status_code, body["error"]["code"]


def names(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [found["name"] for image in response.json()["images"] for found in image["results"]]


def test_answer_has_the_shape_of_ultralytics_hosted_api(serve):
    body = post(serve()).json()
    image = body["images"][0]
    assert body.keys() == {"images", "metadata"}
    assert image.keys() == {"shape", "results", "speed"}
    assert image["shape"] == [64, 64]
    assert image["results"][0] == {
        "name": "dog",
        "class": 1,
        "confidence": 0.9,
        "box": {"x1": 10.0, "y1": 20.0, "x2": 30.0, "y2": 40.0},
    }
    assert image["speed"].keys() == {"preprocess", "inference", "postprocess"}
    assert body["metadata"]["imageCount"] == 1
    assert body["metadata"]["model"] == "pets"
    assert body["metadata"]["version"].keys() == {"yolopard", "fake"}


def test_boxes_are_pixels_of_the_upright_original(serve):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees: 128x64 becomes 64x128
    body = post(serve(), jpeg(128, 64, exif=exif)).json()["images"][0]
    assert body["shape"] == [128, 64]
    assert body["results"][0]["box"] == {"x1": 20.0, "y1": 40.0, "x2": 60.0, "y2": 80.0}


def test_server_timing_names_every_stage_and_the_batch_size(serve):
    stages = dict(part.split(";") for part in post(serve()).headers["server-timing"].split(", "))
    assert stages.keys() == {"decode", "queue", "infer", "postprocess", "batch"}
    assert stages.pop("batch") == 'desc="1"'
    assert all(float(stage.removeprefix("dur=")) >= 0 for stage in stages.values())


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["dog", "cat"]),
        ("conf=0.7", ["dog"]),
        ("conf=1", []),
        ("max_det=1", ["dog"]),
        ("classes=cat", ["cat"]),
        ("classes=0", ["cat"]),
        ("classes=0,dog", ["dog", "cat"]),
        ("classes=0&classes=1", ["dog", "cat"]),
        ("classes=", ["dog", "cat"]),
        ("agnostic=true&iou=0", ["dog", "cat"]),
    ],
)
def test_query_selects_what_is_answered(serve, query, expected):
    assert names(post(serve(), path=f"/v1/detect?{query}")) == expected


def test_a_class_whose_name_has_a_comma_can_be_asked_for(serve):
    assert names(post(serve(), path="/v1/detect?classes=red, large cat")) == []


@pytest.mark.parametrize(
    "query",
    [
        "conf=2",
        "conf=-0.1",
        "conf=x",
        "conf=nan",
        "iou=1.1",
        "max_det=0",
        "classes=bird",
        "classes=7",
        "format=xml",
        "confidence=0.5",
    ],
)
def test_bad_parameter_is_422_and_named(serve, query):
    response = post(serve(), path=f"/v1/detect?{query}")
    assert error(response) == (422, "bad_parameter")
    assert query.partition("=")[0] in response.json()["error"]["message"]


def test_thresholds_hold_for_each_request_inside_one_batch(serve, device):
    live = serve(max_wait_ms=10_000)
    queries = ["conf=0.7", "classes=cat", "max_det=1", "conf=0.95"]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda query: post(live, path=f"/v1/detect?{query}"), queries))
    assert [len(batch) for batch in device.batches] == [4]
    assert [names(answer) for answer in answers] == [["dog"], ["cat"], ["dog"], []]


def test_many_files_are_answered_in_their_order_and_share_a_batch(serve, device):
    live = serve(max_wait_ms=10_000)
    sizes = [(64, 64), (32, 32), (16, 16), (8, 8)]
    files = [("file", (f"{i}.jpg", jpeg(*size), "image/jpeg")) for i, size in enumerate(sizes)]
    body = live.client.post("/v1/detect", files=files).json()
    assert [image["shape"] for image in body["images"]] == [[h, w] for w, h in sizes]
    assert body["metadata"]["imageCount"] == 4
    assert [len(batch) for batch in device.batches] == [4]


def test_files_of_one_request_share_a_batch_with_other_requests(serve, device):
    live = serve(max_wait_ms=10_000)
    with ThreadPoolExecutor(2) as clients:
        three = clients.submit(live.client.post, "/v1/detect", files=[("file", jpeg())] * 3)
        one = clients.submit(post, live)
        assert len(three.result().json()["images"]) == 3
        assert one.result().status_code == 200
    assert [len(batch) for batch in device.batches] == [4]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("*/*", "JPEG"), ("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/png,image/jpeg", "JPEG")],
)
def test_picture_is_drawn_in_the_kind_that_the_client_accepts(serve, accept, kind):
    response = post(serve(), path="/v1/detect?format=image", headers={"Accept": accept})
    picture = Image.open(io.BytesIO(response.content))
    assert picture.format == kind
    assert response.headers["content-type"] == f"image/{kind.lower()}"
    assert picture.size == (64, 64)
    assert np.ptp(np.asarray(picture).reshape(-1, 3), axis=0).max() > 100  # something is drawn on the plain ground


def test_picture_of_many_files_is_refused(serve):
    response = serve().client.post("/v1/detect?format=image", files=[("file", jpeg())] * 2)
    assert error(response) == (422, "bad_parameter")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (400, "empty_body")),
        (b"\x00\x01garbage", (422, "undecodable_image")),
        (jpeg()[:-80], (422, "undecodable_image")),
        (b"%PDF-1.7 ...", (415, "unsupported_image")),
        (b"\x00\x00\x00\x18ftypheic....", (415, "unsupported_image")),
        (b'{"image": "..."}', (415, "unsupported_image")),
    ],
)
def test_each_bad_body_gets_its_own_error_and_the_next_request_is_answered(serve, data, expected):
    live = serve()
    assert error(post(live, data)) == expected
    assert error(live.client.post("/v1/detect", files=[("file", ("a.jpg", data))])) == expected
    assert names(post(live)) == ["dog", "cat"]


def test_one_bad_file_of_many_is_named(serve):
    response = serve().client.post("/v1/detect", files=[("file", jpeg()), ("file", jpeg()), ("file", b"\x00bad")])
    assert error(response) == (422, "undecodable_image")
    assert "file 3 of 3" in response.json()["error"]["message"]


def test_too_many_pixels_are_refused_from_the_header(serve):
    assert error(post(serve(max_pixels=64 * 64 - 1))) == (413, "too_many_pixels")


def test_too_many_files_are_refused(serve):
    response = serve(max_files=2).client.post("/v1/detect", files=[("file", jpeg())] * 3)
    assert error(response) == (413, "too_many_files")


def test_body_over_the_limit_is_refused_announced_or_chunked(serve):
    live = serve(max_body_bytes=1000)
    assert error(post(live, b"\xff" * 1001)) == (413, "body_too_large")
    assert error(live.client.post("/v1/detect", content=iter([b"\xff" * 600] * 2))) == (413, "body_too_large")
    assert error(live.client.post("/v1/detect", files=[("file", b"\xff" * 1001)])) == (413, "body_too_large")
    assert error(post(live, b"\xff" * 1000)) != (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "malformed_body")),
        (b"nonsense", (400, "malformed_body")),
        (b"--x--\r\n", (400, "empty_body")),
        (b"--x\r\nnonsense", (400, "malformed_body")),
        (b'--x\r\nContent-Disposition: form-data; name="conf"\r\n\r\n0.5\r\n--x--\r\n', (422, "bad_parameter")),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nzz\r\n--x--\r\n',
            (422, "bad_parameter"),
        ),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut', (400, "malformed_body")),
    ],
)
def test_bad_multipart_is_refused_in_words(serve, body, expected):
    response = post(serve(), body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert error(response) == expected


def test_multipart_without_a_boundary_is_refused(serve):
    assert error(post(serve(), b"x", headers={"Content-Type": "multipart/form-data"}))[0] == 400


def test_unknown_path_and_method_have_the_error_shape(serve):
    live = serve()
    assert error(live.client.get("/nope")) == (404, "not_found")
    assert error(live.client.get("/v1/detect")) == (405, "method_not_allowed")


def test_full_house_refuses_before_the_body_with_retry_after(serve, device):
    live = serve(max_pending=2)
    device.gate.clear()
    with ThreadPoolExecutor(2) as clients:
        inside = [clients.submit(post, live) for _ in range(2)]
        wait_for(lambda: live.service.predictor.pending == 2)
        refused = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        refused.putrequest("POST", "/v1/detect")
        refused.putheader("Content-Length", "1000000")
        refused.endheaders()  # the answer comes although no byte of the body was sent
        answer = refused.getresponse()
        assert answer.status == 503
        assert int(answer.getheader("Retry-After")) >= 1
        refused.close()
        device.gate.set()
        assert [future.result().status_code for future in inside] == [200, 200]
    assert live.value("rejected_total", reason="overloaded") == 1
    assert live.value("pending") == 0


def test_place_is_held_until_the_answer_is_written(serve):
    live = serve(max_pending=1)
    for _ in range(20):
        assert post(live).status_code == 200
    assert live.service.predictor.pending == 0


def test_deadline_of_the_client_gives_504_and_the_image_never_reaches_the_device(serve, device):
    live = serve()
    device.gate.clear()
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, live)
        assert device.busy.acquire(timeout=10)
        assert error(post(live, headers={"X-Deadline-Ms": "50"})) == (504, "deadline_exceeded")
        device.gate.set()
        assert first.result().status_code == 200
    assert post(live).status_code == 200
    assert len(device.batches) == 2
    assert live.value("rejected_total", reason="deadline_exceeded") == 1


def test_default_deadline_is_a_setting(serve, device):
    live = serve(deadline_ms=50)
    device.gate.clear()
    assert error(post(live)) == (504, "deadline_exceeded")


def test_deadline_covers_a_body_that_does_not_arrive(serve):
    live = serve(deadline_ms=50)
    slow = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    slow.putrequest("POST", "/v1/detect")
    slow.putheader("Content-Length", "1000")
    slow.endheaders(b"\xff\xd8\xff")
    assert slow.getresponse().status == 504
    slow.close()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e12"])
def test_bad_deadline_is_422(serve, value):
    assert error(post(serve(), headers={"X-Deadline-Ms": value})) == (422, "bad_parameter")


def test_client_that_hangs_up_leaves_the_queue(serve, device):
    live = serve()
    device.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, live)
        assert device.busy.acquire(timeout=10)
        data = jpeg()
        with socket.create_connection(("127.0.0.1", live.port)) as gone:
            gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
            wait_for(lambda: live.service.predictor._batchers["fake"].depth() == 1)
        wait_for(lambda: live.service.predictor._batchers["fake"].depth() == 0)
        device.gate.set()
        assert first.result().status_code == 200
    wait_for(lambda: live.service.predictor.pending == 0)
    assert len(device.batches) == 1
    assert live.value("rejected_total", reason="client_gone") == 1


def test_client_that_hangs_up_in_the_middle_of_its_body_harms_nobody(serve):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.predictor.pending == 1)
    wait_for(lambda: live.service.predictor.pending == 0)
    assert post(live).status_code == 200


def test_failed_batch_is_500_without_a_trace_of_the_inside(serve, device):
    live = serve()
    device.failure = RuntimeError("secret of the device")
    response = post(live)
    assert error(response) == (500, "inference_failed")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    device.failure = None
    assert post(live).status_code == 200


def test_dead_device_thread_answers_everybody_and_readyz_is_503(serve, device):
    live = serve()
    device.gate.clear()
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(post, live) for _ in range(3)]
        assert device.busy.acquire(timeout=10)
        wait_for(lambda: live.service.predictor.pending == 3)
        device.failure = SystemExit()
        device.gate.set()
        assert [error(answer.result()) for answer in answers] == [(500, "inference_failed")] * 3
    ready = live.client.get("/readyz")
    assert (ready.status_code, ready.json()["phase"]) == (503, "dead")
    assert live.client.get("/healthz").status_code == 200


def test_stop_answers_everything_that_was_admitted(serve, device):
    live = serve(max_pending=16)
    device.gate.clear()
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(post, live) for _ in range(8)]
        wait_for(lambda: live.service.predictor.pending == 8)
        live.server.should_exit = True  # what SIGTERM sets
        device.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 8


def test_concurrent_requests_each_get_their_own_answer(serve):
    live = serve(max_pending=64)
    sizes = [(16 + i, 80 - i) for i in range(40)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda size: post(live, jpeg(*size)), sizes))
    assert [answer.json()["images"][0]["shape"] for answer in answers] == [[h, w] for w, h in sizes]
    assert live.value("requests_total", code="200", protocol="v1", model="pets") == 40
    assert live.value("images_total") == 40
    assert live.value("stage_duration_seconds_count", stage="decode") == 40


def wait_for(condition) -> None:
    """Until the server's loop has come so far; it has no event that a test could wait for from outside."""
    tick = threading.Event()
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        tick.wait(0.002)
