"""POST /v1/detect over a real socket, with a device that the test controls."""

import base64
import dataclasses
import http.client
import io
import logging
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import fakes
import numpy as np
import pytest
from PIL import Image
from posts import error, jpeg, names, post, wait_for

from app.api.protocols.predict import DetectQuery, class_ids
from app.system.metrics import STAGES


def test_the_response_has_the_format_of_the_ultralytics_hosted_api(serve):
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


def test_boxes_are_in_pixels_of_the_upright_original_image(serve):
    exif = Image.Exif()
    exif[0x112] = 6  # to be rotated by 90 degrees: 128x64 becomes 64x128
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
def test_the_query_filters_the_results(serve, query, expected):
    assert names(post(serve(), path=f"/v1/detect?{query}")) == expected


DUPLICATE_NAMES = dataclasses.replace(fakes.MODEL, names={0: "car", 1: "car", 2: "1"})


@pytest.mark.parametrize(
    ("classes", "ids"),
    [(["car"], (0, 1)), (["0"], (0,)), (["1"], (2,)), (["car", "0", "car"], (0, 1)), ([], None)],
    ids=["a name", "an id", "a name that is a number", "twice", "none"],
)
def test_a_class_name_selects_every_id_with_that_name(classes, ids):
    """Only the last of the two ids was selected, without an error."""
    assert class_ids(classes, DUPLICATE_NAMES) == ids
    assert DetectQuery(classes=[",".join(classes)]).thresholds(DUPLICATE_NAMES).classes == ids


def test_a_name_shared_by_two_classes_selects_the_boxes_of_both(serve):
    live = serve(fakes.Source(fakes.stored(model=DUPLICATE_NAMES)))
    assert names(post(live, path="/v1/detect?classes=car")) == ["car", "car"]
    snippet = live.client.post("/pets/1?classes=car", content=base64.b64encode(jpeg())).json()
    assert [found["class"] for found in snippet["predictions"]] == ["car", "car"]


def test_a_class_whose_name_has_a_comma_can_be_selected(serve):
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
def test_a_bad_parameter_is_422_and_named(serve, query):
    response = post(serve(), path=f"/v1/detect?{query}")
    assert error(response) == (422, "bad_parameter")
    assert query.partition("=")[0] in response.json()["error"]["message"]


def test_thresholds_apply_to_each_request_within_one_batch(serve, device):
    live = serve(max_wait_ms=10_000)
    queries = ["conf=0.7", "classes=cat", "max_det=1", "conf=0.95"]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda query: post(live, path=f"/v1/detect?{query}"), queries))
    assert [len(batch) for batch in device.batches] == [4]
    assert [names(answer) for answer in answers] == [["dog"], ["cat"], ["dog"], []]


def test_several_files_are_answered_in_order_and_share_a_batch(serve, device):
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
def test_the_drawn_image_has_the_format_that_the_client_accepts(serve, accept, kind):
    response = post(serve(), path="/v1/detect?format=image", headers={"Accept": accept})
    image = Image.open(io.BytesIO(response.content))
    assert image.format == kind
    assert response.headers["content-type"] == f"image/{kind.lower()}"
    assert image.size == (64, 64)
    assert np.ptp(np.asarray(image).reshape(-1, 3), axis=0).max() > 100  # boxes are drawn on the plain background


def test_format_image_with_several_files_is_refused(serve):
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


def test_one_bad_file_of_several_is_named(serve):
    response = serve().client.post("/v1/detect", files=[("file", jpeg()), ("file", jpeg()), ("file", b"\x00bad")])
    assert error(response) == (422, "undecodable_image")
    assert "file 3 of 3" in response.json()["error"]["message"]


def test_too_many_pixels_are_refused_by_the_image_header(serve):
    assert error(post(serve(max_pixels=64 * 64 - 1))) == (413, "too_many_pixels")


def test_too_many_files_are_refused(serve):
    response = serve(max_files=2).client.post("/v1/detect", files=[("file", jpeg())] * 3)
    assert error(response) == (413, "too_many_files")


