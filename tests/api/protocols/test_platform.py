"""Ultralytics Platform's calls and HUB's, over a real socket, with a device that the test holds."""

import base64

import pytest
from posts import jpeg, wait_for

PATHS = ["/predict", "/api/models/pets/predict", "/v1/predict/pets", "/"]
DOG = {"name": "dog", "class": 1, "confidence": 0.9, "box": {"x1": 10.0, "y1": 20.0, "x2": 30.0, "y2": 40.0}}


def ask(live, path="/predict", part="file", files=None, **fields):
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
def test_every_endpoint_answers_in_the_platform_s_json_and_is_counted_as_its_own(serve, path):
    live = serve()
    body = ask(live, path).json()
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
def test_fields_of_the_form_select_what_is_answered(shared_server, fields, expected):
    assert found(ask(shared_server, **fields)) == expected


def test_fields_may_stand_in_the_query_and_the_form_wins(shared_server):
    assert found(ask(shared_server, "/predict?conf=0.7")) == ["dog"]
    assert found(ask(shared_server, "/predict?conf=0.7", conf="0.1")) == ["dog", "cat"]


def test_boxes_can_be_shares_and_are_rounded_as_is_wished(shared_server):
    (first, _) = ask(shared_server, normalize="true", decimals="2").json()["images"][0]["results"]
    assert first == DOG | {"box": {"x1": 0.16, "y1": 0.31, "x2": 0.47, "y2": 0.62}}


@pytest.mark.parametrize("part", ["file", "image", "upload"])
def test_the_file_is_the_part_that_is_one_whatever_its_name(shared_server, part):
    assert found(ask(shared_server, part=part)) == ["dog", "cat"]


def test_a_file_without_a_file_name_is_one_too(shared_server):
    assert found(ask(shared_server, files={"file": (None, jpeg())})) == ["dog", "cat"]


@pytest.mark.parametrize("field", ["source", "image"])
@pytest.mark.parametrize("wrap", ["{}", "data:image/jpeg;base64,{}"])
def test_the_image_may_be_base64_in_a_form_of_either_kind(shared_server, field, wrap):
    text = wrap.format(base64.b64encode(jpeg()).decode())
    assert found(shared_server.client.post("/predict", data={field: text})) == ["dog", "cat"]
    assert found(shared_server.client.post("/predict", files={field: (None, text)})) == ["dog", "cat"]


def test_the_image_may_be_the_body_itself(shared_server):
    assert found(shared_server.client.post("/predict", content=jpeg())) == ["dog", "cat"]


@pytest.mark.parametrize("model", ["pets", "https://hub.ultralytics.com/models/pets", "https://x/models/pets/"])
def test_hub_s_model_field_may_be_a_url_that_ends_with_the_name(shared_server, model):
    assert found(ask(shared_server, "/", model=model)) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/", {"model": "https://hub.ultralytics.com/models/birds"}),
        ("/api/models/birds/predict", {}),
        ("/v1/predict/birds", {}),
    ],
)
def test_another_model_is_not_found_and_the_one_that_is_there_is_named(serve, device, path, fields):
    answer = ask(serve(), path, **fields)
    assert refused(answer) == (404, "not_found")
    assert answer.json()["error"] == "there is no model 'birds' here; the model is pets"
    assert device.batches == []


@pytest.mark.parametrize("old", [{"part": "image"}, {"size": "640"}, {"confidence": "0.25"}])
def test_who_asks_hub_in_its_old_words_gets_its_old_answer(shared_server, old):
    body = ask(shared_server, "/v1/predict/pets", **old).json()
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
    assert "images" in ask(shared_server, "/v1/predict/pets").json()


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
def test_a_wrong_field_is_named(shared_server, fields, name):
    answer = ask(shared_server, **fields)
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
def test_each_bad_body_gets_its_error_in_the_platform_s_shape_and_harms_nobody(shared_server, body, expected):
    assert refused(shared_server.client.post("/predict", **body)) == expected
    assert found(ask(shared_server)) == ["dog", "cat"]
    assert shared_server.service.predictor.pending == 0


def test_the_limits_of_the_house_hold_here_too(serve):
    assert refused(ask(serve(max_body_bytes=100))) == (413, "body_too_large")
    assert refused(ask(serve(max_pixels=100))) == (413, "too_many_pixels")


def test_a_get_is_refused_in_the_platform_s_shape(shared_server):
    assert refused(shared_server.client.get("/predict")) == (405, "method_not_allowed")


def test_the_page_is_still_at_the_root(shared_server):
    assert shared_server.client.get("/").headers["content-type"].startswith("text/html")
