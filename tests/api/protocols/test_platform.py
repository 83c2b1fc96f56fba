"""The API of Ultralytics Platform and HUB, over a real socket, with a device that the test controls."""

import base64

import pytest
from posts import jpeg, wait_for

PATHS = ["/predict", "/api/models/pets/predict", "/v1/predict/pets", "/"]
DOG = {"name": "dog", "class": 1, "confidence": 0.9, "box": {"x1": 10.0, "y1": 20.0, "x2": 30.0, "y2": 40.0}}


def predict(live, path="/predict", part="file", files=None, **fields):
    return live.client.post(path, files=files or {part: ("a.jpg", jpeg(), "image/jpeg")}, data=fields)


def found(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["name"] for each in answer.json()["images"][0]["results"]]


def refused(answer) -> tuple[int, str]:
    body = answer.json()
    assert body["error"] == body["message"]
    assert body["success"] is False
    assert body["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, body["code"]


@pytest.mark.parametrize("path", PATHS)
def test_every_endpoint_answers_in_the_platform_format_and_is_counted_as_platform(serve, path):
    live = serve()
    body = predict(live, path).json()
    assert body["images"][0]["shape"] == [64, 64]
    assert body["images"][0]["results"][0] == DOG
    assert body["images"][0]["speed"].keys() == {"preprocess", "inference", "postprocess"}
    assert body["metadata"].keys() == {"imageCount", "functionTimeCall", "model", "version"}
    wait_for(lambda: live.value("requests_total", protocol="platform", code="200", engine="fake") == 1)
    assert live.value("images_total") == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["dog", "cat"]),
        ({"conf": "0.7"}, ["dog"]),
        ({"confidence": "0.7"}, ["dog"]),
        ({"conf": "0.25", "iou": "0.7", "imgsz": "640", "size": "640", "bits": "8", "vid_stride": "1"}, ["dog", "cat"]),
    ],
)
def test_form_fields_filter_the_results(shared_server, fields, expected):
    assert found(predict(shared_server, **fields)) == expected


def test_fields_may_be_in_the_query_and_form_fields_have_priority(shared_server):
    assert found(predict(shared_server, "/predict?conf=0.7")) == ["dog"]
    assert found(predict(shared_server, "/predict?conf=0.7", conf="0.1")) == ["dog", "cat"]


def test_boxes_are_normalized_and_rounded_on_request(shared_server):
    (first, _) = predict(shared_server, normalize="true", decimals="2").json()["images"][0]["results"]
    assert first == DOG | {"box": {"x1": 0.16, "y1": 0.31, "x2": 0.47, "y2": 0.62}}


@pytest.mark.parametrize("part", ["file", "image", "upload"])
def test_the_file_part_may_have_any_name(shared_server, part):
    assert found(predict(shared_server, part=part)) == ["dog", "cat"]


def test_a_file_part_may_have_no_file_name(shared_server):
    assert found(predict(shared_server, files={"file": (None, jpeg())})) == ["dog", "cat"]


@pytest.mark.parametrize("field", ["source", "image"])
@pytest.mark.parametrize("wrap", ["{}", "data:image/jpeg;base64,{}"])
def test_the_image_may_be_base64_in_an_urlencoded_or_multipart_form(shared_server, field, wrap):
    text = wrap.format(base64.b64encode(jpeg()).decode())
    assert found(shared_server.client.post("/predict", data={field: text})) == ["dog", "cat"]
    assert found(shared_server.client.post("/predict", files={field: (None, text)})) == ["dog", "cat"]


def test_the_image_may_be_the_body_itself(shared_server):
    assert found(shared_server.client.post("/predict", content=jpeg())) == ["dog", "cat"]


@pytest.mark.parametrize("model", ["pets", "https://hub.ultralytics.com/models/pets", "https://x/models/pets/"])
def test_the_model_field_of_hub_may_be_a_url_that_ends_with_the_name(shared_server, model):
    assert found(predict(shared_server, "/", model=model)) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/", {"model": "https://hub.ultralytics.com/models/birds"}),
        ("/api/models/birds/predict", {}),
        ("/v1/predict/birds", {}),
    ],
)
def test_an_unknown_model_is_not_found_and_the_served_model_is_named(serve, device, path, fields):
    answer = predict(serve(), path, **fields)
    assert refused(answer) == (404, "not_found")
    assert answer.json()["error"] == "there is no model 'birds' here; the model is pets"
    assert device.batches == []


@pytest.mark.parametrize("old", [{"part": "image"}, {"size": "640"}, {"confidence": "0.25"}])
def test_a_request_with_old_hub_fields_gets_the_old_hub_response(shared_server, old):
    body = predict(shared_server, "/v1/predict/pets", **old).json()
    assert (body["success"], body["message"]) == (True, "Inference complete.")
    assert body["data"][0] == {
        "class": 1,
        "name": "dog",
        "confidence": 0.9,
        "xcenter": 20 / 64,
        "ycenter": 30 / 64,
        "width": 20 / 64,
        "height": 20 / 64,
    }
    assert "images" in predict(shared_server, "/v1/predict/pets").json()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"conf": "2"}, "conf"),
        ({"conf": "much"}, "conf"),
        ({"iou": "-1"}, "iou"),
        ({"decimals": "11"}, "decimals"),
        ({"normalize": "perhaps"}, "normalize"),
    ],
)
def test_a_wrong_field_is_named_in_the_error(shared_server, fields, name):
    answer = predict(shared_server, **fields)
    assert refused(answer) == (422, "bad_parameter")
    assert answer.json()["error"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"files": {"file": ("a.jpg", b"no image")}}, (422, "undecodable_image")),
        ({"files": {"file": ("a.pdf", b"%PDF-1.7")}}, (415, "unsupported_image")),
        ({"files": [("file", ("a.jpg", jpeg()))] * 2}, (413, "too_many_files")),
        ({"files": {"conf": (None, "0.5")}}, (400, "empty_body")),
        ({"files": {str(i): (None, "") for i in range(65)}}, (400, "malformed_body")),
        ({"data": {"source": "no base64!"}}, (422, "undecodable_image")),
        ({"data": {"source": "http://example.com/a.jpg"}}, (403, "url_not_allowed")),
        ({"data": {"conf": "0.5"}}, (400, "empty_body")),
        ({"content": b"a=%ff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, (400, "empty_body")),
        (
            {"content": b"\xff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
            (400, "malformed_body"),
        ),
        (
            {"content": b"&".join([b"a=1"] * 65), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
            (400, "malformed_body"),
        ),
        ({"content": b""}, (400, "empty_body")),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, (400, "malformed_body")),
        ({"content": b"cut", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, (400, "malformed_body")),
    ],
    ids=str,
)
def test_each_bad_body_gets_its_error_in_the_platform_format_and_the_next_request_works(shared_server, body, expected):
    assert refused(shared_server.client.post("/predict", **body)) == expected
    assert found(predict(shared_server)) == ["dog", "cat"]
    assert shared_server.service.predictor.pending == 0


def test_the_limits_of_the_server_apply_to_platform_requests(serve):
    assert refused(predict(serve(max_body_bytes=100))) == (413, "body_too_large")
    assert refused(predict(serve(max_pixels=100))) == (413, "too_many_pixels")


def test_a_get_is_refused_in_the_platform_format(shared_server):
    assert refused(shared_server.client.get("/predict")) == (405, "method_not_allowed")


def test_the_page_is_still_at_the_root(shared_server):
    assert shared_server.client.get("/").headers["content-type"].startswith("text/html")