def test_a_body_over_the_limit_is_refused_with_content_length_and_chunked(serve):
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
def test_bad_multipart_is_refused_with_its_error_code(serve, body, expected):
    response = post(serve(), body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert error(response) == expected


def test_multipart_without_a_boundary_is_refused(serve):
    assert error(post(serve(), b"x", headers={"Content-Type": "multipart/form-data"}))[0] == 400


def test_unknown_path_and_method_have_the_error_format(serve):
    live = serve()
    assert error(live.client.get("/nope")) == (404, "not_found")
    assert error(live.client.get("/v1/detect")) == (405, "method_not_allowed")


def test_an_overloaded_server_refuses_before_the_body_with_retry_after(serve, device):
    live = serve(max_pending=2)
    device.gate.clear()
    with ThreadPoolExecutor(2) as clients:
        inside = [clients.submit(post, live) for _ in range(2)]
        wait_for(lambda: live.service.predictor.pending == 2)
        refused = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        refused.putrequest("POST", "/v1/detect")
        refused.putheader("Content-Length", "1000000")
        refused.endheaders()  # the response arrives although no byte of the body was sent
        answer = refused.getresponse()
        assert answer.status == 503
        assert int(answer.getheader("Retry-After")) >= 1
        refused.close()
        device.gate.set()
        assert [future.result().status_code for future in inside] == [200, 200]
    assert live.value("rejected_total", reason="overloaded") == 1
    assert live.value("pending") == 0


def test_an_answered_request_releases_its_admission_slot(serve):
    live = serve(max_pending=1)
    for _ in range(20):
        assert post(live).status_code == 200
    assert live.service.predictor.pending == 0


def test_a_passed_client_deadline_is_504_and_the_image_never_reaches_the_device(serve, device):
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


def test_deadline_ms_sets_the_default_deadline(serve, device):
    live = serve(deadline_ms=50)
    device.gate.clear()
    assert error(post(live)) == (504, "deadline_exceeded")


def test_the_deadline_covers_a_body_that_does_not_arrive(serve):
    live = serve(deadline_ms=50)
    slow = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    slow.putrequest("POST", "/v1/detect")
    slow.putheader("Content-Length", "1000")
    slow.endheaders(b"\xff\xd8\xff")
    assert slow.getresponse().status == 504
    slow.close()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e12"])
def test_a_bad_deadline_is_422(serve, value):
    assert error(post(serve(), headers={"X-Deadline-Ms": value})) == (422, "bad_parameter")


def test_the_image_of_a_client_that_disconnects_leaves_the_queue(serve, device):
    live = serve()
    device.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, live)
        assert device.busy.acquire(timeout=10)
        data = jpeg()
        with socket.create_connection(("127.0.0.1", live.port)) as gone:
            gone.sendall(
                b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            wait_for(lambda: live.service.predictor._batchers["fake"].depth() == 1)
        wait_for(lambda: live.service.predictor._batchers["fake"].depth() == 0)
        device.gate.set()
        assert first.result().status_code == 200
    wait_for(lambda: live.service.predictor.pending == 0)
    assert len(device.batches) == 1
    assert live.value("rejected_total", reason="client_gone") == 1


def test_a_client_that_disconnects_within_its_body_does_not_affect_other_requests(serve):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.inflight.waiting == 1)
    wait_for(lambda: live.service.inflight.waiting == 0)
    assert post(live).status_code == 200


def test_a_failed_batch_is_500_without_internal_details(serve, device):
    live = serve()
    device.failure = RuntimeError("secret of the device")
    response = post(live)
    assert error(response) == (500, "inference_failed")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    device.failure = None
    assert post(live).status_code == 200


def test_a_dead_device_thread_fails_every_request_and_readyz_is_503(serve, device):
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


def test_a_stop_answers_every_admitted_request(serve, device):
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


def other_rows() -> np.ndarray:
    """Return fakes.ROWS with the dog 0.5 px to the right and 0.05 less confident, and a large cat for the cat."""
    rows = fakes.ROWS.copy()
    rows[0, [0, 2, 4]] = (10.5, 30.5, 0.85)
    rows[1] = (5, 5, 25, 25, 0.7, 2)
    return rows


def test_compare_returns_results_differences_and_times_of_both_engines(serve, second):
    second.rows = other_rows()
    (image,) = post(serve(compare="pytorch"), path="/v1/detect?compare=1").json()["images"]
    assert [found["name"] for found in image["results"]] == ["dog", "cat"]
    (other,) = image["compare"]
    assert other.keys() == {"engine", "results", "speed", "both", "only_first", "only_this", "box_px", "score"}
    assert other["engine"] == "pytorch"
    assert [found["name"] for found in other["results"]] == ["dog", "red, large cat"]
    assert (other["both"], other["only_first"], other["only_this"]) == (1, 1, 1)
    assert (other["box_px"], other["score"]) == (0.5, pytest.approx(0.05, abs=1e-4))
    assert other["speed"].keys() == image["speed"].keys()
    assert other["speed"]["preprocess"] == image["speed"]["preprocess"]  # one frame for both
    assert other["speed"]["inference"] != image["speed"]["inference"]


def test_compare_finds_no_difference_between_equal_or_empty_results(serve):
    live = serve(compare="pytorch")
    for query, count in (("", 2), ("&conf=1", 0)):
        (other,) = post(live, path=f"/v1/detect?compare=1{query}").json()["images"][0]["compare"]
        assert [other[name] for name in ("both", "only_first", "only_this", "box_px", "score")] == [count, 0, 0, 0, 0]


def test_compare_gives_both_engines_the_same_frame(serve, device, second):
    post(serve(compare="pytorch"), path="/v1/detect?compare=1")
    (ours,), (theirs,) = device.frames, second.frames
    assert ours is theirs


def test_compare_of_several_files_keeps_their_order_and_batches_them_in_each_engine(serve, device, second):
    live = serve(compare="pytorch", max_wait_ms=10_000)
    sizes = [(64, 64), (32, 32), (16, 16), (8, 8)]
    files = [("file", (f"{i}.jpg", jpeg(*size), "image/jpeg")) for i, size in enumerate(sizes)]
    images = live.client.post("/v1/detect?compare=1", files=files).json()["images"]
    assert [image["shape"] for image in images] == [[h, w] for w, h in sizes]
    assert [image["compare"][0]["both"] for image in images] == [2, 2, 2, 2]
    assert [len(batch) for batch in device.batches] == [len(batch) for batch in second.batches] == [4]


@pytest.mark.parametrize("engine", ["fake", "pytorch"])
def test_the_engine_parameter_selects_one_engine_and_every_metric_has_its_label(serve, device, second, engine):
    live = serve(compare="pytorch", shadow=1)
    body = post(live, path=f"/v1/detect?engine={engine}").json()
    assert body["metadata"]["version"].keys() == {"yolopard", engine}
    assert "compare" not in body["images"][0]
    assert [len(device.batches), len(second.batches)] == ([1, 0] if engine == "fake" else [0, 1])
    wait_for(lambda: live.value("requests_total") is not None)
    for name, labels in (
        ("requests_total", {"protocol": "v1", "code": "200"}),
        ("request_duration_seconds_count", {"protocol": "v1"}),
        *(("stage_duration_seconds_count", {"stage": stage}) for stage in STAGES),
        ("images_total", {}),
        ("batch_size_count", {}),
        ("batches_total", {"reason": "idle"}),
    ):
        assert live.value(name, model="pets", engine=engine, **labels) == 1, name
        assert not live.value(name, model="pets", engine="pytorch" if engine == "fake" else "fake", **labels), name
    assert live.value("device_seconds_total", model="pets", engine=engine) > 0
    assert live.value("queue_depth", model="pets", engine=engine) == 0
    assert live.value("shadow_images_total") is None


def test_compare_counts_one_request_of_the_first_engine_and_one_image_of_each(serve):
    live = serve(compare="pytorch", shadow=1)
    post(live, path="/v1/detect?compare=1")
    wait_for(lambda: live.value("requests_total", engine="fake") == 1)
    assert live.value("requests_total", engine="pytorch") is None
    assert (live.value("images_total", engine="fake"), live.value("images_total", engine="pytorch")) == (1, 1)
    for stage in ("decode", "queue", "infer", "postprocess"):
        assert live.value("stage_duration_seconds_count", engine="pytorch", stage=stage) == 1
    assert live.value("shadow_images_total") is None


def test_the_drawn_image_can_be_that_of_the_second_engine(serve, device):
    response = post(serve(compare="pytorch"), path="/v1/detect?engine=pytorch&format=image")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
    assert device.batches == []


@pytest.mark.parametrize(
    ("settings", "query", "words"),
    [
        ({"compare": "pytorch"}, "engine=tensorrt", "engine: 'tensorrt' does not run here; there is fake, pytorch"),
        ({}, "engine=pytorch", "engine: 'pytorch' does not run here; there is fake"),
        ({}, "engine=", "engine: '' does not run here; there is fake"),
        ({}, "compare=1", "compare: there is one engine only, fake; COMPARE=pytorch starts a second one beside it"),
        ({"compare": "pytorch"}, "compare=1&format=image", "compare: returns JSON of all engines"),
        ({"compare": "pytorch"}, "compare=1&engine=fake", "compare: returns JSON of all engines"),
        ({"compare": "pytorch"}, "compare=often", "compare: "),
    ],
)
def test_an_impossible_engine_or_compare_is_422_and_lists_the_choices(serve, settings, query, words):
    response = post(serve(**settings), path=f"/v1/detect?{query}")
    assert error(response) == (422, "bad_parameter")
    assert response.json()["error"]["message"].startswith(words)


@pytest.mark.parametrize("failure", [RuntimeError("secret of the device"), SystemExit()])
def test_a_failure_of_the_second_engine_fails_only_requests_that_use_it(serve, second, failure):
    live = serve(compare="pytorch")
    second.failure = failure
    for _ in range(4):  # more failures than an engine may have in a row
        for query in ("compare=1", "engine=pytorch"):
            assert error(post(live, path=f"/v1/detect?{query}")) == (500, "inference_failed")
    assert live.client.get("/readyz").status_code == 200
    assert names(post(live)) == ["dog", "cat"]
    assert live.service.predictor.pending == 0


def test_a_failure_of_the_first_engine_removes_the_image_from_the_queue_of_the_second(serve, device, second):
    live = serve(compare="pytorch")
    second.gate.clear()
    device.failure = RuntimeError("broken")
    with ThreadPoolExecutor(1) as clients:
        held = clients.submit(post, live, path="/v1/detect?engine=pytorch")
        assert second.busy.acquire(timeout=10)
        assert error(post(live, path="/v1/detect?compare=1")) == (500, "inference_failed")
        wait_for(lambda: depths(live) == [0, 0])
        second.gate.set()
        assert held.result().status_code == 200
    assert len(second.batches) == 1


def test_the_deadline_of_a_comparison_covers_the_slower_engine(serve, device, second):
    live = serve(compare="pytorch")
    second.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        held = clients.submit(post, live, path="/v1/detect?engine=pytorch")
        assert second.busy.acquire(timeout=10)
        answer = post(live, path="/v1/detect?compare=1", headers={"X-Deadline-Ms": "100"})
        assert error(answer) == (504, "deadline_exceeded")
        assert depths(live) == [0, 0]
        second.gate.set()
        assert held.result().status_code == 200
    assert len(second.batches) == 1
    assert len(device.batches) == 1


def test_the_image_of_a_client_that_disconnects_leaves_the_queues_of_both_engines(serve, device, second):
    live = serve(compare="pytorch")
    for each in (device, second):
        each.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, live, path="/v1/detect?compare=1")
        for each in (device, second):
            assert each.busy.acquire(timeout=10)
        data = jpeg()
        with socket.create_connection(("127.0.0.1", live.port)) as gone:
            head = b"POST /v1/detect?compare=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
            gone.sendall(head + data)
            wait_for(lambda: depths(live) == [1, 1])
        wait_for(lambda: depths(live) == [0, 0])
        for each in (device, second):
            each.gate.set()
        assert first.result().status_code == 200
    wait_for(lambda: live.service.predictor.pending == 0)
    assert [len(device.batches), len(second.batches)] == [1, 1]


def test_shadow_counts_the_differences_of_the_second_engine_on_normal_requests(serve, second):
    live = serve(compare="pytorch", shadow=1)
    second.rows = other_rows()
    assert "compare" not in post(live).json()["images"][0]
    wait_for(lambda: live.value("shadow_images_total", model="pets", outcome="seen") == 1)
    for found_by in ("both", "first", "second"):
        assert live.value("shadow_boxes_total", model="pets", engine="fake", found_by=found_by) == 1
    assert live.value("images_total", engine="pytorch") == 1
    assert live.value("stage_duration_seconds_count", engine="pytorch") is None  # no request used it


def test_shadow_delays_no_answer_and_processes_at_most_one_image_at_a_time(serve, device, second):
    live = serve(compare="pytorch", shadow=1)
    second.gate.clear()
    assert names(post(live)) == ["dog", "cat"]
    assert second.busy.acquire(timeout=10)
    for _ in range(3):
        assert names(post(live)) == ["dog", "cat"]
    response = live.client.post("/v1/detect", files=[("file", jpeg())] * 4)
    assert len(response.json()["images"]) == 4
    assert live.value("shadow_images_total", outcome="skipped") == 7
    assert depths(live) == [0, 0]
    second.gate.set()
    wait_for(lambda: live.value("shadow_images_total", outcome="seen") == 1)
    assert len(second.batches) == 1
    assert second.frames[0].shape == (64, 64, 3)


def test_shadow_skips_images_while_a_request_uses_the_second_engine(serve, second):
    live = serve(compare="pytorch", shadow=1)
    second.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        held = clients.submit(post, live, path="/v1/detect?engine=pytorch")
        assert second.busy.acquire(timeout=10)
        assert post(live).status_code == 200
        assert live.value("shadow_images_total", outcome="skipped") == 1
        second.gate.set()
        assert held.result().status_code == 200
    assert len(second.batches) == 1


def test_a_shadow_failure_is_logged_and_fails_no_request(serve, second, caplog):
    live = serve(compare="pytorch", shadow=1)
    second.failure = RuntimeError("broken")
    for failed in range(1, 4):
        assert names(post(live)) == ["dog", "cat"]
        wait_for(lambda failed=failed: live.value("shadow_images_total", outcome="failed") == failed)
    assert live.client.get("/readyz").status_code == 200
    reported = [record.getMessage() for record in caplog.records if record.name == "yolopard.predictor"]
    assert reported == ["a shadow image was not compared: InferenceFailed: the engine failed on this batch"] * 3
    assert live.value("shadow_boxes_total") is None


def test_a_stop_during_a_shadow_image_ends_cleanly(serve, second, caplog):
    live = serve(compare="pytorch", shadow=1)
    second.gate.clear()
    assert post(live).status_code == 200
    assert second.busy.acquire(timeout=10)
    live.server.should_exit = True
    wait_for(lambda: live.service._stopping)
    second.gate.set()
    live.stop()
    assert second.closed
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def depths(live) -> list[int]:
    return [batcher.depth() for batcher in live.service.predictor._batchers.values()]


def test_an_image_over_max_pixels_is_413_and_not_503_whatever_is_in_flight(serve):
    """A GIF of 14,940 x 32,382 px by its header gave 503, because it was over MAX_INFLIGHT_PIXELS too."""
    live = serve(max_inflight_pixels=60_000_000)
    gif = b"GIF89a" + struct.pack("<HH", 14_940, 32_382) + bytes(99)
    for files in ([gif], [gif] * 3):
        answer = live.client.post("/v1/detect", files=[("file", ("a.gif", each)) for each in files])
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pixels")
        assert "14940" in answer.json()["error"]["message"] or "483" in answer.json()["error"]["message"]
